"""Attribution-graph JSON as a circuit graph: ours, circuit-tracer's, Neuronpedia's, and others'.

Nodes that carry an exact copy are read from it, others from what viewers read. Features are taken
to be of the MLP transcoder (or cross-layer transcoder) of their layer.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from attribution.nodes import Node
from graphs.circuit_graph import CircuitGraph
from graphs.exchange.assembling import assemble, narrowest, parsed
from graphs.exchange.attribution_records import AttributionDocument, NodeRecord
from graphs.exchange.colliding import link_ends
from graphs.exchange.spelling import cantor_unpair
from graphs.exchange.view import GraphView
from graphs.metadata import GraphMetadata

__all__ = ["Imported", "feature_indices", "from_attribution"]

_FEATURES = ("cross layer transcoder", "transcoder", "unexplored node")
_TYPES = (*_FEATURES, "mlp reconstruction error", "embedding", "logit")
_LOGIT = re.compile(r'Output "(?P<token>.*)" \((?:k\()?p=[^)]*\)*', re.DOTALL)


class Imported(NamedTuple):
    """A graph from a file, and what the file says of how it is looked at."""

    graph: CircuitGraph
    view: GraphView


def from_attribution(text: str, origin: str, *, n_layers: int | None = None) -> Imported:
    """The graph of attribution-graph JSON.

    Args:
        text: JSON.
        origin: the file's name, for error messages.
        n_layers: number of blocks of the model, for files of others, which do not say it. None:
            the last layer with a node, or two less than that of the logits, if that is more.

    Returns:
        The graph in the order of the file, and its view. Of files of others the metadata's `model`
        is their `scan`, and what else they say of themselves is in the notes. Pinned nodes and
        members of groups that are not in the file are left out.

    Raises:
        ValueError: if it is no such JSON, has a type of node that is not known here, an id twice
            (other than of an error and a feature), a link without its node, or no circuit graph.
    """
    document = parsed(AttributionDocument, text, origin, strict=False)
    _check_positions(document, origin)
    said = document.metadata.circuitloom
    depth = n_layers if n_layers is not None else _depth(document)
    indices = feature_indices([n for n in document.nodes if _is_feature(n)], origin)
    index = dict(zip((id(n) for n in document.nodes if _is_feature(n)), indices, strict=True))
    nodes = [
        node.circuitloom or _node(node, index.get(id(node), -1), depth, document, origin)
        for node in document.nodes
    ]
    called = _names(document.nodes, nodes, origin)
    weights = [link.weight for link in document.links]
    ends = link_ends([(n.source, n.target) for n in document.links], called, nodes, origin)
    metadata = said.metadata() if said else _metadata(document, nodes, depth)
    dtype = said.dtype if said else narrowest(weights)
    graph = assemble(nodes, ends, weights, dtype, metadata, origin)
    return Imported(graph, _view(document, nodes, called))


def feature_indices(records: Sequence[NodeRecord], origin: str) -> list[int]:
    """Index of each feature in its dictionary.

    All features of a file follow one rule, the first that fits them all: the id spells
    `layer_index_position`; the number is Cantor's of layer and index; the number is the index.

    Raises:
        ValueError: if none does, because a number is missing or below zero.
    """
    spelled = [re.fullmatch(rf"{r.layer}_(\d+)_{r.ctx_idx}", r.node_id) for r in records]
    if all(spelled):
        return [int(match[1]) for match in spelled if match]
    if wrong := [r for r in records if r.feature is None or r.feature < 0]:
        raise ValueError(
            f"{origin}: the feature {wrong[0].node_id!r} has no number (got {wrong[0].feature}), "
            "and not all ids are layer_index_position; give one or the other"
        )
    pairs = [cantor_unpair(r.feature or 0) for r in records]
    if all(str(layer) == str(r.layer) for (layer, _), r in zip(pairs, records, strict=True)):
        return [index for _, index in pairs]
    return [r.feature or 0 for r in records]


def _is_feature(record: NodeRecord) -> bool:
    return record.circuitloom is None and record.feature_type in _FEATURES


def _check_positions(document: AttributionDocument, origin: str) -> None:
    n_tokens = len(document.metadata.prompt_tokens)
    for record in document.nodes:
        lowest = -1 if record.feature_type == "logit" else 0  # -1: the last, in some files
        if record.circuitloom is None and not lowest <= record.ctx_idx < n_tokens:
            raise ValueError(
                f"{origin}: the node {record.node_id!r} has ctx_idx {record.ctx_idx}, but there "
                f"are {n_tokens} prompt_tokens"
            )


def _depth(document: AttributionDocument) -> int:
    if document.metadata.circuitloom is not None:
        return document.metadata.circuitloom.n_layers
    layers = [(r.feature_type == "logit", str(r.layer)) for r in document.nodes]
    found = [
        int(layer) + (-1 if is_logit else 1)
        for is_logit, layer in layers
        if re.fullmatch(r"\d{1,6}", layer)
    ]
    return max(found, default=0)


def _node(
    record: NodeRecord, index: int, depth: int, document: AttributionDocument, origin: str
) -> Node:
    pos = record.ctx_idx
    match record.feature_type:
        case "embedding":
            spelled = re.fullmatch(r"E_(\d+)_\d+", record.node_id)
            token = int(spelled[1]) if spelled else -1
            return Node(
                kind="token", layer=-1, site="embed", pos=pos, feature=token, activation=1.0
            )
        case "logit":
            last = len(document.metadata.prompt_tokens) - 1
            pos = last if pos < 0 else pos
            return Node(kind="output", layer=depth, site=_logit(record), pos=pos)
        case "mlp reconstruction error":
            return Node(kind="error", layer=_layer(record, origin), site="mlp", pos=pos)
        case kind if kind in _FEATURES:
            return Node(
                kind="feature",
                layer=_layer(record, origin),
                site="mlp",
                pos=pos,
                feature=index,
                activation=record.activation or 0.0,
            )
    raise ValueError(
        f"{origin}: the node {record.node_id!r} is of type {record.feature_type!r}; want one of "
        f"{', '.join(_TYPES)}"
    )


def _layer(record: NodeRecord, origin: str) -> int:
    if not re.fullmatch(r"\d{1,6}", str(record.layer)):
        raise ValueError(
            f"{origin}: the node {record.node_id!r} should have a block's number as its layer, "
            f"got {record.layer!r}"
        )
    return int(record.layer)


def _logit(record: NodeRecord) -> str:
    """The name that an output for one token has here: the token, and its vocabulary id."""
    label = record.clerp or ""
    found = _LOGIT.fullmatch(label)
    token = found["token"] if found else label or record.node_id
    spelled = re.fullmatch(r"[^_]+_(\d+)_\d+", record.node_id)
    number = int(spelled[1]) if spelled else record.feature
    return f"{token!r}" if number is None else f"{token!r} ({number})"


def _names(
    records: Sequence[NodeRecord], nodes: Sequence[Node], origin: str
) -> dict[str, list[int]]:
    called: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        called[record.node_id].append(row)
    for name, rows in called.items():
        counts = Counter(nodes[row].kind == "error" for row in rows)
        if max(counts.values()) > 1:
            raise ValueError(
                f"{origin}: {len(rows)} nodes have the id {name!r}; ids must be unique"
            )
    return called


def _metadata(document: AttributionDocument, nodes: Sequence[Node], depth: int) -> GraphMetadata:
    said, more = document.metadata, document.more()
    named = {"slug": said.slug, "scan": said.scan}
    notes = {name: value for name, value in named.items() if value}
    notes |= {name: json.dumps(value, sort_keys=True) for name, value in more.items() if value}
    return GraphMetadata(
        model=said.scan or "unknown",
        prompt="".join(said.prompt_tokens) if said.prompt is None else said.prompt,
        tokens=tuple(said.prompt_tokens),
        n_layers=depth,
        target=", ".join(node.site for node in nodes if node.kind == "output"),
        notes=notes,
    )


def _view(
    document: AttributionDocument, nodes: Sequence[Node], called: dict[str, list[int]]
) -> GraphView:
    state = document.qParams
    pinned = (state and state.pinnedIds) or []
    pinned = pinned.split(",") if isinstance(pinned, str) else pinned
    groups: dict[str, tuple[str, ...]] = {}
    for name, *members in filter(None, (state and state.supernodes) or []):
        groups[_unused(name, groups)] = _ids(members, nodes, called)
    return GraphView(
        labels=_labels(document.nodes, nodes),
        groups=groups,
        pinned=_ids(pinned, nodes, called),
        weights=_weights(document.nodes, nodes),
    )


def _ids(
    names: Sequence[str], nodes: Sequence[Node], called: dict[str, list[int]]
) -> tuple[str, ...]:
    return tuple(nodes[row].id for name in names for row in called.get(name, ()))


def _unused(name: str, groups: dict[str, tuple[str, ...]]) -> str:
    taken = [name, *(f"{name} ({i})" for i in range(2, len(groups) + 2))]
    return next(candidate for candidate in taken if candidate not in groups)


def _labels(records: Sequence[NodeRecord], nodes: Sequence[Node]) -> dict[str, str]:
    """Names of nodes other than outputs, whose name is their token."""
    return {
        node.id: record.clerp
        for record, node in zip(records, nodes, strict=True)
        if record.clerp and node.kind != "output" and record.clerp != node.id
    }


def _weights(records: Sequence[NodeRecord], nodes: Sequence[Node]) -> dict[str, float]:
    """Weights of the outputs; nothing where they are missing, zero, or what they are if unsaid."""
    outputs = [
        (n.id, r.token_prob) for r, n in zip(records, nodes, strict=True) if n.kind == "output"
    ]
    known = {name: weight for name, weight in outputs if weight is not None}
    unsaid = not any(known.values()) or all(w == 1 / len(outputs) for w in known.values())
    return {} if unsaid or len(known) < len(outputs) else known
