"""Size against faithfulness: a pruning family's circuits at all its thresholds.

CPR and CMD are the areas of the MIB benchmark (Mueller et al. 2025): under the curve of
faithfulness over the share of units kept, and between that curve and 1.
"""

from collections.abc import Mapping, Sequence
from math import log

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from graphs.proof.estimates import Estimate, check_span, mean_estimate, resampling, share_estimate
from graphs.proof.trial import Measure

__all__ = [
    "Frontier",
    "FrontierPoint",
    "curve_areas",
    "frontier",
    "geometric_sizes",
    "knee",
    "pareto_front",
    "top_ranked",
]


class FrontierPoint(BaseModel):
    """One circuit of a family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(description="the family's own, or the number of units asked for")
    size: int = Field(description="units kept")
    faithfulness: Estimate
    kl: Estimate = Field(description="mean KL(model || circuit), nats")


class Frontier(BaseModel):
    """A family of circuits on one set of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    family: str
    unit: str = Field(description="what sizes count: feature nodes, neurons, heads, ...")
    choices: str = Field(description="the six choices, in one line")
    n_units: int = Field(description="units that could be kept")
    n_prompts: int
    points: tuple[FrontierPoint, ...] = Field(description="by size")
    front: tuple[FrontierPoint, ...] = Field(description="those of `pareto_front`")
    knee: FrontierPoint = Field(description="that of `knee`")
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
        measure: runs circuits on prompts that chose none of them (`Trial.measure`, or the like for
            neurons and heads).
        model: the original model's metric on those prompts.
        circuits: flags by threshold, from a pruning sweep (`Trial.circuit`) or `top_ranked`.
        family: what the figure calls it.
        unit: what sizes count.
        choices: the six choices in one line (`str(trial.choices)`).
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
    points.sort(key=lambda point: point.size)
    cpr, cmd = curve_areas(points, n_units=flags.shape[1])
    front = pareto_front(points)
    return Frontier(
        family=family,
        unit=unit,
        choices=choices,
        n_units=flags.shape[1],
        n_prompts=len(model),
        points=tuple(points),
        front=tuple(front),
        knee=knee(front),
        cpr=cpr,
        cmd=cmd,
    )


def _closeness(point: FrontierPoint) -> float:
    """`1 - |1 - faithfulness|`: too much of the behaviour is as wrong as too little."""
    return 1 - abs(1 - point.faithfulness.value)


def pareto_front(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Points that no other of at most their size beats or equals in closeness to 1, by size.

    Sizes and closeness rise strictly along it.
    """
    front: list[FrontierPoint] = []
    for point in sorted(points, key=lambda p: (p.size, -_closeness(p))):
        if not front or _closeness(point) > _closeness(front[-1]):
            front.append(point)
    return front


def knee(front: Sequence[FrontierPoint]) -> FrontierPoint:
    """The point of a Pareto front that is farthest above the chord between its ends.

    Over the logarithm of size, as drawn, both axes scaled to the ends (Satopaa et al. 2011,
    "Kneedle", without smoothing). The smallest circuit if none lies above the chord; a circuit of
    no unit is left out.

    Raises:
        ValueError: if there is no circuit with a unit.
    """
    drawn = [point for point in front if point.size > 0]
    if not drawn:
        raise ValueError("a knee needs a circuit of at least one unit, got none")
    first, last = drawn[0], drawn[-1]
    if first is last:
        return first
    width = log(last.size / first.size)
    height = _closeness(last) - _closeness(first)

    def above(point: FrontierPoint) -> float:
        across = log(point.size / first.size) / width
        return (_closeness(point) - _closeness(first)) / height - across

    return max(drawn, key=above)


def curve_areas(points: Sequence[FrontierPoint], *, n_units: int) -> tuple[float, float]:
    """CPR and CMD: areas under f, and between f and 1, over the share k of units kept.

        CPR = integral of f(k) dk,  CMD = integral of |1 - f(k)| dk,  k from 0 to 1

    f is linear between points; f(0) = 0, as faithfulness is defined; beyond the largest circuit f
    stays what it is there.

    Example:
        >>> one = Estimate(value=1.0, low=1.0, high=1.0)
        >>> curve_areas([FrontierPoint(threshold=0, size=5, faithfulness=one, kl=one)], n_units=10)
        (0.75, 0.25)
    """
    ranked = sorted(points, key=lambda point: point.size)
    share = [0.0, *(point.size / n_units for point in ranked), 1.0]
    height = [0.0, *(point.faithfulness.value for point in ranked)]
    height.append(height[-1])
    cpr = cmd = 0.0
    for i in range(len(share) - 1):
        width, start, end = share[i + 1] - share[i], height[i], height[i + 1]
        cpr += width * (start + end) / 2
        cmd += width * _mean_size(1 - start, 1 - end)
    return cpr, cmd


def _mean_size(start: float, end: float) -> float:
    """Mean of `|x|` as x runs evenly from `start` to `end`."""
    if start * end >= 0:
        return abs(start + end) / 2
    return (start**2 + end**2) / (2 * (abs(start) + abs(end)))
