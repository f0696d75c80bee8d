"""The JSON form of a circuit graph, version 1: sorted keys, columns for edges, exact numbers.

    {"version": 1, "dtype": "float32", "metadata": {...}, "nodes": [{"id": ..., "kind": ...}, ...],
     "edges": {"source": [row, ...], "target": [row, ...], "attribution": [number, ...]}}

Rows count into `nodes`. A float32 is written with nine significant digits, which is exact.
"""

import json
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from torch import Tensor

from attribution.nodes import Node, NodeTable
from graphs.metadata import GraphMetadata

__all__ = ["VERSION", "GraphFields", "decode", "encode"]

VERSION = 1
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_KEYS = {"version", "dtype", "metadata", "nodes", "edges"}
_REMEDY = "save the graph again with CircuitGraph.save"


class GraphFields(TypedDict):
    """The constructor arguments of a `CircuitGraph`."""

    nodes: NodeTable
    edge_target: Int[Tensor, " edge"]
    edge_source: Int[Tensor, " edge"]
    edge_attribution: Float[Tensor, " edge"]
    metadata: GraphMetadata


def encode(
    nodes: NodeTable,
    edge_target: Int[Tensor, " edge"],
    edge_source: Int[Tensor, " edge"],
    edge_attribution: Float[Tensor, " edge"],
    metadata: GraphMetadata,
) -> str:
    """Write a graph as version 1 text, in the units of its tensors."""
    dtype = str(edge_attribution.dtype).removeprefix("torch.")
    digits = 9 if dtype == "float32" else 17
    document = {
        "version": VERSION,
        "dtype": dtype,
        "metadata": metadata.model_dump(mode="json"),
        "nodes": [node.model_dump() | {"id": node.id} for node in nodes],
        "edges": {
            "source": edge_source.tolist(),
            "target": edge_target.tolist(),
            "attribution": [float(f"{value:.{digits}g}") for value in edge_attribution.tolist()],
        },
    }
    return json.dumps(document, sort_keys=True, allow_nan=False, separators=(",", ":")) + "\n"


def decode(text: str, origin: str) -> GraphFields:
    """Read version 1 text back into the fields of a graph.

    Args:
        text: what `encode` wrote.
        origin: the file's name, for error messages.

    Raises:
        ValueError: if the text is truncated, malformed, or of another version.
    """
    document = _parse(text, origin)
    try:
        dtype = _DTYPES[document["dtype"]]
        edges = document["edges"]
        lengths = {column: len(values) for column, values in edges.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"edge columns must be of one length, got {lengths}")
        fields = GraphFields(
            nodes=NodeTable([_node(record) for record in document["nodes"]]),
            edge_target=_rows(edges["target"], "target"),
            edge_source=_rows(edges["source"], "source"),
            edge_attribution=torch.tensor(edges["attribution"], dtype=dtype),
            metadata=GraphMetadata.model_validate(document["metadata"]),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{origin} holds a malformed {error.title} record: field {place!r}: {first['msg']}; "
            f"got {first['input']!r}; {_REMEDY}"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{origin} is not a well-formed version {VERSION} circuit graph "
            f"({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    return fields


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{origin} should hold one complete JSON document, but it is broken or cut off at "
            f"character {error.pos} of {len(text)} ({error.msg}); {_REMEDY}"
        ) from error
    if not isinstance(document, dict) or "version" not in document:
        raise ValueError(
            f"{origin} should be a circuit graph, a JSON object with a 'version', but it is "
            f"{type(document).__name__} without one; {_REMEDY}"
        )
    if document["version"] != VERSION or isinstance(document["version"], bool):
        raise ValueError(
            f"{origin} should be circuit graph version {VERSION}, got version "
            f"{document['version']!r}; open it with the release that wrote it"
        )
    if document.keys() != _KEYS:
        wrong = sorted(document.keys() ^ _KEYS)
        raise ValueError(
            f"{origin} should have exactly the keys {sorted(_KEYS)}, missing or unknown: {wrong}; "
            f"{_REMEDY}"
        )
    return document


def _node(record: dict[str, Any]) -> Node:
    """One node record, its `id` checked against the other columns rather than believed."""
    node = Node.model_validate({key: value for key, value in record.items() if key != "id"})
    if record["id"] != node.id:
        raise ValueError(f"a node is called {record['id']!r} but its columns say {node.id!r}")
    return node


def _rows(values: list[Any], column: str) -> Int[Tensor, " edge"]:
    if not all(type(value) is int for value in values):
        raise ValueError(f"edges.{column} should be whole row numbers")
    return torch.tensor(values, dtype=torch.long)
