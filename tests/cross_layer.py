"""Random cross-layer transcoders on the models of `tests.models`, and their writes set to zero."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

import torch

from circuits import Dictionary, Site, SplicedModel, Transcoder
from circuits.dictionaries import CrossLayerTranscoder
from tests import models

ARCHITECTURES = ("gpt2", "llama_gqa", "neox_parallel")
D = TypeVar("D", bound=Dictionary)
N_FEATURES = 12
MLPS = tuple(Site("mlp_raw_out", layer) for layer in range(models.N_LAYERS))


def cross_layer(
    n_writes: int,
    activation: str = "jumprelu",
    *,
    seed: int = 0,
    skip: bool = False,
    n_features: int = N_FEATURES,
    d_model: int = models.D_MODEL,
) -> CrossLayerTranscoder:
    """One layer's part; every slot writes something else."""
    plain = models.transcoder(
        activation, skip=skip, seed=seed, n_features=n_features, d_model=d_model
    )
    generator = torch.Generator().manual_seed(seed + 500)
    W_dec = 0.3 * torch.randn(n_features, n_writes, d_model, generator=generator)
    return rebuilt(CrossLayerTranscoder, plain, W_dec=W_dec)


def rebuilt(kind: type[D], dictionary: Dictionary, **changes: Any) -> D:
    """A dictionary of another kind, or with other tensors."""
    return kind(**(tensors(dictionary) | changes))


def tensors(dictionary: Dictionary) -> dict[str, Any]:
    """The fields of a dictionary."""
    return {field.name: getattr(dictionary, field.name) for field in fields(dictionary)}


def whole(
    layers: Iterable[int] = range(models.N_LAYERS), activation: str = "jumprelu", **settings
) -> dict[int, CrossLayerTranscoder]:
    """One for each of `layers`, a run, that write up to the last of them."""
    run = list(layers)
    return {
        layer: cross_layer(run[-1] + 1 - layer, activation, seed=layer, **settings) for layer in run
    }


def spliced(architecture: str, mixture: str = "whole") -> SplicedModel:
    """In float64: layers 0 to 2, the top two, the lower two below a plain transcoder, or all of
    them among SAEs that cut the stream.
    """
    return SplicedModel(models.subject(architecture, torch.float64), mixed(mixture))


MIXTURES = (
    "whole", "top", "bottom", "topk", "relu_skip", "among_saes", "below_sae", "above_sae"
)  # fmt: skip


def mixed(mixture: str) -> dict[str, Dictionary]:
    match mixture:
        case "top":
            found: dict[str, Dictionary] = {f"mlp.{i}": t for i, t in whole((1, 2)).items()}
            return found
        case "bottom":
            below = {f"mlp.{i}": t for i, t in whole((0, 1)).items()}
            return {**below, "mlp.2": models.transcoder("relu", skip=True, seed=9)}
        case "topk":
            return {f"mlp.{i}": t for i, t in whole(activation="topk").items()}
        case "relu_skip":
            return {f"mlp.{i}": t for i, t in whole(activation="relu", skip=True).items()}
        case "among_saes" | "below_sae" | "above_sae":
            saes = {
                "among_saes": {
                    "attn_out.1": models.sae("attn_out", seed=6),
                    "resid_post.0": models.sae("resid_post", "relu", seed=7),
                },
                "below_sae": {"resid_post.1": models.sae("resid_post", "relu", seed=7)},
                "above_sae": {
                    "resid_pre.0": models.sae("resid_pre", "relu", seed=7),
                    "attn_out.2": models.sae("attn_out", seed=6),
                },
            }[mixture]
            return {**saes, **{f"mlp.{i}": t for i, t in whole().items()}}
        case _:
            return {f"mlp.{i}": t for i, t in whole().items()}


def without_later_writes(transcoder: CrossLayerTranscoder) -> CrossLayerTranscoder:
    """The same, but it writes to its own layer alone: the other slots are 0."""
    W_dec = transcoder.W_dec.clone()
    W_dec[:, 1:] = 0
    return rebuilt(CrossLayerTranscoder, transcoder, W_dec=W_dec)


def own_layer_only(transcoder: CrossLayerTranscoder) -> Transcoder:
    """The plain transcoder that does what it does at its own layer."""
    return rebuilt(Transcoder, transcoder, W_dec=transcoder.decoder())
