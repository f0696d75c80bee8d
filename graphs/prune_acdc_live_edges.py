"""ACDC over the edges of a circuit graph, on the live spliced model: see `graphs.live_acdc`."""

from collections.abc import Callable

import torch

from graphs.circuit_graph import CircuitGraph
from graphs.live_acdc import LogitScore, acdc_live_edges, mean_kl
from graphs.live_circuits import LiveCircuits
from graphs.live_edges import Others, live_edges
from graphs.live_runs import LiveRuns
from graphs.prune_attribution import feeding_nodes
from graphs.prune_notes import note_pruning
from graphs.scorer import CircuitRunner, is_candidate

__all__ = ["prune_acdc_live_edges"]


def prune_acdc_live_edges(
    graph: CircuitGraph,
    *,
    runner: CircuitRunner,
    threshold: float,
    score: LogitScore | None = None,
    others: Others = "removed",
    batch: int = 16,
    max_rows: int = 256,
    progress: Callable[[float], None] = lambda _: None,
) -> CircuitGraph:
    """Drop every edge whose removal worsens `score` by less than `threshold`, on the live model.

    Args:
        graph: any circuit graph of the runner's prompts. Its outputs are one, which stands for all
            last-position logits: an edge into one of them stands for those into the others.
        runner: the prompts that choose, and what removed edges carry.
        threshold: in the units of the score (nats for KL).
        score: of last-position logits, lower is better; None for the mean KL to the model.
        others: what becomes of pairs of nodes that are no edge of `graph`: `removed` from the
            start, or `kept` throughout, which is for a graph of all edges: the whole is then the
            model itself, whose attention moves with nodes that no edge of a frozen model joins.
        batch: removals tried at a time. It changes the time, not the answer.
        max_rows: prompts in one forward pass. Likewise.
        progress: called with the share of edges decided.

    Returns:
        The graph on the kept edges. Edges from biases and positions, which are the same on every
        prompt, stay where they feed a node that stays; edges to or from features that these prompts
        do not use do nothing and go.

    Raises:
        ValueError: if `threshold` is negative or `batch` not positive.
    """
    edges, place = live_edges(runner, graph, others=others)
    kept = acdc_live_edges(
        LiveCircuits(edges, LiveRuns(runner, edges.nodes, max_rows)),
        score=mean_kl(runner.full_logits) if score is None else score,
        threshold=threshold,
        batch=batch,
        progress=progress,
    )
    fixed = torch.tensor([not is_candidate(node) for node in graph.nodes], dtype=torch.bool)
    stays = torch.where(place >= 0, kept[place.clamp_min(0)], fixed[graph.edge_source])
    everything = torch.ones(graph.n_nodes, dtype=torch.bool)
    thinned = graph.select(everything, stays)
    circuit = thinned.select(feeding_nodes(thinned, everything))
    told = f"ACDC over edges of the live model (threshold {threshold:g}, other pairs {others})"
    return note_pruning(graph, circuit, told)
