"""Path pruning: keep the nodes and edges on the strongest paths to the outputs.

Paths come from `attribution.top_paths`: exact, best first, in the frozen model. They say what the
target's value is made of, not what changes it: a strong path that is the same on every prompt
ranks like any other. Measure the faithfulness of the result.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from attribution.effects.paths import Path
from graphs.circuit_graph import CircuitGraph
from graphs.edge_rows import edge_rows
from graphs.prune_notes import note_pruning

__all__ = ["path_scores", "prune_paths"]


def prune_paths(graph: CircuitGraph, *, paths: Sequence[Path], k: int) -> CircuitGraph:
    """Keep the nodes and edges on the `k` paths of the largest magnitude.

    Args:
        graph: any circuit graph that has the paths; it is untouched.
        paths: from `top_paths(trace, target, k=...).paths`, of one trace or of several prompts
            together; at least as many as are wanted.
        k: how many to keep; of equal ones the earlier.

    Returns:
        The graph on those paths; outputs stay even where no path reaches them. A larger `k` keeps
        all that a smaller one keeps.

    Raises:
        ValueError: if `k` is not in [0, len(paths)], or a kept path has an edge the graph lacks.
    """
    if not 0 <= k <= len(paths):
        raise ValueError(f"k must be between 0 and the {len(paths)} paths given, got {k}")
    best = sorted(paths, key=lambda path: -abs(path.value))[:k]
    keep_edge = torch.zeros(graph.n_edges, dtype=torch.bool)
    keep_edge[_edge_rows(graph, best)] = True
    keep_node = graph.is_kind("output")
    keep_node[graph.edge_source[keep_edge]] = True
    keep_node[graph.edge_target[keep_edge]] = True
    circuit = graph.select(keep_node, keep_edge)
    return note_pruning(graph, circuit, f"the {k} strongest of {len(paths)} paths")


def path_scores(paths: Sequence[Path]) -> dict[str, float]:
    """The largest magnitude of a path through each node, by id: the nodes' ranking by paths."""
    scores: dict[str, float] = {}
    for path in paths:
        for node in path.nodes:
            scores[node.id] = max(scores.get(node.id, 0.0), abs(path.value))
    return scores


def _edge_rows(graph: CircuitGraph, paths: Sequence[Path]) -> Int[Tensor, " step"]:
    """The row of the edge of every step of every path.

    Raises:
        ValueError: if the graph lacks one.
    """
    known = {node.id: row for row, node in enumerate(graph.nodes)}
    steps = [(a.id, b.id) for path in paths for a, b in pairwise(path.nodes)]
    ends = [(known.get(target, -1), known.get(source, -1)) for source, target in steps]
    target, source = torch.tensor(ends, dtype=torch.long).reshape(-1, 2).T
    rows = edge_rows(
        graph.edge_target * graph.n_nodes + graph.edge_source,
        torch.where((target < 0) | (source < 0), -1, target * graph.n_nodes + source),
    )
    if bool((rows < 0).any()):
        missing = steps[int((rows < 0).nonzero()[0])]
        raise ValueError(
            f"the graph has no edge {' -> '.join(missing)}; give paths of the traces it was "
            "built from"
        )
    return rows
