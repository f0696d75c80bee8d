"""Union, intersection and difference of circuits, as circuits.

Nodes are the same if their ids are: bring circuits to the same positions first (aligned prompts, or
`collapse` by role), and their features to the same dictionaries (`matching.rename_features`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.nodes import NodeTable
from graphs.build import merge_nodes
from graphs.circuit_graph import CircuitGraph

__all__ = ["LinedUp", "difference", "intersection", "line_up", "union"]


@dataclass(frozen=True, eq=False)
class LinedUp:
    """Several circuits over one table of nodes and one list of edges.

    Attributes:
        nodes: of any circuit, with mean activations.
        target: row of `nodes` that each edge of any circuit runs to.
        source: where it comes from.
        node_rows: for each circuit, the place of its nodes in `nodes`.
        edge_rows: for each circuit, the place of its edges in `target`.
        attribution: an absent edge has 0; float64.
    """

    nodes: NodeTable
    target: Int[Tensor, " edge"]
    source: Int[Tensor, " edge"]
    node_rows: tuple[Int[Tensor, " _own"], ...]
    edge_rows: tuple[Int[Tensor, " _own"], ...]
    attribution: Float[Tensor, "circuit edge"]

    @property
    def has_node(self) -> Bool[Tensor, "circuit node"]:
        """Which circuit has which node."""
        return _marks(self.node_rows, len(self.nodes))

    @property
    def has_edge(self) -> Bool[Tensor, "circuit edge"]:
        """Which circuit has which edge."""
        return _marks(self.edge_rows, len(self.target))


def line_up(circuits: Sequence[CircuitGraph]) -> LinedUp:
    """Put circuits over the union of their nodes and edges.

    Raises:
        ValueError: if there is no circuit, or they differ in layers or positions.
    """
    _check_comparable(circuits)
    nodes = merge_nodes([circuit.nodes for circuit in circuits])
    node_rows = tuple(torch.tensor([nodes.row(n.id) for n in c.nodes]) for c in circuits)
    own = [
        rows[c.edge_target] * len(nodes) + rows[c.edge_source]
        for rows, c in zip(node_rows, circuits, strict=True)
    ]
    keys, place = torch.cat(own).unique(return_inverse=True)
    edge_rows = place.split([len(part) for part in own])
    attribution = torch.zeros(len(circuits), len(keys), dtype=torch.float64)
    for values, rows, circuit in zip(attribution, edge_rows, circuits, strict=True):
        values[rows] = circuit.edge_attribution.double()
    target, source = keys // len(nodes), keys % len(nodes)
    return LinedUp(nodes, target, source, node_rows, edge_rows, attribution)


def union(circuits: Sequence[CircuitGraph]) -> CircuitGraph:
    """Every node and edge of any circuit.

    Returns:
        Each edge has the mean attribution over the circuits that have it (its absence from another
        circuit says that it was not chosen, not that it is zero), each node likewise its mean
        activation; metadata of the first, with the note `set`.

    Raises:
        ValueError: see `line_up`.
    """
    lined = line_up(circuits)
    return _circuit(lined, circuits, lined.has_node.any(0), lined.has_edge.any(0), "union")


def intersection(circuits: Sequence[CircuitGraph]) -> CircuitGraph:
    """The nodes and the edges that all circuits have.

    Returns:
        Means over all circuits, as in `union`. A shared node stays where no shared edge touches it.

    Raises:
        ValueError: see `line_up`; or if they have no output in common.
    """
    lined = line_up(circuits)
    outputs = [{node.id for node in circuit.outputs} for circuit in circuits]
    if not set.intersection(*outputs):
        raise ValueError(
            f"circuits to intersect must share an output, got {[sorted(own) for own in outputs]}; "
            "take circuits of one task"
        )
    return _circuit(lined, circuits, lined.has_node.all(0), lined.has_edge.all(0), "intersection")


def difference(circuit: CircuitGraph, other: CircuitGraph) -> CircuitGraph:
    """The nodes and the edges of `circuit` that `other` lacks.

    Returns:
        Attributions and activations of `circuit`. The two ends of every kept edge are there, and so
        are the outputs, also where `other` has them.

    Raises:
        ValueError: see `line_up`.
    """
    lined = line_up([circuit, other])
    keep_edge = ~lined.has_edge[1][lined.edge_rows[0]]
    keep_node = ~lined.has_node[1][lined.node_rows[0]] | circuit.is_kind("output")
    keep_node[circuit.edge_target[keep_edge]] = True
    keep_node[circuit.edge_source[keep_edge]] = True
    return circuit.select(keep_node, keep_edge).with_notes(set="difference of 2 circuits")


def _circuit(
    lined: LinedUp,
    circuits: Sequence[CircuitGraph],
    keep_node: Bool[Tensor, " node"],
    keep_edge: Bool[Tensor, " edge"],
    name: str,
) -> CircuitGraph:
    mean = lined.attribution.sum(0) / lined.has_edge.sum(0)
    dtype = circuits[0].edge_attribution.dtype
    whole = CircuitGraph(
        lined.nodes, lined.target, lined.source, mean.to(dtype), circuits[0].metadata
    )
    return whole.select(keep_node, keep_edge).with_notes(set=f"{name} of {len(circuits)} circuits")


def _marks(rows: Sequence[Int[Tensor, " _own"]], n: int) -> Bool[Tensor, "circuit n"]:
    marks = torch.zeros(len(rows), n, dtype=torch.bool)
    for mark, own in zip(marks, rows, strict=True):
        mark[own] = True
    return marks


def _check_comparable(circuits: Sequence[CircuitGraph]) -> None:
    if not circuits:
        raise ValueError("want at least one circuit, got none")
    shapes = [(c.metadata.n_layers, len(c.metadata.tokens)) for c in circuits]
    by_role = [c.metadata.notes.get("positions") == "roles" for c in circuits]
    for i, circuit in enumerate(circuits):
        if shapes[i] != shapes[0] or by_role[i] != by_role[0]:
            raise ValueError(
                f"circuits must share layers and positions, got (layers, positions) {shapes[0]} "
                f"and {shapes[i]}, by role: {by_role[0]} and {by_role[i]}; bring both to the same "
                "roles with `collapse`"
            )
        if by_role[0] and circuit.metadata.tokens != circuits[0].metadata.tokens:
            raise ValueError(
                f"circuits by role must share their columns, got {circuits[0].metadata.tokens} and "
                f"{circuit.metadata.tokens}; give `collapse` the same columns for both"
            )
