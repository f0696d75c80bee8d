"""Influence pruning: the fewest nodes, then edges, that carry a given share of the influence.

The rule of circuit-tracer's `prune_graph`. It reads the graph alone and runs no model, so it says
what is large, not what is needed: measure the faithfulness of the result. Memory over the graph is
about 40 bytes an edge, whatever the number of nodes.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.circuit_graph import CircuitGraph
from graphs.influence import edge_influence, node_influence
from graphs.prune_notes import note_pruning

__all__ = ["influence_cut", "prune_influence"]


def prune_influence(
    graph: CircuitGraph, *, node_threshold: float = 0.8, edge_threshold: float = 0.98
) -> CircuitGraph:
    """Prune in two steps: nodes by influence; then, renormalised, edges by influence.

    1. Keep nodes with influence at least the cut at which the sorted influences first sum to
       `node_threshold` of their total. Tokens and outputs stay whatever their score; positions,
       biases, sublayers and errors must earn their place.
    2. Without the dropped nodes, renormalise, recompute, and cut edges the same way.
    3. Until nothing changes, drop nodes (not tokens, not outputs) that feed nothing, and features
       that nothing feeds.

    Args:
        graph: any circuit graph.
        node_threshold: share of the summed node influence to keep, in [0, 1].
        edge_threshold: share of the summed edge influence to keep, in [0, 1].

    Returns:
        A new graph in the order of `graph`, attributions unchanged, with a note of what was done.

    Raises:
        ValueError: if a threshold is out of range.
    """
    keep_node = _keep_nodes(graph, node_threshold)
    candidate = graph.select(keep_node)
    score = edge_influence(candidate)
    keep_edge = score >= influence_cut(score, edge_threshold)
    circuit = _drop_dangling(candidate, keep_edge)
    return note_pruning(
        graph, circuit, f"influence (nodes {node_threshold:g}, edges {edge_threshold:g})"
    )


def influence_cut(scores: Float[Tensor, " score"], threshold: float) -> float:
    """The score at which the cumulative share, largest first, reaches `threshold`.

    Args:
        scores: non-negative.
        threshold: in [0, 1]; 1 gives the smallest positive score, free of rounding.

    Returns:
        Keep scores `>=` this. 0 where there is no positive score.

    Raises:
        ValueError: if `threshold` is out of range.

    Example:
        >>> influence_cut(torch.tensor([1.0, 5.0, 4.0]), 0.75)
        4.0
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold must be a share in [0, 1], got {threshold}; try 0.8")
    ranked = scores[scores > 0].sort(descending=True).values
    if not len(ranked):
        return 0.0
    if threshold == 1:
        return float(ranked[-1])
    share = ranked.cumsum(0) / ranked.sum()
    index = int(torch.searchsorted(share, threshold))
    return float(ranked[min(index, len(ranked) - 1)])


def _keep_nodes(graph: CircuitGraph, threshold: float) -> Bool[Tensor, " node"]:
    score = node_influence(graph)
    return (score >= influence_cut(score, threshold)) | graph.is_kind("token", "output")


def _drop_dangling(graph: CircuitGraph, keep_edge: Bool[Tensor, " edge"]) -> CircuitGraph:
    """Step 3: repeat until every node but tokens and outputs has its edges."""
    is_fixed = graph.is_kind("token", "output")
    is_feature = graph.is_kind("feature")
    keep_node = torch.ones(graph.n_nodes, dtype=torch.bool)
    while True:
        feeds = torch.zeros_like(keep_node).index_fill(0, graph.edge_source[keep_edge], True)
        fed = torch.zeros_like(keep_node).index_fill(0, graph.edge_target[keep_edge], True)
        kept = keep_node & (is_fixed | feeds) & (fed | ~is_feature)
        if torch.equal(kept, keep_node):
            return graph.select(keep_node, keep_edge)
        keep_node = kept
        keep_edge = keep_edge & kept[graph.edge_target] & kept[graph.edge_source]
