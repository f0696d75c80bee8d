"""The shape of a frontier: its Pareto front, its knee, how many units reach a level, its areas.

CPR and CMD are the areas of the MIB benchmark (Mueller et al. 2025): under the curve of
faithfulness over the share of units kept, and between that curve and 1.
"""

from collections.abc import Sequence
from math import log

from pydantic import BaseModel, ConfigDict, Field

from graphs.proof.estimates import Estimate

__all__ = ["FrontierPoint", "curve_areas", "knee", "pareto_front", "smallest_reaching"]


class FrontierPoint(BaseModel):
    """One circuit of a family, or the random ones of one size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(description="the family's own, or the number of units asked for")
    size: int = Field(description="units kept")
    faithfulness: Estimate
    kl: Estimate = Field(description="mean KL(model || circuit), nats")


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


def knee(front: Sequence[FrontierPoint]) -> FrontierPoint | None:
    """The point of a Pareto front that is farthest above the chord between its ends.

    Over the logarithm of size, as drawn, both axes scaled to the ends (Satopaa et al. 2011,
    "Kneedle", without smoothing). None where no point lies above the chord: most of the behaviour
    then takes most of the units, and no smaller circuit stands out. A circuit of no unit is left
    out.

    Raises:
        ValueError: if there is no circuit with a unit.
    """
    drawn = [point for point in front if point.size > 0]
    if not drawn:
        raise ValueError("a knee needs a circuit of at least one unit, got none")
    first, last = drawn[0], drawn[-1]

    def above(point: FrontierPoint) -> float:
        across = log(point.size / first.size) / log(last.size / first.size)
        height = _closeness(last) - _closeness(first)
        return (_closeness(point) - _closeness(first)) / height - across

    best = max(drawn[1:-1], key=above, default=None)
    return best if best is not None and above(best) > 0 else None


def smallest_reaching(points: Sequence[FrontierPoint], level: float) -> FrontierPoint | None:
    """The smallest circuit whose faithfulness is within `1 - level` of 1; None if there is none.

    Raises:
        ValueError: if `level` is not in (0, 1].

    Example:
        >>> most = Estimate(value=0.85, low=0.8, high=0.9)
        >>> point = FrontierPoint(threshold=0, size=5, faithfulness=most, kl=most)
        >>> smallest_reaching([point], 0.8).size, smallest_reaching([point], 0.9)
        (5, None)
    """
    if not 0 < level <= 1:
        raise ValueError(f"level must be a share in (0, 1], got {level}; try 0.8")
    reaching = (point for point in points if _closeness(point) >= level)
    return min(reaching, key=lambda point: point.size, default=None)


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
