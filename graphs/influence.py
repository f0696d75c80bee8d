"""Influence: the share of the outputs that reaches each node and edge over all paths, unsigned.

With `N` the absolute edges, every row (target) divided by its sum, and `w` weights on outputs,

    node influence  I = w N + w N^2 + ...        edge influence[t, s] = N[t, s] (I + w)[t]

This is circuit-tracer's rule (`compute_influence` and `compute_edge_influence`), on sparse edges
and in float64. Attributions are signed and linear; influence is neither.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphs.circuit_graph import CircuitGraph

__all__ = [
    "edge_influence",
    "node_influence",
    "non_error_share",
    "normalise_rows",
    "output_weights",
    "propagate",
    "replacement_score",
    "unexplained_share",
]

_MIN_ROW_SUM = 1e-10


def normalise_rows(
    attribution: Float[Tensor, " edge"], edge_target: Int[Tensor, " edge"], n_nodes: int
) -> Float[Tensor, " edge"]:
    """Divide each edge's size by the summed size of all edges into its target.

    N[t, s] = |A[t, s]| / max(sum over s of |A[t, s]|, 1e-10)
    """
    size = attribution.abs().double()
    total = torch.zeros(n_nodes, dtype=torch.float64).index_add(0, edge_target, size)
    return size / total.clamp_min(_MIN_ROW_SUM)[edge_target]


def propagate(
    weights: Float[Tensor, " node"],
    normalised: Float[Tensor, " edge"],
    edge_target: Int[Tensor, " edge"],
    edge_source: Int[Tensor, " edge"],
) -> Float[Tensor, " node"]:
    """Sum `w N + w N^2 + ...` by vector-matrix products until nothing is left to pass on.

    The edges must be acyclic (a `CircuitGraph`'s are), so that takes at most depth + 1 products.
    """
    influence = torch.zeros_like(weights)
    arriving = weights
    while bool(arriving.any()):
        passed = normalised * arriving[edge_target]
        arriving = torch.zeros_like(weights).index_add(0, edge_source, passed)
        influence = influence + arriving
    return influence


def output_weights(
    graph: CircuitGraph, weights: Float[Tensor, " output"] | None = None
) -> Float[Tensor, " node"]:
    """Spread weights over the output nodes; zero elsewhere.

    Args:
        graph: holds at least one output.
        weights: one an output, in table order, such as logit probabilities; their absolute value
            is used as it is. None gives each output `1 / n_outputs`.

    Raises:
        ValueError: if there is not one weight an output.
    """
    is_output = graph.is_kind("output")
    n_outputs = int(is_output.sum())
    if weights is None:
        weights = torch.full((n_outputs,), 1 / n_outputs)
    if len(weights) != n_outputs:
        raise ValueError(
            f"weights must hold one number for each of the {n_outputs} outputs, got "
            f"{len(weights)}; give them in the order of graph.outputs"
        )
    spread = torch.zeros(graph.n_nodes, dtype=torch.float64)
    spread[is_output] = weights.abs().double()
    return spread


def node_influence(
    graph: CircuitGraph, weights: Float[Tensor, " output"] | None = None
) -> Float[Tensor, " node"]:
    """Share of the outputs that each node accounts for, over all paths.

    Args:
        graph: pruned or not; rows are normalised over the edges it has.
        weights: see `output_weights`.

    Returns:
        Non-negative float64. An output has none unless it feeds another output. Nodes that
        nothing feeds sum to the summed weights; along a path the same share counts at every node.
    """
    normalised = normalise_rows(graph.edge_attribution, graph.edge_target, graph.n_nodes)
    spread = output_weights(graph, weights)
    return propagate(spread, normalised, graph.edge_target, graph.edge_source)


def edge_influence(
    graph: CircuitGraph, weights: Float[Tensor, " output"] | None = None
) -> Float[Tensor, " edge"]:
    """Share of the outputs that passes along each edge, float64: `N[t, s] (I + w)[t]`."""
    normalised = normalise_rows(graph.edge_attribution, graph.edge_target, graph.n_nodes)
    spread = output_weights(graph, weights)
    influence = propagate(spread, normalised, graph.edge_target, graph.edge_source)
    return normalised * (influence + spread)[graph.edge_target]


def replacement_score(
    graph: CircuitGraph, weights: Float[Tensor, " output"] | None = None
) -> float:
    """Influence of tokens over that of tokens and unexplained nodes (circuit-tracer's score).

        score = I(tokens) / (I(tokens) + I(errors and unreplaced sublayers))

    An unreplaced sublayer is what a dictionary without features would leave as its error, so it
    counts as one; where every sublayer has a dictionary this is circuit-tracer's number. Positions
    and biases count on neither side.

    Raises:
        ValueError: if neither tokens nor unexplained nodes reach an output.
    """
    influence = node_influence(graph, weights)
    tokens = float(influence[graph.is_kind("token")].sum())
    unexplained = float(influence[_unexplained(graph)].sum())
    if tokens + unexplained == 0:
        raise ValueError(
            "the replacement score needs tokens, errors or sublayers that reach an output, got "
            f"none in {graph!r}; score the graph before pruning"
        )
    return tokens / (tokens + unexplained)


def non_error_share(graph: CircuitGraph, weights: Float[Tensor, " output"] | None = None) -> float:
    """Influence-weighted share of incoming edges that is explained (the attribution graph's
    completeness score).

        score = sum over t of (I + w)[t] (1 - sum over unexplained s of N[t, s]) / sum (I + w)

    As in circuit-tracer the sum runs over all nodes; one without incoming edges counts as
    explained.

    Raises:
        ValueError: if all weights are zero.
    """
    normalised = normalise_rows(graph.edge_attribution, graph.edge_target, graph.n_nodes)
    spread = output_weights(graph, weights)
    mass = propagate(spread, normalised, graph.edge_target, graph.edge_source) + spread
    if float(mass.sum()) == 0:
        raise ValueError("output weights must not all be zero; leave them out for equal weights")
    from_error = normalised * _unexplained(graph)[graph.edge_source]
    error_share = torch.zeros_like(mass).index_add(0, graph.edge_target, from_error)
    return float(((1 - error_share) * mass).sum() / mass.sum())


def unexplained_share(
    graph: CircuitGraph, weights: Float[Tensor, " output"] | None = None
) -> float:
    """Share of the outputs that ends in errors and unreplaced sublayers: their summed influence."""
    return float(node_influence(graph, weights)[_unexplained(graph)].sum())


def _unexplained(graph: CircuitGraph) -> Bool[Tensor, " node"]:
    return graph.is_kind("error", "sublayer")
