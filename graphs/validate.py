"""What makes nodes and edges a circuit graph; every refusal says what to do."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.nodes import NodeTable

__all__ = ["validate_graph"]


def validate_graph(
    nodes: NodeTable, edge_target: Tensor, edge_source: Tensor, edge_attribution: Tensor
) -> None:
    """Check shapes, rows, values, uniqueness, order and outputs, in a few passes over the edges.

    Raises:
        ValueError: for the first rule that is broken; see `CircuitGraph`.
    """
    _check_columns(edge_target, edge_source, edge_attribution)
    _check_outputs(nodes)
    _check_rows(edge_target, "edge_target", len(nodes))
    _check_rows(edge_source, "edge_source", len(nodes))
    _check_activations(nodes)
    _check_attributions(nodes, edge_target, edge_source, edge_attribution)
    _check_unique(nodes, edge_target, edge_source)
    _check_acyclic(nodes, edge_target, edge_source)


def _check_columns(edge_target: Tensor, edge_source: Tensor, edge_attribution: Tensor) -> None:
    shapes = [tuple(column.shape) for column in (edge_target, edge_source, edge_attribution)]
    if any(len(shape) != 1 or shape != shapes[0] for shape in shapes):
        raise ValueError(
            "edge_target, edge_source and edge_attribution must be vectors of one length, got "
            f"shapes {shapes}; give one entry an edge in each"
        )
    for name, rows in (("edge_target", edge_target), ("edge_source", edge_source)):
        if rows.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, got {rows.dtype}; convert it with .long()")
    if edge_attribution.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"edge_attribution must be float32 or float64, got {edge_attribution.dtype}; "
            "convert it with .float()"
        )


def _check_outputs(nodes: NodeTable) -> None:
    if not any(node.kind == "output" for node in nodes):
        raise ValueError(
            f"a circuit graph needs at least one node of kind 'output', got {len(nodes)} nodes "
            "without one; keep the outputs when you select nodes"
        )


def _check_rows(rows: Int[Tensor, " edge"], column: str, n_nodes: int) -> None:
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < n_nodes):
        raise ValueError(
            f"{column} must hold rows 0..{n_nodes - 1} of the node table, got "
            f"{int(rows.min())}..{int(rows.max())}; renumber the edges with the nodes"
        )


def _check_activations(nodes: NodeTable) -> None:
    finite = torch.tensor([node.activation for node in nodes], dtype=torch.float64).isfinite()
    if not bool(finite.all()):
        node = nodes[int((~finite).nonzero()[0])]
        raise ValueError(
            f"activations must be finite, got {node.activation} on {node.id}; "
            "look for an overflow in the trace"
        )


def _check_attributions(
    nodes: NodeTable,
    edge_target: Int[Tensor, " edge"],
    edge_source: Int[Tensor, " edge"],
    edge_attribution: Float[Tensor, " edge"],
) -> None:
    finite = edge_attribution.isfinite()
    if not bool(finite.all()):
        edge = int((~finite).nonzero()[0])
        source, target = nodes[int(edge_source[edge])], nodes[int(edge_target[edge])]
        raise ValueError(
            f"attributions must be finite, got {float(edge_attribution[edge])} on "
            f"{source.id} -> {target.id}; look for an overflow in the trace"
        )


def _check_unique(
    nodes: NodeTable, edge_target: Int[Tensor, " edge"], edge_source: Int[Tensor, " edge"]
) -> None:
    values, counts = (edge_target * len(nodes) + edge_source).unique(return_counts=True)
    if len(values) != len(edge_target):
        target, source = divmod(int(values[counts > 1][0]), len(nodes))
        raise ValueError(
            f"each edge may occur once, got {nodes[source].id} -> {nodes[target].id} more than "
            "once; add the attributions up first"
        )


def _check_acyclic(
    nodes: NodeTable, edge_target: Int[Tensor, " edge"], edge_source: Int[Tensor, " edge"]
) -> None:
    """Peel off, again and again, the nodes nothing runs to; a cycle is what never peels."""
    while len(edge_target):
        waiting = torch.zeros(len(nodes), dtype=torch.bool).index_fill(0, edge_target, True)
        left = waiting[edge_source]
        if bool(left.all()):
            raise ValueError(
                f"edges must not form a cycle, but {len(edge_target)} of them are on one or behind "
                f"one, such as one into {nodes[int(edge_target[0])].id}; edges run from earlier "
                "to later nodes only"
            )
        edge_target, edge_source = edge_target[left], edge_source[left]
