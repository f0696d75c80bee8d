"""ACDC over the edges of a circuit graph, in graph space: see `graphs.acdc_edges`."""

import torch
from jaxtyping import Int
from torch import Tensor

from graphs.acdc_edges import OutputScore, acdc_edges, output_gap
from graphs.circuit_graph import CircuitGraph
from graphs.edge_rows import edge_rows
from graphs.frozen_graph import FrozenGraph
from graphs.prune_attribution import feeding_nodes
from graphs.prune_notes import note_pruning
from graphs.scorer import is_candidate

__all__ = ["prune_acdc_edges"]


def prune_acdc_edges(
    graph: CircuitGraph,
    *,
    frozen: FrozenGraph,
    threshold: float,
    score: OutputScore | None = None,
    batch: int = 64,
) -> CircuitGraph:
    """Drop every edge whose removal worsens `score` by less than `threshold`.

    Args:
        graph: any circuit graph of `frozen`'s prompts; the edges that it lacks are removed from the
            start.
        frozen: the same prompts' graph that can be run (`freeze_graph`).
        threshold: in the units of the score.
        score: of the outputs, lower is better; None for the mean distance, in logits, from the
            outputs of `graph` itself. (Judged by the whole model's, a graph that was pruned before
            gains by losing whatever makes up for what it lacks.)
        batch: removals tried in one run. It changes the time, not the answer.

    Returns:
        The graph on the kept edges. Edges from biases and positions, which are the same on every
        prompt, stay where they feed a node that stays.

    Raises:
        ValueError: if `graph` has an edge that `frozen` lacks, `threshold` is negative or `batch`
            not positive.
    """
    place = _places(graph, frozen)
    start = torch.zeros(frozen.n_edges, dtype=torch.bool).index_fill(0, place, True)
    can_change = torch.tensor([is_candidate(node) for node in frozen.nodes], dtype=torch.bool)
    kept = acdc_edges(
        frozen,
        score=output_gap(frozen.run(start[None])[0][0]) if score is None else score,
        threshold=threshold,
        candidates=can_change[frozen.edge_source],
        start=start,
        batch=batch,
    )
    everything = torch.ones(graph.n_nodes, dtype=torch.bool)
    thinned = graph.select(everything, kept[place])
    circuit = thinned.select(feeding_nodes(thinned, everything))
    return note_pruning(graph, circuit, f"ACDC over edges in graph space (threshold {threshold:g})")


def _places(graph: CircuitGraph, frozen: FrozenGraph) -> Int[Tensor, " edge"]:
    """Where the edges of `graph` are among those of `frozen`.

    Raises:
        ValueError: if one is not there.
    """
    known = {node.id for node in frozen.nodes}
    lacking = next((node.id for node in graph.nodes if node.id not in known), None)
    if lacking is None:
        row = torch.tensor([frozen.nodes.row(node.id) for node in graph.nodes], dtype=torch.long)
        n = len(frozen.nodes)
        place = edge_rows(
            frozen.edge_target * n + frozen.edge_source,
            row[graph.edge_target] * n + row[graph.edge_source],
        )
        if not bool((place < 0).any()):
            return place
        edge = int((place < 0).nonzero()[0])
        ends = int(graph.edge_source[edge]), int(graph.edge_target[edge])
        lacking = " -> ".join(graph.nodes[end].id for end in ends)
    raise ValueError(
        f"the frozen graph has no {lacking}; freeze the prompts and the target of the graph itself"
    )
