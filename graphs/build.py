"""From traces to circuit graphs: one prompt, or the mean over several aligned prompts.

Input-dependent: every number comes from a forward pass.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.nodes import Node, NodeTable
from attribution.trace import Trace
from graphs.circuit_graph import CircuitGraph, GraphMetadata

__all__ = ["average_graphs", "build_graph", "merge_nodes"]


def build_graph(trace: Trace) -> CircuitGraph:
    """Turn every nonzero edge of a trace into an edge of a graph.

    Returns:
        Nodes are the union of sources (first, in their order) and targets, one a `Node.id`; where
        both have a record the source's is kept, with its activation. Attributions as in the trace.
    """
    nodes = NodeTable(_union([trace.sources, trace.targets]))
    target, source, values = trace.blocks.nonzero()
    return CircuitGraph(
        nodes=nodes,
        edge_target=_rows(trace.targets, nodes)[target.cpu()],
        edge_source=_rows(trace.sources, nodes)[source.cpu()],
        edge_attribution=values.cpu(),
        metadata=GraphMetadata(
            model=trace.model_name,
            prompt="".join(trace.token_strings),
            tokens=trace.token_strings,
            n_layers=trace.n_layers,
            target=", ".join(node.site for node in trace.targets if node.kind == "output"),
        ),
    )


def average_graphs(graphs: Sequence[CircuitGraph]) -> CircuitGraph:
    """The mean graph of several position-aligned prompts.

        edge[t, s] = sum over graphs of edge_g[t, s] / number of graphs, an absent edge being 0

    Args:
        graphs: of one model, with equally many tokens; nodes with the same id are one node.

    Graphs are added one after another: memory goes with the edges of the mean and of one graph.

    Returns:
        A node's activation is its mean over the graphs in which it occurs. A token node or label
        that differs between prompts shows the alternatives and loses its vocabulary id. An edge
        whose mean is exactly zero is absent.

    Raises:
        ValueError: if there is no graph, or they differ in model, layers, length or target.
    """
    _check_aligned(graphs)
    nodes = merge_nodes([graph.nodes for graph in graphs])
    dtype = reduce(torch.promote_types, (g.edge_attribution.dtype for g in graphs))
    key, total = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64)
    for graph in graphs:
        rows = _rows(graph.nodes, nodes)
        found = rows[graph.edge_target] * len(nodes) + rows[graph.edge_source]
        key, total = _add_edges(key, total, found, graph.edge_attribution.double())
    mean = (total / len(graphs)).to(dtype)
    key, mean = key[mean != 0], mean[mean != 0]
    return CircuitGraph(
        nodes=nodes,
        edge_target=key // len(nodes),
        edge_source=key % len(nodes),
        edge_attribution=mean,
        metadata=_mean_metadata([graph.metadata for graph in graphs]),
    )


def _add_edges(
    key: Int[Tensor, " edge"],
    total: Float[Tensor, " edge"],
    more: Int[Tensor, " new"],
    values: Float[Tensor, " new"],
) -> tuple[Int[Tensor, " either"], Float[Tensor, " either"]]:
    """Totals of the edges of either, sorted by key."""
    both, at = torch.cat([key, more]).unique(return_inverse=True)
    added = torch.zeros(len(both), dtype=total.dtype)
    return both, added.index_add_(0, at, torch.cat([total, values]))


def _union(tables: Iterable[NodeTable]) -> list[Node]:
    """Every node once, in order of first appearance, as the first table that has it records it."""
    first: dict[str, Node] = {}
    for table in tables:
        for node in table:
            first.setdefault(node.id, node)
    return list(first.values())


def _rows(table: NodeTable, nodes: NodeTable) -> Int[Tensor, " row"]:
    """Row in `nodes` of every node of `table`."""
    return torch.tensor([nodes.row(node.id) for node in table], dtype=torch.long)


def merge_nodes(tables: Iterable[NodeTable]) -> NodeTable:
    """Every node of any table once, in order of first appearance, with its mean activation over the
    tables that have it; a token that differs loses its vocabulary id.
    """
    records: dict[str, list[Node]] = {}
    for table in tables:
        for node in table:
            records.setdefault(node.id, []).append(node)
    return NodeTable([_merge(same) for same in records.values()])


def _merge(records: list[Node]) -> Node:
    activation = sum(node.activation for node in records) / len(records)
    feature = records[0].feature if len({node.feature for node in records}) == 1 else -1
    return records[0].model_copy(update={"activation": activation, "feature": feature})


def _check_aligned(graphs: Sequence[CircuitGraph]) -> None:
    if not graphs:
        raise ValueError("average_graphs needs at least one graph, got none; trace a prompt first")
    kinds = [(g.metadata.model, g.metadata.n_layers, len(g.metadata.tokens)) for g in graphs]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                "graphs to average must share model, n_layers and number of tokens; graph 0 has "
                f"{kinds[0]}, graph {index} has {kind}; average each template by itself"
            )
    outputs = [sorted(node.id for node in graph.outputs) for graph in graphs]
    for index, ids in enumerate(outputs):
        if ids != outputs[0]:
            raise ValueError(
                f"graphs to average must share their outputs; graph 0 has {outputs[0]}, graph "
                f"{index} has {ids}; give the target one name for all prompts"
            )


def _mean_metadata(records: list[GraphMetadata]) -> GraphMetadata:
    first = records[0]
    if len(records) == 1:
        return first
    return GraphMetadata(
        model=first.model,
        prompt=f"mean over {len(records)} prompts, the first: {first.prompt}",
        tokens=tuple(
            _merge_tokens(same) for same in zip(*(r.tokens for r in records), strict=True)
        ),
        n_layers=first.n_layers,
        target=first.target,
        notes=first.notes | {"n_prompts": str(len(records))},
    )


def _merge_tokens(alternatives: tuple[str, ...]) -> str:
    distinct = list(dict.fromkeys(alternatives))
    return "|".join(distinct) if len(distinct) <= 2 else f"{distinct[0]}|{distinct[1]}|…"
