"""Nodes of an attribution graph: what they are, where they sit, and how they are called.

Layer -1 is the embedding, layer `n_layers` the output; position -1 means "all positions" (biases).
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Kind", "Node", "NodeTable"]

Kind = Literal["feature", "token", "position", "error", "sublayer", "bias", "output"]


class Node(BaseModel):
    """A feature at a position, an input, something unexplained, a constant, or an output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    layer: int = Field(description="block index; -1 for inputs, n_layers for outputs")
    site: str = Field(description="mlp, attn, resid_pre, ..., embed or output name")
    pos: int = Field(description="token position; -1 where a node stands for all positions")
    feature: int = Field(
        default=-1, description="feature index in its dictionary; vocabulary id of a token"
    )
    activation: float = Field(
        default=0.0, description="feature activation, or the value of an output"
    )

    @property
    def id(self) -> str:
        """Short unique name, such as `mlp2.345@8` or `error.mlp0@3`."""
        match self.kind:
            case "feature":
                return f"{self.site}{self.layer}.{self.feature}@{self.pos}"
            case "token" | "position":
                return f"{self.kind}@{self.pos}"
            case "bias":
                return f"bias.{self.site}{self.layer}" if self.layer >= 0 else f"bias.{self.site}"
            case "output":
                return f"output.{self.site}"
            case _:
                return f"{self.kind}.{self.site}{self.layer}@{self.pos}"


class NodeTable(Sequence[Node]):
    """An ordered table of nodes, one row a node, with look-up by id."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = tuple(nodes)
        self._row = {node.id: i for i, node in enumerate(self._nodes)}
        if len(self._row) != len(self._nodes):
            raise ValueError(
                "node ids must be unique; two nodes share a kind, site, layer and position"
            )

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, index):
        return self._nodes[index]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def row(self, node_id: str) -> int:
        """Row of the node called `node_id`.

        Raises:
            KeyError: if no node has that id.
        """
        if node_id not in self._row:
            raise KeyError(f"no node is called {node_id!r}; ids look like {self._nodes[-1].id!r}")
        return self._row[node_id]

    def where(self, **columns: object) -> list[int]:
        """Rows whose columns equal the given values, such as `where(kind="feature", layer=2)`."""
        return [
            i
            for i, n in enumerate(self._nodes)
            if all(getattr(n, c) == v for c, v in columns.items())
        ]
