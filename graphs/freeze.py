"""From prompts to a graph that can be run: edges on the clean prompts, and what else they carry.

Input-dependent: every number comes from a forward pass.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.engine import attribute_batch, attribute_sources
from attribution.nodes import Node, NodeTable
from attribution.targets import Target
from attribution.trace import Trace
from circuits.patching import NodeValues
from circuits.spliced import FrozenState, Placement, SplicedModel
from graphs.build import merge_nodes
from graphs.frozen_graph import FrozenGraph

__all__ = ["freeze_graph"]


def freeze_graph(
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    target: Target | Sequence[Target] | None = None,
) -> FrozenGraph:
    """All edges of position-aligned prompts, and what each carries once it is removed.

    A removed edge carries what its source writes in `other`: a feature its other activation (if it
    is active on the clean prompt), a token, error or unreplaced MLP its other vector.

    Args:
        spliced: the model with its dictionaries.
        clean: the prompts, held as the model is.
        other: of the same prompts, row by row (`patch_values`, `mean_values`, `zero_values`).
        target: what to explain, as in `attribute`; its names must be the same on every prompt.

    Raises:
        ValueError: if the targets of two prompts have different names.
    """
    traces = list(attribute_batch(spliced, list(clean.tokens), target))
    others = [
        attribute_sources(spliced, clean.select(i), _select(other, i), target)
        for i in range(len(traces))
    ]
    _check_names(traces)
    nodes = merge_nodes(table for trace in traces for table in (trace.sources, trace.targets))
    found = [
        (_edges(trace, nodes), _edges(patched, nodes))
        for trace, patched in zip(traces, others, strict=True)
    ]
    keys = torch.cat([key for pair in found for key, _ in pair]).unique()
    prompts = [
        _on_prompt(spliced, clean.select(i), _select(other, i), trace, nodes)
        for i, trace in enumerate(traces)
    ]
    value, activation, threshold, ratio = (torch.stack(rows) for rows in zip(*prompts, strict=True))
    source = keys % len(nodes)
    carried = torch.stack([_carried(pair[0], keys) for pair in found])
    removed = torch.stack([_carried(pair[1], keys) for pair in found]) * ratio[:, source]
    return FrozenGraph(
        nodes, keys // len(nodes), source, carried, removed, value, activation, threshold
    )


_Edges = tuple[Int[Tensor, " edge"], Float[Tensor, " edge"]]


def _edges(trace: Trace, nodes: NodeTable) -> _Edges:
    """Each edge that is not zero as one number (target row, source row), and what it carries."""
    target, source, values = trace.blocks.nonzero()
    into = torch.tensor([nodes.row(node.id) for node in trace.targets])[target.cpu()]
    out_of = torch.tensor([nodes.row(node.id) for node in trace.sources])[source.cpu()]
    key, order = (into * len(nodes) + out_of).sort()
    return key, values.cpu().double()[order]


def _carried(edges: _Edges, keys: Int[Tensor, " all"]) -> Float[Tensor, " all"]:
    """What the edges carry, as entries of a longer sorted list; 0 for those that are not there."""
    carried = torch.zeros(len(keys), dtype=torch.float64)
    carried[torch.searchsorted(keys, edges[0])] = edges[1]
    return carried


def _on_prompt(
    spliced: SplicedModel, clean: FrozenState, other: NodeValues, trace: Trace, nodes: NodeTable
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every node on one prompt: its value, its activation, its threshold, and by what its edges
    are multiplied when they are removed.
    """
    value = torch.zeros(len(nodes), dtype=torch.float64)
    value[[nodes.row(node.id) for node in trace.targets]] = trace.target_values.double().cpu()
    activation = torch.zeros_like(value)
    threshold, ratio = torch.full_like(value, torch.inf), torch.ones_like(value)
    features: dict[tuple[str, int], list[Node]] = defaultdict(list)
    for node in trace.sources:
        if node.kind == "feature":
            features[node.site, node.layer].append(node)
    for write, placement in spliced.placements.items():
        mine = features[placement.site, placement.write.layer]
        rows = torch.tensor([nodes.row(node.id) for node in mine], dtype=torch.long)
        at = (
            torch.tensor([node.pos for node in mine], dtype=torch.long),
            torch.tensor([node.feature for node in mine], dtype=torch.long),
        )
        held = clean.activations[write][0][at].double().cpu()
        activation[rows] = held
        ratio[rows] = other.activations[write][0][at].double().cpu() / held
        boundary = _boundary(placement, clean.read(placement.read)[0])
        threshold[rows] = boundary[at].double().cpu()
    return value, activation, threshold, ratio


def _boundary(
    placement: Placement, x: Float[Tensor, "pos d_model"]
) -> Float[Tensor, "pos feature"]:
    """The value that each feature's pre-activation must exceed; for TopK that of the first feature
    left out.
    """
    dictionary, n_features = placement.dictionary, placement.dictionary.n_features
    if dictionary.activation == "jumprelu":
        assert dictionary.threshold is not None
        return dictionary.threshold.clamp_min(0).expand(len(x), n_features)
    if dictionary.activation == "topk" and (dictionary.k or 0) < n_features:
        z = dictionary.pre_activations(x).topk((dictionary.k or 0) + 1, -1).values[:, -1:]
        return z.clamp_min(0).expand(len(x), n_features)
    return x.new_zeros(len(x), n_features)


def _select(values: NodeValues, prompt: int) -> NodeValues:
    """The values of one prompt."""
    one = slice(prompt, prompt + 1)
    return NodeValues(
        {site: value[one] for site, value in values.activations.items()},
        {site: value[one] for site, value in values.errors.items()},
        {site: value[one] for site, value in values.sublayers.items()},
        values.embed[one],
    )


def _check_names(traces: Sequence[Trace]) -> None:
    names = [[node.id for node in trace.targets if node.kind == "output"] for trace in traces]
    for found in names:
        if found != names[0]:
            raise ValueError(
                f"every prompt needs the same targets, got {names[0]} and {found}; give them one "
                "name"
            )
