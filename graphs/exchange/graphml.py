"""GraphML, through NetworkX: for Gephi, Cytoscape, yEd and igraph.

Nodes are called by their ids and carry the columns of their records, edges the attribution and
their row in the graph. What XML cannot hold (control characters in tokens) is escaped as in JSON.
"""

import json
import re
from typing import Any
from xml.etree.ElementTree import ParseError

import networkx as nx
from pydantic import ValidationError

from attribution.nodes import Node
from graphs.circuit_graph import CircuitGraph
from graphs.exchange.assembling import assemble
from graphs.exchange.node_link import GraphRecord

__all__ = ["from_graphml", "graphml"]

_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'
_NOT_XML = re.compile("[\ufffe\uffff]")
_LISTS = ("tokens", "notes")  # of the metadata; the rest is plain


def graphml(graph: CircuitGraph) -> str:
    """A graph as GraphML text, numbers exact."""
    record = GraphRecord.of(graph).model_dump(mode="json")
    kept = {name: _escape(v) if isinstance(v, str) else v for name, v in record.items()}
    kept |= {name: _escape_json(record[name]) for name in _LISTS}
    made = nx.DiGraph()
    made.graph.update(kept)
    ids = [_escape(node.id) for node in graph.nodes]
    for name, node in zip(ids, graph.nodes, strict=True):
        made.add_node(name, **node.model_dump() | {"site": _escape(node.site)})
    columns = (graph.edge_source, graph.edge_target, graph.edge_attribution)
    rows = enumerate(zip(*(column.tolist() for column in columns), strict=True))
    for row, (source, target, value) in rows:
        made.add_edge(ids[source], ids[target], attribution=value, row=row)
    return _HEAD + "\n".join(nx.generate_graphml(made)) + "\n"


def from_graphml(text: str, origin: str) -> CircuitGraph:
    """The graph that `graphml` wrote, as it was.

    Nodes and edges may have been taken out since; other columns, such as a viewer's coordinates,
    are not kept.

    Args:
        text: GraphML.
        origin: the file's name, for error messages.

    Raises:
        ValueError: if it is no GraphML, declares entities, lacks a column, or is no circuit graph.
    """
    found = _parse(text, origin)
    record = _record(found, origin)
    names = list(found)
    nodes = [_node(name, found.nodes[name], origin) for name in names]
    row = {name: i for i, name in enumerate(names)}
    edges = list(found.edges(data=True))
    if all(type(data.get("row")) is int for _, _, data in edges):
        edges.sort(key=lambda edge: edge[2]["row"])
    for source, target, data in edges:
        if type(data.get("attribution")) is not float:
            raise ValueError(
                f"{origin}: the edge {source} -> {target} needs an 'attribution' of type double, "
                f"got {data.get('attribution')!r}"
            )
    return assemble(
        nodes,
        [(row[target], row[source]) for source, target, _ in edges],
        [data["attribution"] for _, _, data in edges],
        record.dtype,
        record.metadata(),
        origin,
    )


def _parse(text: str, origin: str) -> nx.DiGraph:
    if "<!DOCTYPE" in text:
        raise ValueError(f"{origin} declares a document type; GraphML needs none, take it out")
    try:
        found = nx.parse_graphml(text)
    except (ParseError, nx.NetworkXError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{origin} is no GraphML that can be read ({type(error).__name__}: {error})"
        ) from error
    if not found.is_directed() or found.is_multigraph():
        raise ValueError(
            f"{origin} should be a directed graph with at most one edge from node to node, got a "
            f"{type(found).__name__}"
        )
    return found


def _record(found: nx.DiGraph, origin: str) -> GraphRecord:
    try:
        kept: dict[str, Any] = {
            name: _unescape(value) if isinstance(value, str) and name not in _LISTS else value
            for name, value in found.graph.items()
            if name in GraphRecord.model_fields
        }
        kept |= {name: json.loads(kept[name]) for name in _LISTS if name in kept}
        return GraphRecord.model_validate(kept)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{origin}: the graph lacks what circuit graphs say of themselves ({_line(error)}); "
            "was it written by this package?"
        ) from error


def _node(name: str, data: dict[str, Any], origin: str) -> Node:
    try:
        kept = {column: data[column] for column in Node.model_fields if column in data}
        kept |= {"site": _unescape(kept["site"])} if "site" in kept else {}
        node = Node.model_validate(kept, strict=True)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{origin}: the node {name!r} is no node of a circuit graph ({_line(error)})"
        ) from error
    if _escape(node.id) != name:
        raise ValueError(f"{origin}: a node is called {name!r} but its columns say {node.id!r}")
    return node


def _line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return str(error)


def _escape_json(value: Any) -> str:
    found = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return _NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", found)


def _escape(text: str) -> str:
    return _escape_json(text)[1:-1]


def _unescape(text: str) -> str:
    return json.loads(f'"{text}"')
