"""A graph as the attribution-graph JSON of circuit-tracer's front end and Neuronpedia.

The viewers know features, errors, token embeddings and logits of transcoders on MLPs. What else a
graph has is shown too, under types of its own: position embeddings, biases, unreplaced sublayers
(as errors, which they are to a reader), and features and errors of other places. Every node and
the metadata carry an exact copy, `circuitloom`, that viewers ignore.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.nodes import Node
from graphs.circuit_graph import CircuitGraph
from graphs.exchange.node_link import GraphRecord
from graphs.exchange.spelling import cantor_pair
from graphs.exchange.view import GraphView
from graphs.influence import node_influence

__all__ = ["attribution_document", "cumulative_share"]

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LOGIT = re.compile(r"(?P<token>(['\"]).*\2) \((?P<number>\d+)\)", re.DOTALL)
_MLP_FEATURE, _MLP_ERROR = "cross layer transcoder", "mlp reconstruction error"


def attribution_document(
    graph: CircuitGraph, *, slug: str, scan: str | None = None, view: GraphView | None = None
) -> dict[str, Any]:
    """A graph for the viewers.

    `influence` is what their slider cuts at: the share of all influence that a node and those
    before it carry, ranked by influence. `token_prob`, and `p=` in an output's name, is the weight
    with which the output enters it.

    Args:
        graph: any; viewers cope with some thousand nodes, so a pruned one.
        slug: name of the graph, and of its file without the ending.
        scan: how the viewer finds pages of features: a model name of Neuronpedia or the
            dictionaries' identifier. None: the model's name, which is
            the scan if the graph was read from such a file.
        view: names, groups, pinned nodes and output weights. None: plain.

    Raises:
        ValueError: if the slug is no plain file name, or the view does not belong to the graph.
    """
    if not _SLUG.fullmatch(slug):
        raise ValueError(f"a slug is letters, digits, '.', '-' and '_', got {slug!r}")
    view = view or GraphView()
    view.check(graph)
    metadata, record = graph.metadata, GraphRecord.of(graph).model_dump(mode="json")
    ids, weights = _ids(graph), _weights(graph, view)
    share = cumulative_share(
        node_influence(graph, torch.tensor(list(weights.values()), dtype=torch.float64))
    )
    names = dict(zip((node.id for node in graph.nodes), ids, strict=True))
    return {
        "metadata": {
            "slug": slug,
            "scan": scan or metadata.model,
            "transcoder_list": [],
            "prompt_tokens": list(metadata.tokens),
            "prompt": metadata.prompt,
            "node_threshold": 1.0,
            "schema_version": 1,
            "info": {"generator": {"name": "circuitloom"}},
            "circuitloom": record,
        },
        "qParams": {
            "pinnedIds": [names[pinned] for pinned in view.pinned],
            "supernodes": [[group, *(names[m] for m in of)] for group, of in view.groups.items()],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": _nodes(graph, ids, share.tolist(), weights, view.labels),
        "links": _links(graph, ids),
    }


def cumulative_share(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """The share of the total that each node and those ranked before it carry, largest first.

    circuit-tracer's score of a node; of equal ones the earlier ranks first. 1 where the total is 0.

    Example:
        >>> cumulative_share(torch.tensor([1.0, 5.0, 4.0]))
        tensor([1.0000, 0.5000, 0.9000])
    """
    if not bool(influence.any()):
        return torch.ones_like(influence)
    ranked, order = influence.sort(descending=True, stable=True)
    share = torch.empty_like(influence)
    share[order] = (ranked.cumsum(0) / ranked.sum()).clamp(max=1.0)
    return share


def _weights(graph: CircuitGraph, view: GraphView) -> dict[str, float]:
    outputs = [node.id for node in graph.outputs]
    return {name: view.weights.get(name, 1 / len(outputs)) for name in outputs}


def _ids(graph: CircuitGraph) -> list[str]:
    """The viewers' ids where they have a spelling, which some read; else the node's own."""
    found: dict[str, None] = {}
    for index, node in enumerate(graph.nodes):
        spelled = _spelled(node, graph.metadata.n_layers, index)
        found[node.id if spelled in found else spelled] = None
    if len(found) != graph.n_nodes:
        raise ValueError(f"two nodes of {graph!r} are spelled alike; rename its outputs")
    return list(found)


def _spelled(node: Node, n_layers: int, index: int) -> str:
    match node.kind, node.site:
        case "feature", "mlp":
            return f"{node.layer}_{node.feature}_{node.pos}"
        case "token", _:
            return f"E_{node.feature}_{node.pos}"
        case "output", _:
            return f"{n_layers + 1}_{_output(node, index)[1]}_{node.pos}"
    return node.id


def _output(node: Node, index: int) -> tuple[str, int]:
    """Token and vocabulary id of a logit; of another output its name and a number below zero."""
    if found := _LOGIT.fullmatch(node.site):
        return _unquoted(found["token"]), int(found["number"])
    return node.site, -1 - index


def _unquoted(token: str) -> str:
    try:
        return str(ast.literal_eval(token))
    except (ValueError, SyntaxError):
        return token


def _nodes(
    graph: CircuitGraph,
    ids: Sequence[str],
    share: Sequence[float],
    weights: Mapping[str, float],
    labels: Mapping[str, str],
) -> list[dict[str, Any]]:
    places: dict[tuple[str, str], int] = {}
    records = []
    for index, (name, node) in enumerate(zip(ids, graph.nodes, strict=True)):
        place = places.setdefault((node.kind, node.site), len(places))
        is_output, weight = node.kind == "output", weights.get(node.id, 0.0)
        records.append(
            {
                "node_id": name,
                "feature": _number(node, index, place),
                "layer": _layer(node, graph.metadata.n_layers),
                "ctx_idx": max(node.pos, 0),
                "feature_type": _type(node),
                "token_prob": weight,
                "is_target_logit": is_output and node.id == graph.outputs[0].id,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": name,
                "clerp": _label(node, index, weight, labels),
                "influence": None if is_output else share[index],
                "activation": node.activation if node.kind == "feature" else None,
                "circuitloom": node.model_dump(),
            }
        )
    return records


def _number(node: Node, index: int, place: int) -> int:
    """Layer and index of a transcoder's feature in one; of others what tells them apart.

    Viewers take nodes at one layer and position for the same if this is.
    """
    code = cantor_pair(node.layer, node.feature) if min(node.layer, node.feature) >= 0 else 0
    match node.kind, node.site:
        case "feature", "mlp" if min(node.layer, node.feature) >= 0:
            return code
        case "token", _:
            return node.pos
        case "output", _:
            return _output(node, index)[1]
        case "error", "mlp":
            return -1
    return -2 - cantor_pair(place, code)


def _layer(node: Node, n_layers: int) -> str:
    if node.kind == "output":
        return str(n_layers + 1)
    return "E" if node.layer < 0 else str(node.layer)


def _type(node: Node) -> str:
    match node.kind:
        case "feature":
            return _MLP_FEATURE if node.site == "mlp" else f"{node.site} feature"
        case "error":
            return _MLP_ERROR if node.site == "mlp" else f"{node.site} reconstruction error"
        case "token":
            return "embedding"
        case "output":
            return "logit"
        case "sublayer":
            return f"unreplaced {node.site} error"
        case "position":
            return "position embedding"
        case "bias":
            return "bias"


def _label(node: Node, index: int, weight: float, labels: Mapping[str, str]) -> str:
    """The name shown. The viewer reads an output's probability off its name."""
    if node.kind == "output":
        return f'Output "{labels.get(node.id, _output(node, index)[0])}" (p={weight:.3f})'
    known = node.kind == "token" or (node.kind in ("feature", "error") and node.site == "mlp")
    return labels.get(node.id, "" if known else node.id)


def _links(graph: CircuitGraph, ids: Sequence[str]) -> list[dict[str, Any]]:
    columns = (graph.edge_source, graph.edge_target, graph.edge_attribution)
    return [
        {"source": ids[source], "target": ids[target], "weight": value}
        for source, target, value in zip(*(column.tolist() for column in columns), strict=True)
    ]
