"""Attribution pruning: keep the nodes whose estimated effect on a metric is large.

Sparse feature circuits (Marks et al. 2024) keep nodes with `|effect| > T_N`; attribution patching
(EAP, Syed et al. 2023) ranks in the same way. The effects come from `graphs.feature_effects`: an
estimate by gradients, so measure the faithfulness of the result.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.circuit_graph import CircuitGraph
from graphs.influence import propagate
from graphs.prune_influence import influence_cut
from graphs.prune_notes import note_pruning
from graphs.scorer import is_candidate

__all__ = ["feeding_nodes", "prune_attribution"]


def prune_attribution(
    graph: CircuitGraph,
    *,
    effects: Float[Tensor, " node"],
    threshold: float | None = None,
    fraction: float | None = None,
) -> CircuitGraph:
    """Keep nodes by the size of their effect, then drop what feeds nothing that is kept.

    Args:
        graph: any circuit graph; it is untouched.
        effects: of its nodes in their order, signed, such as the mean over prompts of
            `attribution_effects(...)` or `integrated_effects(...)`.
        threshold: keep `|effect| >= threshold`, in the units of the metric.
        fraction: or: keep the fewest nodes that carry this share of the summed `|effect|`, in
            [0, 1].

    Returns:
        The graph on the kept nodes. Outputs stay; positions and biases, which are the same on every
        prompt and have no effect, stay where they feed something that stays. A node without any
        edge in `graph` stays if its effect is large: it acts through attention patterns, norms or
        an unreplaced MLP, which no edge crosses.

    Raises:
        ValueError: if not exactly one of `threshold` and `fraction` is given or it is out of range,
            or there is not one finite effect a node.
    """
    if (threshold is None) == (fraction is None):
        raise ValueError(
            f"give either threshold or fraction, got threshold={threshold} and fraction={fraction}"
        )
    if len(effects) != graph.n_nodes or not bool(effects.isfinite().all()):
        raise ValueError(
            f"want one finite effect for each of the {graph.n_nodes} nodes, got {len(effects)}, "
            f"{int(effects.isfinite().sum())} of them finite; compute them for graph.nodes"
        )
    size = effects.abs().cpu()
    if fraction is not None:
        cut, told = influence_cut(size, fraction), f"fraction {fraction:g}"
    else:
        assert threshold is not None
        if not threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {threshold}")
        cut, told = threshold, f"threshold {threshold:g}"
    can_go = torch.tensor([is_candidate(node) for node in graph.nodes], dtype=torch.bool)
    large = can_go & (size >= cut)
    edgeless = torch.ones(graph.n_nodes, dtype=torch.bool)
    edgeless[graph.edge_source] = False
    circuit = graph.select(feeding_nodes(graph, ~can_go | large) | (large & edgeless))
    return note_pruning(graph, circuit, f"attribution over nodes ({told})")


def feeding_nodes(graph: CircuitGraph, kept: Bool[Tensor, " node"]) -> Bool[Tensor, " node"]:
    """Which of the kept nodes are outputs or have a path over kept nodes to a kept output."""
    between = kept[graph.edge_source]
    n_paths = propagate(
        (graph.is_kind("output") & kept).double(),
        torch.ones(int(between.sum()), dtype=torch.float64),
        graph.edge_target[between],
        graph.edge_source[between],
    )
    return (graph.is_kind("output") & kept) | (n_paths > 0)
