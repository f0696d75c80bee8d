"""Which edges there are between the parts of a transformer, in what order, and their names.

Input-invariant: the shape of the model alone.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

__all__ = ["SIDES", "HeadEdges", "Side"]

Side = Literal["q", "k", "v"]
SIDES: tuple[Side, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class HeadEdges:
    """Writers and readers of the residual stream, and the edges from the one to the other.

    Writers, in the order of computation: the input (token and position embeddings), then of each
    layer its heads and its MLP. Readers: of each layer the queries of its heads, their keys, their
    values, and its MLP; last the output. This is the order of EAP-IG's graph (Hanna et al. 2024).
    With grouped heads every *query* head has a key and a value reader of its own.

    Args:
        n_layers: blocks.
        n_heads: query heads a block.
        parallel: whether the MLP reads the same stream as the heads of its block.
    """

    n_layers: int
    n_heads: int
    parallel: bool = False

    @property
    def n_writers(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_readers(self) -> int:
        return self.n_layers * (3 * self.n_heads + 1) + 1

    @property
    def n_edges(self) -> int:
        """All edges, by formula: with L layers of H heads, and P = 0 (1 for parallel blocks)

        sum_l [3H (1 + l (H+1)) + 1 + l (H+1) + (1-P) H] + 1 + L (H+1)

        Example:
            >>> HeadEdges(12, 12).n_edges
            32491
        """
        L, H = self.n_layers, self.n_heads
        before = L + (H + 1) * L * (L - 1) // 2
        return (3 * H + 1) * before + (0 if self.parallel else L * H) + 1 + L * (H + 1)

    def head(self, layer: int, head: int) -> int:
        """The writer that is a head."""
        return 1 + layer * (self.n_heads + 1) + head

    def mlp(self, layer: int) -> int:
        """The writer that is an MLP."""
        return 1 + layer * (self.n_heads + 1) + self.n_heads

    def head_reader(self, layer: int, head: int, side: Side) -> int:
        """The reader that is one side of a head."""
        return layer * (3 * self.n_heads + 1) + SIDES.index(side) * self.n_heads + head

    def mlp_reader(self, layer: int) -> int:
        """The reader that is an MLP."""
        return layer * (3 * self.n_heads + 1) + 3 * self.n_heads

    @property
    def output(self) -> int:
        """The reader that is the output."""
        return self.n_readers - 1

    def owner(self, reader: int) -> int:
        """The writer a reader belongs to; the output, which writes nothing, is `n_writers`."""
        layer, at = divmod(reader, 3 * self.n_heads + 1)
        if reader == self.output:
            return self.n_writers
        return self.mlp(layer) if at == 3 * self.n_heads else self.head(layer, at % self.n_heads)

    def n_before(self, reader: int) -> int:
        """How many writers come before a reader: they are the first so many."""
        layer, at = divmod(reader, 3 * self.n_heads + 1)
        if reader == self.output:
            return self.n_writers
        sees_heads = at == 3 * self.n_heads and not self.parallel
        return 1 + layer * (self.n_heads + 1) + (self.n_heads if sees_heads else 0)

    @cached_property
    def exists(self) -> Bool[Tensor, "reader writer"]:
        """Flags of the pairs that are edges; shared, so never change it."""
        before = torch.tensor([self.n_before(reader) for reader in range(self.n_readers)])
        return torch.arange(self.n_writers) < before[:, None]

    @cached_property
    def writer_names(self) -> list[str]:
        """`input`, `a5.h2` for a head, `m3` for an MLP."""
        layers = range(self.n_layers)
        blocks = [[*(f"a{i}.h{h}" for h in range(self.n_heads)), f"m{i}"] for i in layers]
        return ["input", *(name for block in blocks for name in block)]

    @cached_property
    def reader_names(self) -> list[str]:
        """`a5.h2<k>` for the keys of a head, `m3` for an MLP, `logits` for the output."""
        names = []
        for layer in range(self.n_layers):
            for side in SIDES:
                names += [f"a{layer}.h{h}<{side}>" for h in range(self.n_heads)]
            names.append(f"m{layer}")
        return [*names, "logits"]

    def name(self, reader: int, writer: int) -> str:
        """The name of an edge, as EAP-IG writes it.

        Raises:
            ValueError: if the writer does not come before the reader.

        Example:
            >>> HeadEdges(12, 12).name(444, 9 * 13 + 10)
            'a9.h9->logits'
        """
        names = f"{self.writer_names[writer]}->{self.reader_names[reader]}"
        if writer >= self.n_before(reader):
            raise ValueError(f"{names} is no edge: the writer must come before the reader")
        return names

    def find(self, name: str) -> tuple[int, int]:
        """Reader and writer of an edge by its name: the inverse of `name`.

        Raises:
            ValueError: if there is no edge of that name.
        """
        writer, _, reader = name.partition("->")
        if writer in self.writer_names and reader in self.reader_names:
            pair = self.reader_names.index(reader), self.writer_names.index(writer)
            if self.exists[pair]:
                return pair
        raise ValueError(
            f"no edge {name!r} in a model of {self.n_layers} layers and {self.n_heads} heads; want "
            "for example 'input->a0.h1<q>', 'm0->logits'"
        )
