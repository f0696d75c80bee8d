"""What edges foretell of an ablation: directly, and along all paths of the frozen model.

Input-dependent: one prompt's trace.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.effects.influence import linear_flow
from attribution.engine import attribute_sources
from attribution.nodes import Node
from attribution.targets import Target
from attribution.trace import Trace
from circuits.patching import NodeValues
from circuits.spliced import FrozenState, SplicedModel
from graphs.frozen_graph import FrozenGraph

__all__ = [
    "arriving_effects",
    "members",
    "nonlinear_effects",
    "predict_ablations",
    "total_effects",
]


def predict_ablations(
    spliced: SplicedModel,
    state: FrozenState,
    other: NodeValues,
    trace: Trace,
    target: Target,
    groups: Sequence[Sequence[Node]],
) -> tuple[Float[Tensor, "group target"], Float[Tensor, "group target"]]:
    """What the trace says of ablating each group alone: along direct edges, and over all paths.

    Args:
        spliced: the model of the trace.
        state: its prompt, held.
        other: what ablated nodes carry.
        trace: with a row for every active feature.
        target: what the trace was made with.
        groups: nodes that the prompt does not use are left out.
    """
    inside, ratios = members(trace, groups), _ratios(spliced, state, other, trace.sources)
    elsewhere = attribute_sources(spliced, state, other, target)
    direct = arriving_effects(trace, elsewhere, ratios, inside)
    return direct, total_effects(trace, direct, inside)


def members(trace: Trace, groups: Sequence[Sequence[Node]]) -> Bool[Tensor, "group source"]:
    """Which sources of the trace are in which group; nodes that are no source are in none."""
    row = {node.id: i for i, node in enumerate(trace.sources)}
    flags = torch.zeros(len(groups), len(row), dtype=torch.bool, device=trace.target_values.device)
    for i, group in enumerate(groups):
        flags[i, [row[node.id] for node in group if node.id in row]] = True
    return flags


def arriving_effects(
    trace: Trace,
    other: Trace,
    ratio: Float[Tensor, " source"],
    inside: Bool[Tensor, "group source"],
) -> Float[Tensor, "group target"]:
    """What ablating each group changes at every target along direct edges.

        sum over s in the group of  E[t, s] (a'_s / a_s - 1)  for features,  E'[t, s] - E[t, s] else

    Args:
        trace: of the prompt.
        other: of the same prompt with other values of tokens, errors and held MLPs
            (`attribute_sources`).
        ratio: `a'_s / a_s` of features; not read for others.
        inside: the groups.
    """
    is_feature = torch.tensor([node.kind == "feature" for node in trace.sources])
    is_feature = is_feature.to(inside.device)
    weight = inside.to(trace.target_values)
    features = trace.blocks.right((weight * is_feature * (ratio - 1)).T)
    vectors = (weight * ~is_feature).T
    return (features + other.blocks.right(vectors) - trace.blocks.right(vectors)).T


def total_effects(
    trace: Trace,
    arriving: Float[Tensor, "group target"],
    inside: Bool[Tensor, "group source"],
) -> Float[Tensor, "group target"]:
    """What it changes along all paths, every feature passing its input on with slope 1.

        change_f = (arriving_f + sum over s of E[f, s] change_s / a_s)   and 0 for f in the group

    from the lowest dictionary up: a feature of the group is held, so nothing passes through it. For
    a group of one node this is minus its signed influence, if it is ablated to zero.

    Raises:
        ValueError: if a feature's activation is not its pre-activation (`linear_flow`).
    """
    flow = linear_flow(trace)
    row_of = {node.id: i for i, node in enumerate(trace.targets)}
    relative = arriving.new_zeros(len(trace.sources), len(arriving))
    for level in flow.levels:
        rows = [row_of[trace.sources[column].id] for column in level.columns.tolist()]
        change = arriving[:, rows].T + level.edges.right(relative)
        free = ~inside[:, level.columns].T
        relative[level.columns] = level.gain[:, None] * change * free
    return arriving + flow.edges.right(relative).T


def nonlinear_effects(
    graph: FrozenGraph, groups: Sequence[Sequence[Node]], *, batch_size: int = 16
) -> Float[Tensor, "group prompt output"]:
    """What it changes when features turn off below their thresholds: runs of the graph itself.

    A feature that the clean prompt does not use stays off, as in `FrozenGraph`.

    Args:
        graph: with every edge of the prompts, patched to what ablated nodes carry.
        groups: nodes that a prompt does not have are left out.
        batch_size: groups run together.
    """
    row = {node.id: i for i, node in enumerate(graph.nodes)}
    found = []
    for start in range(0, len(groups), batch_size):
        some = groups[start : start + batch_size]
        gone = torch.zeros(len(some), len(row), dtype=torch.bool)
        for i, group in enumerate(some):
            gone[i, [row[node.id] for node in group if node.id in row]] = True
        outputs, _ = graph.run(~gone[:, graph.edge_source])
        found.append(outputs - graph.value[:, graph.outputs])
    return torch.cat(found)


def _ratios(
    spliced: SplicedModel, state: FrozenState, other: NodeValues, sources: Sequence[Node]
) -> Float[Tensor, " source"]:
    """Other activation over activation of every feature among the sources; 1 for other nodes."""
    ratios = state.logits.new_ones(len(sources))
    columns: dict[tuple[str, int], list[int]] = {}
    for column, node in enumerate(sources):
        if node.kind == "feature":
            columns.setdefault((node.site, node.layer), []).append(column)
    for (site, layer), mine in columns.items():
        write = spliced.write_site(f"{site}.{layer}")
        at = 0, [sources[c].pos for c in mine], [sources[c].feature for c in mine]
        ratios[mine] = other.activations[write][at] / state.activations[write][at]
    return ratios
