"""What runs that are trained together share: one text, one order, one stream of activations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.sites import Site
from circuits.subject import SubjectModel
from circuits.training.buffer import ActivationSource
from circuits.training.config import DictionaryConfig, TrainingConfig
from circuits.training.display import Progress, Watcher
from circuits.training.loop import Batch
from circuits.training.places import CROSS_LAYER, dictionary_names, dictionary_sites, kind_of
from circuits.training.processes import Processes
from circuits.training.step import Workspace
from circuits.training.text import bos_token, kept_rows, read_rows, trained_positions

__all__ = [
    "TOKENS_NAME",
    "activation_source",
    "batches_of",
    "captured_sites",
    "inputs_and_targets",
    "shared_settings",
    "text_rows",
]

TOKENS_NAME = "tokens.safetensors"
_OWN = {"sites", "layers", "cross_layer", "save_dtype"}
_SHARED = {"n_tokens", "batch_size"}


def shared_settings(configs: Mapping[str, TrainingConfig]) -> dict[str, Any]:
    """The settings that are about data, equal in all `configs`.

    Raises:
        ValueError: if they differ, or there is no configuration.
    """
    if not configs:
        raise ValueError("there is no configuration to train; give at least one")
    about_data = TrainingConfig.model_fields.keys() - DictionaryConfig.model_fields.keys()
    names = sorted((about_data - _OWN) | _SHARED)
    settings = {
        name: config.model_dump(mode="json", include=set(names)) for name, config in configs.items()
    }
    first, *others = settings
    for other in others:
        for name in names:
            ours, theirs = settings[first][name], settings[other][name]
            if ours != theirs:
                raise ValueError(
                    f"configurations trained together share their data, but {name} is {ours!r} for "
                    f"{first!r} and {theirs!r} for {other!r}; make it equal, or train them apart"
                )
    return settings[first]


def text_rows(
    config: TrainingConfig,
    model: SubjectModel,
    folder: Path,
    tokens: Int[Tensor, "row context"] | None,
    watch: Watcher,
) -> Int[Tensor, "row context"]:
    """The text as token ids, read or sampled once and then kept in `folder`.

    Raises:
        ValueError: if the model cannot read it, or nothing would be left after evaluation.
    """
    if tokens is not None and (tokens.ndim != 2 or tokens.shape[1] != config.context):
        raise ValueError(
            f"tokens must be rows of {config.context} ids (context), got {tuple(tokens.shape)}"
        )

    if config.context > model.n_ctx:
        raise ValueError(
            f"context {config.context} is longer than {model.name!r} reads, {model.n_ctx}"
        )

    def read() -> Tensor:
        return read_rows(
            model,
            config.text,
            context=config.context,
            n_tokens=config.n_text_tokens,
            seed=config.data_seed,
            pack=config.pack,
            progress=lambda done, of: watch(Progress("reading text (rows)", done, of)),
        )

    make = read if tokens is None else lambda: tokens
    rows = kept_rows(folder / TOKENS_NAME, config.context, make)
    if len(rows) <= config.n_eval_rows:
        raise ValueError(
            f"the text fills {len(rows)} rows of {config.context} tokens; want more than the "
            f"{config.n_eval_rows} kept for evaluation: give more text or fewer n_eval_rows"
        )
    return rows


def captured_sites(keys: Sequence[str]) -> list[Site]:
    """Every site that what is trained as `keys` reads or writes, once."""
    names = [name for key in keys for name in dictionary_names(key)]
    return list(dict.fromkeys(site for name in names for site in dictionary_sites(name)))


def inputs_and_targets(key: str, values: Callable[[Site, str], Tensor]) -> tuple[Tensor, Tensor]:
    """Raw inputs and targets of what is trained as `key`.

    They are [token, d_model], for a cross-layer transcoder [token, layer, d_model].

    Args:
        key: names it.
        values: a site, and a name of its own for what is wanted there -> values, [token, d_model].
    """
    places = [dictionary_sites(name) for name in dictionary_names(key)]
    if kind_of(key) != CROSS_LAYER:
        ((read, write),) = places
        x = values(read, "x")
        return x, x if read == write else values(write, "y")
    x = torch.stack([values(read, f"x {i}") for i, (read, _) in enumerate(places)], dim=1)
    return x, torch.stack([values(write, f"y {i}") for i, (_, write) in enumerate(places)], dim=1)


def activation_source(
    config: TrainingConfig,
    model: SubjectModel,
    rows: Int[Tensor, "row context"],
    keys: Sequence[str],
    *,
    processes: Processes,
    work: Workspace,
    watch: Watcher,
) -> ActivationSource:
    """Where the batches of the dictionaries `keys` come from, over the rows to train on."""
    bos = bos_token(model)
    total, seen = int(trained_positions(rows, bos).sum()), 0

    def count(n_tokens: int) -> None:
        nonlocal seen
        seen = (seen + n_tokens) % total
        watch(Progress("running the model (tokens)", seen or total, total))

    return ActivationSource(
        model,
        rows,
        captured_sites(keys),
        bos=bos,
        batch_size=config.batch_size,
        chunk_tokens=config.buffer_tokens,
        cache_bytes=config.activation_cache_gb * 1e9,
        seed=config.data_seed,
        model_batch_rows=config.model_batch_rows,
        processes=processes,
        work=work,
        progress=count,
    )


def batches_of(source: ActivationSource) -> Callable[[int], Iterator[Batch]]:
    """Batches by name of the dictionary instead of by site."""

    def from_step(start: int) -> Iterator[Batch]:
        for gather in source.batches(start):
            yield partial(inputs_and_targets, values=gather)

    return from_step
