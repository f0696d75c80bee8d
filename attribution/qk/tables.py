"""Ranked tables of pairs of sources that add up to what they explain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["PairBlock", "SourcePair", "rank_pairs"]


@dataclass(frozen=True)
class SourcePair:
    """One row of a table: what a source at the query and a source at the key give together.

    Args:
        query: id of the source at the query; in the last row of a table how many pairs it sums.
        key: id of the source at the key, empty in the last row.
        value: signed, in units of the score; `input_dependent * input_invariant`.
        share: of the total (NaN where that is 0).
        input_dependent: activations over norm denominators; NaN in the last row, a sum of products.
        input_invariant: the weights' part, the scale of the scores included; NaN likewise.
    """

    query: str
    key: str
    value: float
    share: float
    input_dependent: float
    input_invariant: float


@dataclass(frozen=True, eq=False)
class PairBlock:
    """Pairs of one query position and one key position, and the names of their sources."""

    queries: list[str]
    keys: list[str]
    input_dependent: Float[Tensor, "query key"]
    input_invariant: Float[Tensor, "query key"]


def rank_pairs(blocks: Sequence[PairBlock], total: float, top: int) -> list[SourcePair]:
    """The `top` strongest pairs of all blocks, strongest first, and one last row for the rest.

    The last row is `total` less the rows above it, so that the values add up to `total`; it holds
    the pairs that are not listed and the rounding of all.

    Raises:
        ValueError: if `top` is negative.
    """
    if top < 0:
        raise ValueError(f"want top >= 0 rows, got {top}")
    rows: list[SourcePair] = []
    for block in blocks:
        values = block.input_dependent * block.input_invariant
        strongest = values.abs().flatten().topk(min(top, values.numel())).indices
        for flat in strongest.tolist():
            q, k = divmod(flat, values.shape[1])
            dependent = float(block.input_dependent[q, k])
            invariant = float(block.input_invariant[q, k])
            value = float(values[q, k])
            rows.append(
                SourcePair(
                    block.queries[q],
                    block.keys[k],
                    value,
                    _share(value, total),
                    dependent,
                    invariant,
                )
            )
    rows = sorted(rows, key=lambda row: -abs(row.value))[:top]
    n_rest = sum(block.input_invariant.numel() for block in blocks) - len(rows)
    rest = math.fsum([total, *(-row.value for row in rows)])
    last = SourcePair(f"{n_rest} other pairs", "", rest, _share(rest, total), math.nan, math.nan)
    return [*rows, last]


def _share(value: float, total: float) -> float:
    return value / total if total else math.nan
