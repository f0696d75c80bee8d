"""Which features deserve a row: those through which most influence reaches the outputs.

A row takes time and memory, and a long prompt has hundreds of thousands. Input-dependent.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.edges import EdgeBlock

__all__ = ["arriving_influence"]


def arriving_influence(
    blocks: Sequence[EdgeBlock],
    weights: Float[Tensor, " output"],
    feature_columns: Int[Tensor, " feature"],
    n_sources: int,
) -> Float[Tensor, " source"]:
    """Influence on the outputs that arrives at every source over the rows that are known.

        arriving[s] = sum over known rows t of arriving[t] * |E[t, s]| / sum over r of |E[t, r]|

    The rule of circuit-tracer, in one pass from the last computed features to the first. Influence
    that arrives at a feature without a row stays there, so the sum over such features is all that
    missing rows could hand on: no source's influence is too low by more.

    Args:
        blocks: the known rows; outputs are targets 0, 1, ..., then one target a feature, in the
            order of `feature_columns`, known or not.
        weights: how much each output counts; not negative.
        feature_columns: the column of each feature, in the order of computation.
        n_sources: number of columns.

    Returns:
        Of each source, in the units of `weights`.
    """
    n_outputs, first = len(weights), int(feature_columns[0]) if len(feature_columns) else n_sources
    weights = weights.double()
    sums = weights.new_zeros(n_outputs + len(feature_columns))
    for block in blocks:
        sums[block.targets] += block.values.abs().sum(1, dtype=torch.float64)
    arriving = weights.new_zeros(n_sources)

    def last_computed(block: EdgeBlock) -> int:
        """The lowest feature column; blocks without features, which hand nothing on, come last."""
        lowest = int(block.sources.min())
        return -lowest if first <= lowest < first + len(feature_columns) else 1

    for block in sorted(blocks, key=last_computed):
        mass = torch.cat([weights, arriving[feature_columns]])[block.targets]
        total = sums[block.targets]
        share = torch.where(total > 0, mass / total, 0.0).to(block.values)
        arriving[block.sources] += (share @ block.values.abs()).double()
    return arriving
