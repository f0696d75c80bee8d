"""Influence between any nodes of a trace over all paths, in closed form: signed, and absolute.

Signed influence is a total effect in the target's units and adds up; absolute influence is a share
and never cancels. Input-dependent.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.edges import Edges
from attribution.effects.flow import Flow, build_flow, map_edges, pull, push
from attribution.nodes import NodeTable
from attribution.trace import Trace

__all__ = [
    "Nodes",
    "absolute_influence",
    "leaf_sources",
    "linear_flow",
    "rows_of",
    "signed_influence",
]

Nodes = Sequence[int | str]
"""Rows of a node table (as `NodeTable.where` gives them) or node ids."""

_MIN_ROW_SUM = 1e-10
_PASS_THROUGH_TOLERANCE = 1e-3


def signed_influence(
    trace: Trace, *, targets: Nodes | None = None, sources: Nodes | None = None
) -> Float[Tensor, "chosen_target chosen_source"]:
    """Total effect of sources on targets along all paths of the frozen model.

        total = E (I - N)^-1,   N[t, s] = E[t, s] / a_t on the rows of active features

    A feature passes its input on with slope 1, so a path through features t_1, ..., t_n counts
    `E[o, t_n] / a_n ... E[t_1, s]`, and the sum is input-times-gradient of the replacement model
    with attention and norms frozen (Dunefsky et al. 2024, appendix D). The totals of the
    `leaf_sources` sum to the target's value.

    Args:
        trace: with a row for every feature that shall pass anything on; one without is a leaf.
        targets: rows of `trace.targets`, or ids; None takes the outputs.
        sources: rows of `trace.sources`, or ids; None takes all.

    Returns:
        Signed, in the targets' units; `total / a_s` is the effect of one unit of activation. It is
        0 from a node to itself.

    Raises:
        ValueError: if a node does not exist, or a feature's activation is not its pre-activation.
    """
    return _between(trace, linear_flow(trace), targets, sources)


def absolute_influence(
    trace: Trace, *, targets: Nodes | None = None, sources: Nodes | None = None
) -> Float[Tensor, "chosen_target chosen_source"]:
    """Share of targets that reaches sources over all paths, unsigned (circuit-tracer's rule).

        total = N + N^2 + ...,   N[t, s] = |E[t, s]| / max(sum over s of |E[t, s]|, 1e-10)

    `w @ total` with one weight an output is the node influence of `compute_influence`, and of
    `graphs.node_influence`. As there, the rows are those of the trace: with positions and biases.

    Args:
        trace: see `signed_influence`.
        targets: rows of `trace.targets`, or ids; None takes the outputs.
        sources: rows of `trace.sources`, or ids; None takes all.

    Returns:
        Non-negative; the shares of the `leaf_sources` sum to 1 for each target that has edges.

    Raises:
        ValueError: if a node does not exist.
    """
    size = _row_sizes(trace.blocks).clamp_min(_MIN_ROW_SUM)
    shares = map_edges(trace.blocks, lambda values, rows: values.abs() / size[rows, None])
    gain = size.new_ones(len(trace.sources))
    flow = build_flow(shares, trace.targets, trace.sources, gain)
    return _between(trace, flow, targets, sources)


def leaf_sources(trace: Trace) -> list[int]:
    """Rows of `trace.sources` that have no row of their own: all but features with edges into them.

    Every path from input to target begins at one of them.
    """
    explained = {node.id for node in trace.targets}
    return [i for i, node in enumerate(trace.sources) if node.id not in explained]


def linear_flow(trace: Trace) -> Flow:
    """The flow of the linear model: a feature's gain is one over its activation.

    Raises:
        ValueError: if a feature's activation is not its pre-activation: its slope is then not
            known to be 1.
    """
    row_of = {node.id: i for i, node in enumerate(trace.targets)}
    values, size = trace.target_values, trace.blocks.row_maxima()
    activations = values.new_ones(len(trace.sources))
    for column, node in enumerate(trace.sources):
        if node.kind != "feature" or node.id not in row_of:
            continue
        row = row_of[node.id]
        scale = max(abs(node.activation), float(size[row]))
        if abs(float(values[row]) - node.activation) > _PASS_THROUGH_TOLERANCE * scale:
            raise ValueError(
                f"{node.id} has activation {node.activation:.6g} but pre-activation "
                f"{float(values[row]):.6g}; paths through features need activations that equal "
                "pre-activations where they are not 0 (ReLU, JumpReLU, TopK)"
            )
        activations[column] = node.activation
    return build_flow(trace.blocks, trace.targets, trace.sources, 1 / activations)


def rows_of(table: NodeTable, nodes: Nodes) -> list[int]:
    """Rows of the nodes that are given by row or id.

    Raises:
        ValueError: if one does not exist, or is given twice.
    """
    rows = []
    for node in [nodes] if isinstance(nodes, str) else nodes:
        try:
            rows.append(table.row(node) if isinstance(node, str) else range(len(table))[node])
        except (KeyError, IndexError):
            raise ValueError(
                f"no node {node!r} among {len(table)}; give rows of the table or ids such as "
                f"{table[0].id!r}"
            ) from None
    if len(set(rows)) < len(rows):
        raise ValueError(f"give each node once, got {[table[row].id for row in rows]}")
    return rows


def _between(
    trace: Trace, flow: Flow, targets: Nodes | None, sources: Nodes | None
) -> Float[Tensor, "chosen_target chosen_source"]:
    """Sums over all paths between two sets, from the smaller one."""
    outputs = trace.targets.where(kind="output")
    rows = outputs if targets is None else rows_of(trace.targets, targets)
    if sources is None:
        return pull(flow, rows)
    columns = rows_of(trace.sources, sources)
    if len(rows) <= len(columns):
        return pull(flow, rows)[:, columns]
    start = trace.target_values.new_zeros(len(trace.sources), len(columns))
    start[columns, range(len(columns))] = 1.0
    return push(flow, start)[rows]


def _row_sizes(edges: Edges) -> Float[Tensor, " target"]:
    """Sum of magnitudes of each row."""
    values = edges.blocks[0].values
    ones = torch.ones(edges.shape[1], 1, dtype=values.dtype, device=values.device)
    return map_edges(edges, lambda values, _: values.abs()).right(ones)[:, 0]
