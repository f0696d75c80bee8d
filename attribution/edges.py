"""Edges `[target, source]` as dense blocks: causal graphs are mostly zeros, and these are not kept.

A block is a set of targets against a set of sources; pairs in no block have no edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["EdgeBlock", "Edges"]


@dataclass(frozen=True, eq=False)
class EdgeBlock:
    """All edges from some sources to some targets."""

    targets: Int[Tensor, " n_targets"]
    sources: Int[Tensor, " n_sources"]
    values: Float[Tensor, "n_targets n_sources"]


@dataclass(frozen=True, eq=False)
class Edges:
    """A sparse matrix `[target, source]` of disjoint dense blocks.

    Attributes:
        shape: number of targets, number of sources.
        blocks: no pair of target and source is in two of them; at least one block.
    """

    shape: tuple[int, int]
    blocks: tuple[EdgeBlock, ...]

    @classmethod
    def from_dense(cls, matrix: Float[Tensor, "target source"]) -> "Edges":
        """The same edges in one block."""
        n_targets, n_sources = matrix.shape
        rows = torch.arange(n_targets, device=matrix.device)
        columns = torch.arange(n_sources, device=matrix.device)
        return cls((n_targets, n_sources), (EdgeBlock(rows, columns, matrix),))

    @property
    def n_stored(self) -> int:
        """How many numbers are kept."""
        return sum(block.values.numel() for block in self.blocks)

    def dense(self) -> Float[Tensor, "target source"]:
        """The whole matrix: `n_targets * n_sources` numbers."""
        matrix = self.blocks[0].values.new_zeros(self.shape)
        for block in self.blocks:
            matrix[block.targets[:, None], block.sources] = block.values
        return matrix

    def nonzero(
        self,
    ) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"], Float[Tensor, " edge"]]:
        """Target, source and value of every edge that is not zero, row by row."""
        parts = []
        for block in self.blocks:
            target, source = block.values.nonzero(as_tuple=True)
            values = block.values[target, source]
            parts.append((block.targets[target], block.sources[source], values))
        targets, sources, values = (torch.cat(column) for column in zip(*parts, strict=True))
        order = (targets * self.shape[1] + sources).argsort()
        return targets[order], sources[order], values[order]

    def rows(self, targets: Sequence[int]) -> Float[Tensor, "row source"]:
        """Some rows of the matrix, dense, in the order asked for."""
        values = self.blocks[0].values
        asked = torch.tensor(targets, dtype=torch.long, device=values.device) % self.shape[0]
        wanted, place = asked.unique(return_inverse=True)
        at = torch.full((self.shape[0],), -1, device=values.device)
        at[wanted] = torch.arange(len(wanted), device=values.device)
        matrix = values.new_zeros(len(wanted), self.shape[1])
        for block in self.blocks:
            row = at[block.targets]
            mine = row >= 0
            if mine.any():
                matrix[row[mine][:, None], block.sources] = block.values[mine]
        return matrix[place]

    def row(self, target: int) -> Float[Tensor, " source"]:
        """One row of the matrix, dense."""
        return self.rows([target])[0]

    def left(self, weights: Float[Tensor, "*rest target"]) -> Float[Tensor, "*rest source"]:
        """`weights @ edges`: what targets weigh, handed to their sources."""
        out = weights.new_zeros(*weights.shape[:-1], self.shape[1])
        for block in self.blocks:
            out[..., block.sources] += weights[..., block.targets] @ block.values.to(weights)
        return out

    def right(self, weights: Float[Tensor, "source n"]) -> Float[Tensor, "target n"]:
        """`edges @ weights`: what sources weigh, summed at their targets."""
        out = weights.new_zeros(self.shape[0], weights.shape[1])
        for block in self.blocks:
            out[block.targets] += block.values.to(weights) @ weights[block.sources]
        return out

    def row_sums(self) -> Float[Tensor, " target"]:
        """What each row sums to, in float64."""
        out = torch.zeros(self.shape[0], dtype=torch.float64, device=self.blocks[0].values.device)
        for block in self.blocks:
            out[block.targets] += block.values.sum(1, dtype=torch.float64)
        return out

    def row_maxima(self) -> Float[Tensor, " target"]:
        """The largest magnitude in each row."""
        values = self.blocks[0].values
        out = values.new_zeros(self.shape[0])
        for block in self.blocks:
            if block.values.shape[1]:
                largest = block.values.abs().amax(1)
                out[block.targets] = out[block.targets].maximum(largest)
        return out
