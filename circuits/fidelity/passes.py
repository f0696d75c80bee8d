"""The forward passes of an evaluation: clean ones, and one for each replacement of sites."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.fidelity.predictions import counted_positions, cross_entropy, prediction_sums
from circuits.reconstruction import ReconstructionSums
from circuits.sites import Site
from circuits.spliced import SplicedModel
from circuits.subject import Edit, SubjectModel

__all__ = ["Batch", "DictionaryStatistics", "EditsAt", "Losses", "read_statistics", "replace_sites"]

Key = TypeVar("Key", bound=Hashable)
EditsAt = Callable[[Bool[Tensor, "batch pos"]], dict[Site, Edit]]
"""What goes on at some sites, given the kept positions of a batch."""


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass."""

    tokens: Int[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]


@dataclass(frozen=True)
class Losses:
    """Mean next-token loss, and mean KL from the model, in nats a token."""

    cross_entropy: float
    kl: float


@dataclass(frozen=True)
class DictionaryStatistics:
    """What one dictionary does on the model's own activations: sums over tokens."""

    write: Site
    reconstruction: ReconstructionSums
    firings: Int[Tensor, " feature"]
    """On how many tokens each feature was active."""


def read_statistics(
    model: SubjectModel,
    candidates: Mapping[str, SplicedModel],
    batches: Iterable[Batch],
    tick: Callable[[], None],
) -> dict[tuple[str, Site], DictionaryStatistics]:
    """Statistics of every candidate's dictionary at every write site, from one clean pass."""
    statistics = {
        (name, write): DictionaryStatistics(
            write,
            ReconstructionSums(),
            torch.zeros(p.dictionary.n_features, dtype=torch.int64, device=model.device),
        )
        for name, spliced in candidates.items()
        for write, p in spliced.placements.items()
    }
    placements = [p for spliced in candidates.values() for p in spliced.placements.values()]
    sites = {site for placement in placements for site in (placement.read, placement.write)}
    for batch in batches:
        _, values = model.run(batch.tokens, capture=sites)
        kept = {site: value[batch.keep] for site, value in values.items()}
        for name, spliced in candidates.items():
            for write, a, y_hat in _reconstructions(spliced, kept):
                statistics[name, write].firings.add_((a != 0).sum(0))
                statistics[name, write].reconstruction.add(kept[write], y_hat)
        tick()
    return statistics


def _reconstructions(
    spliced: SplicedModel, values: Mapping[Site, Float[Tensor, "token d_model"]]
) -> Iterator[tuple[Site, Float[Tensor, "token _"], Float[Tensor, "token d_model"]]]:
    """Activations and reconstruction of every dictionary, lowest first."""
    activations: dict[Site, Tensor] = {}
    for write, placement in sorted(spliced.placements.items(), key=lambda item: item[0].layer):
        x = values[placement.read]
        a = activations[write] = placement.dictionary.encode(x)
        yield write, a, spliced.reconstruct(write, activations, x)
        if placement.dictionary.n_writes == 1:  # nobody above needs them
            del activations[write]


def replace_sites(
    model: SubjectModel,
    replacements: Mapping[Key, EditsAt],
    batches: Sequence[Batch],
    tick: Callable[[], None],
) -> tuple[float, dict[Key, Losses]]:
    """The model's own mean loss, and the losses of every replacement.

    One clean pass and one for each replacement; only one batch's logits are held at a time.
    """
    clean, n_predictions = 0.0, 0
    sums = {key: (0.0, 0.0) for key in replacements}
    for batch in batches:
        counted = counted_positions(batch.keep)
        targets = batch.tokens[:, 1:][counted]
        logits, _ = model.run(batch.tokens)
        loss, n = cross_entropy(logits, batch.tokens, batch.keep)
        clean, n_predictions = clean + loss, n_predictions + n
        own = logits[:, :-1][counted]
        tick()
        for key, edits_at in replacements.items():
            logits, _ = model.run(batch.tokens, edits=edits_at(batch.keep))
            loss, divergence = prediction_sums(logits[:, :-1][counted], own, targets)
            sums[key] = (sums[key][0] + loss, sums[key][1] + divergence)
            tick()
    means = {
        key: Losses(loss / n_predictions, kl / n_predictions) for key, (loss, kl) in sums.items()
    }
    return clean / n_predictions, means
