"""Node-link JSON: the form that NetworkX and D3 read, with a published JSON Schema.

    {"directed": true, "multigraph": false, "graph": {"version": 1, "dtype": "float32", ...},
     "nodes": [{"id": ..., "kind": ..., ...}], "links": [{"source": id, "target": id,
     "attribution": number}]}

`networkx.node_link_graph(document, edges="links")` gives what `CircuitGraph.digraph` does. The
schema lies beside this module as `node_link.schema.json`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attribution.nodes import Kind, Node
from graphs.circuit_graph import CircuitGraph
from graphs.exchange.assembling import Dtype, assemble, dtype_of, parsed
from graphs.metadata import GraphMetadata

__all__ = [
    "SCHEMA_FILE",
    "GraphRecord",
    "NodeLinkDocument",
    "from_node_link",
    "node_link",
    "node_link_schema",
]

SCHEMA_FILE = Path(__file__).with_name("node_link.schema.json")
"""The published JSON Schema, which is what `node_link_schema` returns."""

_CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GraphRecord(GraphMetadata):
    """Where a graph comes from, and how its numbers are kept."""

    version: Literal[1] = Field(description="version of this form")
    dtype: Dtype = Field(description="type of the attributions; they are written exactly")

    @classmethod
    def of(cls, graph: CircuitGraph) -> "GraphRecord":
        """The record of `graph`."""
        return cls(version=1, dtype=dtype_of(graph), **graph.metadata.model_dump())

    def metadata(self) -> GraphMetadata:
        """The part that a `CircuitGraph` keeps."""
        return GraphMetadata(**self.model_dump(exclude={"version", "dtype"}))


class NodeRecord(BaseModel):
    """A node; see `attribution.Node`."""

    model_config = _CONFIG

    id: str = Field(description="unique name, which follows from the other fields")
    kind: Kind
    layer: int = Field(description="block index; -1 for inputs, n_layers for outputs")
    site: str = Field(description="mlp, attn, resid_pre, ..., embed or output name")
    pos: int = Field(description="token position; -1 where a node stands for all positions")
    feature: int = Field(description="feature index in its dictionary; vocabulary id of a token")
    activation: float = Field(description="feature activation, or the value of an output")


class LinkRecord(BaseModel):
    """An edge, from source to target."""

    model_config = _CONFIG

    source: str = Field(description="id of the node the edge comes from")
    target: str = Field(description="id of the node the edge runs to")
    attribution: float = Field(description="signed, in the units of the target")


class NodeLinkDocument(BaseModel):
    """A circuit graph as node-link JSON."""

    model_config = _CONFIG

    directed: Literal[True]
    multigraph: Literal[False]
    graph: GraphRecord
    nodes: tuple[NodeRecord, ...]
    links: tuple[LinkRecord, ...]


def node_link_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the documents that `node_link` makes."""
    name = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": name} | NodeLinkDocument.model_json_schema()


def node_link(graph: CircuitGraph) -> dict[str, Any]:
    """A graph as a node-link document, numbers exact."""
    ids = [node.id for node in graph.nodes]
    ends = (graph.edge_source.tolist(), graph.edge_target.tolist())
    return {
        "directed": True,
        "multigraph": False,
        "graph": GraphRecord.of(graph).model_dump(mode="json"),
        "nodes": [{"id": node.id} | node.model_dump() for node in graph.nodes],
        "links": [
            {"source": ids[source], "target": ids[target], "attribution": value}
            for source, target, value in zip(*ends, graph.edge_attribution.tolist(), strict=True)
        ],
    }


def from_node_link(text: str, origin: str) -> CircuitGraph:
    """The graph of a node-link document, as it was.

    Args:
        text: JSON.
        origin: the file's name, for error messages.

    Raises:
        ValueError: if it does not follow the schema, an id is not what the columns of its node
            say, a link has an end that is no node, or it is no circuit graph.
    """
    document = parsed(NodeLinkDocument, text, origin, strict=True)
    nodes = [_node(record, origin) for record in document.nodes]
    row = {node.id: i for i, node in enumerate(nodes)}
    for link in document.links:
        if missing := [end for end in (link.source, link.target) if end not in row]:
            raise ValueError(
                f"{origin}: the link {link.source} -> {link.target} has an end that is no node: "
                f"{missing[0]!r}; add the node or leave out the link"
            )
    return assemble(
        nodes,
        [(row[link.target], row[link.source]) for link in document.links],
        [link.attribution for link in document.links],
        document.graph.dtype,
        document.graph.metadata(),
        origin,
    )


def _node(record: NodeRecord, origin: str) -> Node:
    node = Node(**record.model_dump(exclude={"id"}))
    if node.id != record.id:
        raise ValueError(
            f"{origin}: a node is called {record.id!r} but its columns say {node.id!r}"
        )
    return node
