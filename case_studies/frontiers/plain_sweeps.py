"""Families of neuron and head circuits of the plain model: two gradient scores, and ACDC."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from case_studies.frontiers.config import FrontierConfig
from case_studies.frontiers.sweeps import Progress, Sweep, ranked_sweep
from graphs.prune_acdc import removable
from graphs.units import Unit, UnitTrial, unit_attribution, unit_integrated

__all__ = ["plain_acdc", "plain_sweeps"]


def plain_sweeps(
    config: FrontierConfig,
    choosing: UnitTrial,
    units: Sequence[Unit],
    progress: Progress,
    what: str,
) -> list[Sweep]:
    """Rank `units`, those of the prompts that prove, by gradients on the choosing prompts."""
    progress(f"{what}: gradients", 0.0)
    scores = {
        "integrated gradients": unit_integrated(choosing, units, steps=config.steps),
        "attribution": unit_attribution(choosing, units),
    }
    return [
        ranked_sweep(name, effects.double().mean(0).abs().cpu(), factor=config.size_factor)
        for name, effects in scores.items()
    ]


def plain_acdc(
    config: FrontierConfig,
    choosing: UnitTrial,
    units: Sequence[Unit],
    progress: Progress,
    what: str,
) -> Sweep:
    """ACDC over all units of the choosing prompts, output side first.

    Thresholds ascending, each from the circuit of the one before.
    """

    def score(kept: Bool[Tensor, "circuit unit"]) -> Float[Tensor, " circuit"]:
        return choosing.measure(kept).kl.mean(-1)

    kept = torch.ones(len(choosing.units), dtype=torch.bool)
    worst = float(score(~kept[None]))
    circuits: dict[float, Tensor] = {}
    for number, share in enumerate(sorted(config.thresholds)):
        progress(f"{what}: ACDC", number / len(config.thresholds))
        order = kept.nonzero().flatten().flip(0).tolist()
        kept = removable(order, kept, score=score, threshold=share * worst, batch=8)
        inside = {choosing.units[i] for i in kept.nonzero().flatten().tolist()}
        circuits[share] = torch.tensor([unit in inside for unit in units])
    return Sweep("ACDC", circuits)
