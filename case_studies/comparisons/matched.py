"""Comparison at equal L0: frontiers read off at the same points, differences paired by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

from case_studies.comparisons.runs import Record
from case_studies.seeds import SeedMean, mean_over_seeds

__all__ = ["Difference", "Metric", "at_l0", "differences", "verdict"]

Metric = Literal["fvu", "ce_increase"]


@dataclass(frozen=True)
class Difference:
    """A method's metric minus the reference's at one L0, over seeds; above 0 it is worse.

    Args:
        l0: where both frontiers were read; None for the mean over all levels.
    """

    method: str
    reference: str
    metric: Metric
    l0: float | None
    value: SeedMean


def at_l0(records: Sequence[Record], metric: Metric, l0: float) -> float | None:
    """A metric at `l0`, between neighbouring dictionaries of one method and seed, linear in log L0.

    None outside the range of the dictionaries: nothing is extrapolated.
    """
    ranked = sorted(records, key=lambda record: record.l0)
    if len(ranked) < 2 or not ranked[0].l0 <= l0 <= ranked[-1].l0:
        return None
    x = [log(record.l0) for record in ranked]
    return float(np.interp(log(l0), x, [getattr(record, metric) for record in ranked]))


def differences(
    records: Sequence[Record], method: str, reference: str, metric: Metric
) -> list[Difference]:
    """At every L0 of the reference's levels that both reach with every seed, and their mean."""
    seeds = sorted({record.seed for record in records})

    def run(name: str, seed: int) -> list[Record]:
        return [r for r in records if r.method == name and r.seed == seed]

    found, rows = [], []
    for level in sorted({float(r.level) for r in records if r.method == reference}):
        values = []
        for seed in seeds:
            pair = [at_l0(run(name, seed), metric, level) for name in (method, reference)]
            values.append(None if None in pair else pair[0] - pair[1])  # type: ignore[operator]
        if None not in values:
            rows.append(values)
            found.append(Difference(method, reference, metric, level, mean_over_seeds(values)))
    if rows:
        means = [float(np.mean(column)) for column in zip(*rows, strict=True)]
        found.append(Difference(method, reference, metric, None, mean_over_seeds(means)))
    return found


def verdict(difference: Difference) -> str:
    """What the interval allows to say: worse, better, or a tie."""
    value = difference.value
    if value.low is None or value.high is None:
        return "one seed, no interval"
    if value.low > 0:
        return f"worse than {difference.reference}"
    if value.high < 0:
        return f"better than {difference.reference}"
    return f"tie with {difference.reference}"
