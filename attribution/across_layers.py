"""Edges of one sweep from cross-layer features, which write at several places.

On the way down an edge adds up over these places; at the feature's own layer, the lowest that it
writes to, it is complete. Input-dependent.
"""

from collections.abc import Mapping
from itertools import accumulate

from jaxtyping import Float, Int
from torch import Tensor

from attribution.edges import EdgeBlock
from attribution.written import Written
from circuits.sites import Site

__all__ = ["CrossLayerEdges"]


class CrossLayerEdges:
    """The edges so far, columns position by position and at each position the lowest layer first:
    the features that write at a place are the first ones of each position.

    Args:
        highest: what is written at the first place that the sweep meets: by all these features.
        of: the columns of each of their dictionaries, by where it is placed.
        n_rows: targets of the sweep.
        pos: their position.

    Attributes:
        open: those of `of` whose features write further down.
    """

    def __init__(self, highest: Written, of: Mapping[Site, range], n_rows: int, pos: int) -> None:
        self._pos, self._columns = pos, highest.columns
        self._starts = [0, *accumulate(len(vectors) for vectors in highest.vectors)]
        self._values = highest.constant.new_zeros(n_rows, len(highest.columns))
        self.open = dict(of)

    def add(
        self,
        written: Written,
        carried: Float[Tensor, "carried pos d_model"],
        fresh: Float[Tensor, "fresh d_model"],
        lo: int,
    ) -> None:
        """Add what one place contributes.

        Args:
            written: there, by cross-layer features.
            carried: gradients of the targets from row `lo` on, at every position.
            fresh: those of the rows that follow, at their own position alone.
            lo: the first row.
        """
        hi = lo + len(carried)
        for p, vectors in enumerate(written.vectors):
            here = slice(self._starts[p], self._starts[p] + len(vectors))
            self._values[lo:hi, here].addmm_(carried[:, p], vectors.T)
            if p == self._pos:
                self._values[hi : hi + len(fresh), here].addmm_(fresh, vectors.T)

    def blocks(
        self, of: range, rows: Int[Tensor, " row"], lo: int, n_carried: int
    ) -> list[EdgeBlock]:
        """The edges from one dictionary, as far as they have been added up.

        Args:
            of: its columns.
            rows: rows in the trace of the targets from `lo` on.
            lo: the first target.
            n_carried: how many of them have been carried to other positions.
        """
        mine = (self._columns >= of.start) & (self._columns < of.stop)
        here = mine.clone()
        here[: self._starts[self._pos]] = False
        parts = [(rows[:n_carried], mine, lo), (rows[n_carried:], here, lo + n_carried)]
        return [
            EdgeBlock(some, self._columns[kept], self._values[start : start + len(some)][:, kept])
            for some, kept, start in parts
            if len(some) and kept.any()
        ]
