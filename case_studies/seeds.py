"""Means over training seeds with 95 % intervals: few runs, so Student's t."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, cos, isfinite, pi, sin, sqrt
from statistics import fmean, stdev

__all__ = ["SeedMean", "mean_over_seeds", "student_quantile"]


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds; `low` and `high` are None for one seed, which has no interval."""

    mean: float
    low: float | None
    high: float | None
    n_seeds: int


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Mean of one value a seed, and the 95 % interval `mean ± t s / sqrt(n)`.

    Seeds are what varies: the interval says nothing of other text or other settings.

    Raises:
        ValueError: if there is no value, or one is not finite.

    Example:
        >>> mean_over_seeds([1.0, 2.0, 3.0]).mean
        2.0
    """
    if not values or not all(isfinite(value) for value in values):
        raise ValueError(f"want at least one value, all finite, got {list(values)}")
    mean = fmean(values)
    if len(values) == 1:
        return SeedMean(mean, None, None, 1)
    half = student_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))
    return SeedMean(mean, mean - half, mean + half, len(values))


def student_quantile(degrees: int, probability: float = 0.95) -> float:
    """The t with `P(|T| < t) = probability` for Student's distribution, by bisection.

    Raises:
        ValueError: if there is no degree of freedom or no such probability.

    Example:
        >>> round(student_quantile(2), 3)
        4.303
    """
    if degrees < 1 or not 0 < probability < 1:
        raise ValueError(
            f"want at least one degree of freedom and a probability in (0, 1), got {degrees} and "
            f"{probability}"
        )
    low, high = 0.0, 1.0
    while _student_probability(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if _student_probability(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def _student_probability(t: float, degrees: int) -> float:
    """P(|T| < t), Abramowitz and Stegun 26.7.3 and 26.7.4: a finite sum in the angle."""
    angle = atan(t / sqrt(degrees))
    term, total = (cos(angle), cos(angle)) if degrees % 2 else (1.0, 1.0)
    for k in range(3 if degrees % 2 else 2, degrees - 1, 2):
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    if degrees == 1:
        return 2 * angle / pi
    return 2 / pi * (angle + sin(angle) * total) if degrees % 2 else sin(angle) * total
