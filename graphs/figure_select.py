"""What of a circuit graph a figure shows: the most influential part, and how much is lost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.circuit_graph import CircuitGraph
from graphs.figure_text import node_name, shorten
from graphs.influence import edge_influence, node_influence
from graphs.node_notes import NodeNotes

__all__ = ["Shown", "choose_labels", "select_shown"]

_N_LABELS = 16
_N_LABELS_PER_CELL = 5
_LABEL_WIDTH = 18
_LABELLED_KINDS = ("feature", "sublayer", "bias")


@dataclass(frozen=True)
class Shown:
    """The part of a graph that is drawn, with scores computed on the whole of it."""

    graph: CircuitGraph
    node_influence: Float[Tensor, " node"]
    edge_influence: Float[Tensor, " edge"]
    caption: str


def select_shown(
    graph: CircuitGraph, max_nodes: int, max_edges: int, first: tuple[str, ...] = ()
) -> Shown:
    """Keep the outputs, then the most influential nodes, then the edges between them.

    Args:
        graph: untouched.
        max_nodes: at most so many nodes, at least the outputs.
        max_edges: at most so many edges.
        first: kinds that come after the outputs and before all others, by influence.

    Raises:
        ValueError: if `max_nodes` leaves no room for the outputs, or `max_edges` is negative.
    """
    n_outputs = len(graph.outputs)
    if max_nodes < n_outputs or max_edges < 0:
        raise ValueError(
            f"max_nodes must be at least the {n_outputs} outputs and max_edges at least 0, got "
            f"{max_nodes} and {max_edges}; raise them"
        )
    of_node, of_edge = node_influence(graph), edge_influence(graph)
    rank = 2 * graph.is_kind("output").double() + graph.is_kind(*first)
    keep_node = _top(of_node + rank * (1 + of_node.max()), max_nodes)
    between = keep_node[graph.edge_target] & keep_node[graph.edge_source]
    keep_edge = between & _top(torch.where(between, of_edge, -1.0), max_edges)
    return Shown(
        graph=graph.select(keep_node, keep_edge),
        node_influence=of_node[keep_node],
        edge_influence=of_edge[keep_edge],
        caption=_caption(graph, keep_node, keep_edge, of_node, of_edge),
    )


def choose_labels(shown: Shown, notes: Mapping[str, NodeNotes]) -> dict[int, str]:
    """Rows that get a text label: outputs, then the strongest features, sublayers and biases."""
    nodes = shown.graph.nodes
    ranked = shown.node_influence.argsort(descending=True, stable=True).tolist()
    rows = [row for row in range(len(nodes)) if nodes[row].kind == "output"]
    n_in_cell: Counter[tuple[int, int]] = Counter()
    strongest = [row for row in ranked if nodes[row].kind in _LABELLED_KINDS]
    for row in strongest:
        cell = nodes[row].layer, nodes[row].pos
        if len(rows) < _N_LABELS and n_in_cell[cell] < _N_LABELS_PER_CELL:
            n_in_cell[cell] += 1
            rows.append(row)
    return {
        row: shorten(node_name(nodes[row], notes.get(nodes[row].id)), _LABEL_WIDTH) for row in rows
    }


def _top(scores: Float[Tensor, " item"], n_items: int) -> Bool[Tensor, " item"]:
    """Mark the `n_items` highest scores; ties fall to the earlier."""
    ranked = scores.argsort(descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, ranked[:n_items], True)


def _caption(
    graph: CircuitGraph,
    keep_node: Bool[Tensor, " node"],
    keep_edge: Bool[Tensor, " edge"],
    of_node: Float[Tensor, " node"],
    of_edge: Float[Tensor, " edge"],
) -> str:
    """Say what is drawn, what is not, and how much ends in nodes nobody explained."""
    unexplained = float(of_node[graph.is_kind("error", "sublayer")].sum())
    share = f"{unexplained:.1%} of the influence comes from errors and sublayers without dictionary"
    parts = [_count("node", keep_node, of_node), _count("edge", keep_edge, of_edge)]
    before = graph.metadata.notes.get("unexplained_before")
    if before is not None:
        parts.append(f"pruned from {graph.metadata.notes['pruned_from']}")
        share += f", {before} before pruning"
    return "; ".join([*parts, share])


def _count(word: str, keep: Bool[Tensor, " item"], influence: Float[Tensor, " item"]) -> str:
    n_kept, n_all = int(keep.sum()), len(keep)
    if n_kept == n_all:
        return f"all {n_all:,} {word}s shown"
    total = float(influence.sum())
    share = float(influence[keep].sum()) / total if total > 0 else 1.0
    return f"showing {n_kept:,} of {n_all:,} {word}s, {share:.1%} of {word} influence"
