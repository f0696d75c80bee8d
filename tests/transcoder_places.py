"""Transcoders that read the stream before the norm, or write behind a post-norm, in mixtures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch

from circuits import Dictionary, SplicedModel, SubjectModel
from circuits.conventions import NATIVE, Convention
from tests import models
from tests.cross_layer import whole
from tests.models import N_LAYERS

STREAM = NATIVE.model_copy(update={"norm": "none"})
BEHIND = NATIVE.model_copy(update={"output": "after post-norm"})
AROUND = BEHIND.model_copy(update={"norm": "none"})


transcoder = partial(models.transcoder, n_features=16)
sae = partial(models.sae, n_features=16)


def of(convention: Convention, dictionary: Dictionary) -> Dictionary:
    """The same weights under another convention."""
    return replace(dictionary, convention=convention)


def crossing(convention: Convention, *layers: int, **settings) -> dict[str, Dictionary]:
    """One layer's part of a cross-layer transcoder each, of one convention."""
    parts = whole(layers or range(N_LAYERS), **settings)
    return {f"mlp.{i}": of(convention, part) for i, part in parts.items()}


MIXTURES: dict[str, dict[str, Dictionary]] = {
    "stream": {f"mlp.{i}": of(STREAM, transcoder("relu", seed=i)) for i in range(N_LAYERS)},
    "behind": {f"mlp.{i}": of(BEHIND, transcoder("relu", seed=i)) for i in range(N_LAYERS)},
    "each": {
        "mlp.0": of(BEHIND, transcoder(skip=True)),
        "mlp.1": of(AROUND, transcoder("topk", skip=True, seed=1)),
        "mlp.2": of(STREAM, transcoder("jumprelu", skip=True, seed=2)),
    },
    "native_between": {
        "mlp.0": of(AROUND, transcoder("relu", skip=True)),
        "mlp.1": transcoder("relu", skip=True, seed=1),
        "mlp.2": of(AROUND, transcoder("topk", seed=2)),
    },
    "among_saes": {
        "attn_out.0": sae("attn_out", seed=6),
        "mlp.0": of(AROUND, transcoder(skip=True)),
        "resid_pre.1": sae("resid_pre", seed=7),
        "mlp_out.1": sae("mlp_out", "relu", seed=9),
        "attn_out.2": sae("attn_out", "relu", seed=8),
        "mlp.2": of(BEHIND, transcoder("topk", seed=10)),
    },
    "one": {"mlp.1": of(AROUND, transcoder("relu", seed=1))},
    "crossing": crossing(AROUND),
    "crossing_skip": crossing(BEHIND, activation="relu", skip=True),
    "crossing_stream": crossing(STREAM, 1, 2),
    "crossing_below": crossing(AROUND, 0, 1)
    | {"mlp.2": of(STREAM, transcoder("relu", skip=True, seed=9))},
    "crossing_among_saes": crossing(AROUND)
    | {"attn_out.1": sae("attn_out", seed=6), "resid_post.0": sae("resid_post", "relu", seed=7)},
}


@cache
def spliced(architecture: str, mixture: str, dtype: torch.dtype = torch.float64) -> SplicedModel:
    """A shared model with one of `MIXTURES` in it."""
    return SplicedModel(models.subject(architecture, dtype), MIXTURES[mixture])


@contextmanager
def norms_in_float64() -> Iterator[None]:
    """Every run computes its norms in float64, which RMS norms do not do by themselves.

    A run's rounding is otherwise that of float32, and random transcoders, whose errors are hundreds
    of times what they predict, enlarge it.
    """
    own = SubjectModel.run

    def run(
        self: SubjectModel,
        tokens: torch.Tensor,
        *,
        edits: Any = None,
        capture: Any = (),
        start: Any = None,
        **settings: Any,
    ) -> Any:
        first = 0 if start is None else start[0]
        scales = self.scale_sites()
        fresh = {s: torch.clone for s in scales if s.layer >= first or s.kind == "final_scale"}
        edits = fresh | dict(edits or {})
        return own(self, tokens, edits=edits, capture=capture, start=start, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubjectModel, "run", run)
        yield
