"""How much two circuits have in common: nodes, edges, and weights of edges."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attribution.nodes import Node
from graphs.circuit_graph import CircuitGraph
from graphs.task_circuits.sets import LinedUp, line_up

__all__ = ["CircuitOverlap", "Share", "circuit_overlap", "shares_by"]

_Key = TypeVar("_Key", str, int, tuple[int, int])


class Share(BaseModel):
    """What two circuits have in common, of one sort."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_a: int = Field(description="in the first circuit")
    n_b: int = Field(description="in the second")
    n_shared: int = Field(description="in both")

    @property
    def jaccard(self) -> float:
        """Shared over those of either; 0 where neither has any."""
        either = self.n_a + self.n_b - self.n_shared
        return self.n_shared / either if either else 0.0


class CircuitOverlap(BaseModel):
    """Two circuits compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: Share = Field(description="all nodes but outputs, which both have")
    edges: Share
    node_jaccard: float
    edge_jaccard: float
    weighted_jaccard: float = Field(
        description="sum over edges of min(|a|, |b|) over that of max(|a|, |b|); an absent edge 0"
    )
    sign_agreement: float | None = Field(
        description="share of the shared edges with one sign in both; none where none is shared"
    )
    by_kind: dict[str, Share]
    by_layer: dict[int, Share] = Field(description="features alone")


def circuit_overlap(a: CircuitGraph, b: CircuitGraph) -> CircuitOverlap:
    """Compare two circuits whose nodes have the same names.

        Jaccard = |A ∩ B| / |A ∪ B|
        weighted Jaccard = sum over edges of min(|a_e|, |b_e|) / sum of max(|a_e|, |b_e|)

    Attributions are compared as they are, so two prompts with targets of different sizes differ.

    Raises:
        ValueError: see `sets.line_up`.
    """
    lined = line_up([a, b])
    inner = torch.tensor([node.kind != "output" for node in lined.nodes])
    nodes, edges = _count(lined.has_node[:, inner]), _count(lined.has_edge)
    size = lined.attribution.abs()
    largest = float(size.amax(0).sum())
    both = lined.has_edge.all(0)
    agree = (lined.attribution[0] * lined.attribution[1])[both] > 0
    return CircuitOverlap(
        nodes=nodes,
        edges=edges,
        node_jaccard=nodes.jaccard,
        edge_jaccard=edges.jaccard,
        weighted_jaccard=float(size.amin(0).sum()) / largest if largest else 0.0,
        sign_agreement=float(agree.double().mean()) if len(agree) else None,
        by_kind=shares_by(lined, lambda n: None if n.kind == "output" else n.kind),
        by_layer=shares_by(lined, lambda n: n.layer if n.kind == "feature" else None),
    )


def shares_by(lined: LinedUp, key: Callable[[Node], _Key | None]) -> dict[_Key, Share]:
    """Count the nodes of two circuits sort by sort.

    Args:
        lined: two circuits.
        key: the sort of a node; None leaves it out.
    """
    rows: dict[_Key, list[int]] = {}
    for row, node in enumerate(lined.nodes):
        if (sort := key(node)) is not None:
            rows.setdefault(sort, []).append(row)
    has_node = lined.has_node
    return {sort: _count(has_node[:, own]) for sort, own in sorted(rows.items())}


def _count(has: Bool[Tensor, "2 unit"]) -> Share:
    n_a, n_b = has.sum(1).tolist()
    return Share(n_a=n_a, n_b=n_b, n_shared=int(has.all(0).sum()))
