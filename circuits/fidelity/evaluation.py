"""Evaluation: which passes are needed, and what they make of each dictionary.

Ablations do not depend on dictionaries: they run once for each set of sites, however many
dictionaries are compared there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.fidelity.edits import constants, splices
from circuits.fidelity.passes import (
    Batch,
    DictionaryStatistics,
    EditsAt,
    Losses,
    read_statistics,
    replace_sites,
)
from circuits.fidelity.predictions import counted_positions
from circuits.fidelity.records import CrossEntropy, FidelityReport, KLDivergence
from circuits.fidelity.reporting import dictionary_record, loss_records
from circuits.sites import Site
from circuits.spliced import SplicedModel
from circuits.subject import SubjectModel

__all__ = ["evaluate", "evaluate_many"]

Progress = Callable[[int, int], None]
Writes = tuple[Site, ...]


@dataclass(frozen=True)
class _Replacement:
    """What is put at some sites: a candidate's reconstructions, or a constant."""

    by: Literal["splice", "mean", "zero"]
    writes: Writes
    candidate: str = ""


def evaluate(
    spliced: SplicedModel,
    tokens: Int[Tensor, "row pos"],
    *,
    keep: Bool[Tensor, "row pos"] | None = None,
    batch_rows: int = 8,
    progress: Progress = lambda done, of: None,
) -> FidelityReport:
    """Measure every dictionary of `spliced` on `tokens`, alone and with the others of its site.

    Over the text that takes two clean forward passes, three for each dictionary (spliced,
    mean-ablated and zero-ablated), and three for each kind of site with several.

    Args:
        spliced: the model with its dictionaries.
        tokens: rows of token ids.
        keep: positions to measure and splice; None for all but the first of each row.
        batch_rows: rows a forward pass; memory grows with it, not with the text.
        progress: called with forward passes done and in all.

    Raises:
        ValueError: if nothing is kept, the model cannot read the tokens, or values are not finite.
    """
    only = evaluate_many({"": spliced}, tokens, keep=keep, batch_rows=batch_rows, progress=progress)
    return only[""]


def evaluate_many(
    candidates: Mapping[str, SplicedModel],
    tokens: Int[Tensor, "row pos"],
    *,
    keep: Bool[Tensor, "row pos"] | None = None,
    batch_rows: int = 8,
    progress: Progress = lambda done, of: None,
) -> dict[str, FidelityReport]:
    """What `evaluate` says of each candidate, with clean and ablated passes shared.

    For n dictionaries at one site that is n + 4 passes over the text, not 5 n.

    Args:
        candidates: name -> one and the same model, with other dictionaries.
        tokens: as for `evaluate`, like all that follow.

    Raises:
        ValueError: as `evaluate`, or if candidates are of different models.
    """
    model = _shared_model(candidates)
    keep = _checked_positions(model, tokens, keep).to(model.device)
    pairs = zip(tokens.to(model.device).split(batch_rows), keep.split(batch_rows), strict=True)
    batches = [Batch(rows, kept) for rows, kept in pairs]
    wanted = _wanted(candidates)
    n_passes, done = len(batches) * (2 + len(wanted)), count(1)

    def tick() -> None:
        progress(next(done), n_passes)

    with torch.no_grad():
        statistics = read_statistics(model, candidates, batches, tick)
        _check_finite(statistics)
        means = {write: each.reconstruction.mean for (_, write), each in statistics.items()}
        zeros = {write: torch.zeros_like(mean) for write, mean in means.items()}
        replacements = {
            each: _edits(each, candidates, zeros if each.by == "zero" else means, model.dtype)
            for each in wanted
        }
        clean, losses = replace_sites(model, replacements, batches, tick)
    n_predictions = int(counted_positions(keep).sum())
    return {
        name: _report(name, spliced, statistics, clean, losses, n_predictions)
        for name, spliced in candidates.items()
    }


def _shared_model(candidates: Mapping[str, SplicedModel]) -> SubjectModel:
    models = [spliced.model for spliced in candidates.values()]
    if not models or not all(spliced.placements for spliced in candidates.values()):
        raise ValueError("there is no dictionary to evaluate; give every candidate at least one")
    if any(model is not models[0] for model in models):
        raise ValueError(
            "candidates must share one model, got several; load it once and splice every "
            "candidate's dictionaries into it"
        )
    return models[0]


def _checked_positions(
    model: SubjectModel, tokens: Tensor, keep: Tensor | None
) -> Bool[Tensor, "row pos"]:
    """The positions to measure, if there are any and the model can read the text."""
    if tokens.ndim != 2 or (keep is not None and keep.shape != tokens.shape):
        raise ValueError(
            f"want tokens [row, pos] and `keep` of the same shape, got {tuple(tokens.shape)} and "
            f"{None if keep is None else tuple(keep.shape)}"
        )
    if keep is None:
        keep = torch.ones_like(tokens, dtype=torch.bool)
        keep[:, :1] = False
    if not counted_positions(keep).any():
        raise ValueError(
            "no position and its next token are both kept; give rows of more than two tokens"
        )
    model.check_tokens(tokens[0])
    model.check_tokens(torch.stack(tokens.aminmax()))
    return keep


def _check_finite(statistics: Mapping[tuple[str, Site], DictionaryStatistics]) -> None:
    for (name, write), each in statistics.items():
        if not isfinite(each.reconstruction.fvu()):
            of = f" of {name}" if name else ""
            raise ValueError(
                f"reconstructions by the dictionary at {write}{of} are not all finite; are its "
                "weights damaged?"
            )


def _groups(spliced: SplicedModel) -> dict[str, Writes]:
    """The write sites of each kind of dictionary (mlp, resid_post, ...)."""
    groups: dict[str, Writes] = {}
    for write, placement in spliced.placements.items():
        groups[placement.site] = (*groups.get(placement.site, ()), write)
    return groups


def _replacements(candidate: str, writes: Writes) -> tuple[_Replacement, ...]:
    """Splice, mean ablation and zero ablation of some sites, in this order."""
    splice = _Replacement("splice", writes, candidate)
    return splice, _Replacement("mean", writes), _Replacement("zero", writes)


def _wanted(candidates: Mapping[str, SplicedModel]) -> list[_Replacement]:
    """Every replacement once: each dictionary alone, and all of a kind together."""
    found: list[_Replacement] = []
    for name, spliced in candidates.items():
        for writes in (*((write,) for write in spliced.placements), *_groups(spliced).values()):
            found += _replacements(name, writes)
    return list(dict.fromkeys(found))


def _edits(
    replacement: _Replacement,
    candidates: Mapping[str, SplicedModel],
    values: Mapping[Site, Tensor],
    dtype: torch.dtype,
) -> EditsAt:
    if replacement.by == "splice":
        return partial(splices, candidates[replacement.candidate], replacement.writes)
    return partial(constants, {write: values[write].to(dtype) for write in replacement.writes})


def _report(
    name: str,
    spliced: SplicedModel,
    statistics: Mapping[tuple[str, Site], DictionaryStatistics],
    clean: float,
    losses: Mapping[_Replacement, Losses],
    n_predictions: int,
) -> FidelityReport:
    def records(writes: Writes) -> tuple[CrossEntropy, KLDivergence]:
        return loss_records(clean, *(losses[each] for each in _replacements(name, writes)))

    alone = [
        dictionary_record(placement.name, statistics[name, write], *records((write,)))
        for write, placement in spliced.placements.items()
    ]
    together = {kind: records(writes) for kind, writes in _groups(spliced).items()}
    return FidelityReport(
        model=spliced.model.name,
        n_tokens=next(iter(statistics.values())).reconstruction.n_tokens,
        n_predictions=n_predictions,
        dictionaries=tuple(alone),
        together={kind: losses for kind, (losses, _) in together.items()},
        together_kl={kind: divergences for kind, (_, divergences) in together.items()},
    )
