"""Size against faithfulness: a pruning family's circuits at all its thresholds.

Families of several kinds of units (features, neurons, heads) lie on the same axes when all else is
equal: the prompts, the two ends m(M) and m(empty), and the other choices.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from graphs.frontier_shape import FrontierPoint, curve_areas, knee, pareto_front
from graphs.proof.estimates import (
    as_estimate,
    check_span,
    mean_estimate,
    resampling,
    share_estimate,
)
from graphs.proof.trial import Measure

__all__ = ["Frontier", "frontier", "geometric_sizes", "random_frontier", "top_ranked"]


class Frontier(BaseModel):
    """A family of circuits on one set of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 2
    family: str
    unit: str = Field(description="what sizes count, and what is ablated: features, heads, ...")
    choices: str = Field(description="the other choices, in one line")
    n_units: int = Field(description="units that could be kept")
    n_prompts: int
    intervals: Literal["prompts", "draws"] = Field(
        default="prompts",
        description="what intervals are over: resampled prompts, or the random circuits of a size",
    )
    points: tuple[FrontierPoint, ...] = Field(description="by size")
    front: tuple[FrontierPoint, ...] = Field(description="those of `pareto_front`")
    knee: FrontierPoint | None = Field(description="that of `knee`")
    cpr: float = Field(description="area under faithfulness over the share kept; 1 is best")
    cmd: float = Field(description="area between faithfulness and 1; 0 is best")


def geometric_sizes(n_units: int, *, factor: float = 2.0) -> list[int]:
    """1, then `factor` times as many each time (rounded up), and at last `n_units`.

    Raises:
        ValueError: if there is no unit, or the factor does not grow.

    Example:
        >>> geometric_sizes(10)
        [1, 2, 4, 8, 10]
    """
    if n_units < 1 or not factor > 1:
        raise ValueError(f"want n_units >= 1 and factor > 1, got {n_units} and {factor}")
    sizes, size = [], 1
    while size < n_units:
        sizes.append(size)
        size = max(size + 1, round(size * factor))
    return [*sizes, n_units]


def top_ranked(
    score: Float[Tensor, " unit"], sizes: Sequence[int]
) -> dict[float, Bool[Tensor, " unit"]]:
    """The best-scored units at each size; ties fall to the earlier unit, so circuits are nested.

    Raises:
        ValueError: if a size is not between 0 and the number of units.
    """
    wrong = [size for size in sizes if not 0 <= size <= len(score)]
    if wrong:
        raise ValueError(f"sizes must be in [0, {len(score)}], got {wrong[0]}")
    rank = torch.empty(len(score), dtype=torch.long)
    rank[score.argsort(descending=True, stable=True)] = torch.arange(len(score))
    return {float(size): rank < size for size in sizes}


def frontier(
    measure: Measure,
    model: Float[Tensor, " prompt"],
    circuits: Mapping[float, Bool[Tensor, " unit"]],
    *,
    family: str,
    unit: str,
    choices: str,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Frontier:
    """Measure a family at every threshold.

    Args:
        measure: runs circuits on prompts that chose none of them (`Trial.measure`,
            `UnitTrial.measure`).
        model: the original model's metric on those prompts.
        circuits: flags by threshold, from a pruning sweep (`Trial.circuit`) or `top_ranked`.
        family: what the figure calls it.
        unit: what sizes count and what is ablated.
        choices: the other choices in one line, the same for families on the same axes.
        n_resamples: bootstrap resamples of the prompts; the same for every point.
        seed: of the resampling.

    Raises:
        ValueError: if there is no circuit, or the ablation does not change the metric for sure.
    """
    if not circuits:
        raise ValueError(f"family {family!r} has no circuit; give at least one threshold")
    flags = torch.stack(list(circuits.values()))
    outcome = measure(torch.cat([torch.zeros_like(flags[:1]), flags]))
    weights = resampling(len(model), n_resamples=n_resamples, seed=seed)
    empty = outcome.metric[0]
    whole = check_span(model, empty, weights)
    measured = zip(circuits, flags.sum(1).tolist(), outcome.metric[1:], outcome.kl[1:], strict=True)
    points = [
        FrontierPoint(
            threshold=threshold,
            size=size,
            faithfulness=share_estimate(metric - empty, whole, weights),
            kl=mean_estimate(kl, weights),
        )
        for threshold, size, metric, kl in measured
    ]
    named = {"family": family, "unit": unit, "choices": choices}
    return _record(points, n_units=flags.shape[1], n_prompts=len(model), **named)


def random_frontier(
    measure: Measure,
    model: Float[Tensor, " prompt"],
    draws: Mapping[float, Bool[Tensor, "draw unit"]],
    *,
    family: str,
    unit: str,
    choices: str,
) -> Frontier:
    """Measure random circuits, several of each size: means over draws, 95 % of draws as intervals.

    Args:
        measure: as in `frontier`, like all that is not named here.
        model: likewise.
        draws: flags by threshold (the number of units asked for); one number of units a threshold.
        family: what the figure calls it.
        unit: what sizes count.
        choices: the other choices.

    Raises:
        ValueError: if there is no circuit, the draws of a threshold differ in size, or the ablation
            does not change the metric for sure.
    """
    if not draws:
        raise ValueError(f"family {family!r} has no circuit; give at least one threshold")
    flags = torch.cat(list(draws.values()))
    outcome = measure(torch.cat([torch.zeros_like(flags[:1]), flags]))
    empty = outcome.metric[0]
    whole = check_span(model, empty, resampling(len(model), n_resamples=1000, seed=0)).mean()
    counts = [len(drawn) for drawn in draws.values()]
    shares = ((outcome.metric[1:] - empty).mean(1) / whole).split(counts)
    kls = outcome.kl[1:].mean(1).split(counts)
    points = [
        FrontierPoint(
            threshold=threshold,
            size=_common_size(drawn),
            faithfulness=as_estimate(float(share.mean()), share),
            kl=as_estimate(float(kl.mean()), kl),
        )
        for (threshold, drawn), share, kl in zip(draws.items(), shares, kls, strict=True)
    ]
    named = {"family": family, "unit": unit, "choices": choices, "intervals": "draws"}
    return _record(points, n_units=flags.shape[1], n_prompts=len(model), **named)


def _common_size(drawn: Bool[Tensor, "draw unit"]) -> int:
    sizes = set(drawn.sum(1).tolist())
    if len(sizes) != 1:
        raise ValueError(f"random circuits of one threshold must be of one size, got {sizes}")
    return sizes.pop()


def _record(
    points: list[FrontierPoint], *, n_units: int, n_prompts: int, **named: object
) -> Frontier:
    points = sorted(points, key=lambda point: point.size)
    front = pareto_front(points)
    cpr, cmd = curve_areas(points, n_units=n_units)
    shape = {"points": tuple(points), "front": tuple(front), "knee": knee(front)}
    return Frontier.model_validate(
        {"n_units": n_units, "n_prompts": n_prompts, "cpr": cpr, "cmd": cmd, **shape, **named}
    )
