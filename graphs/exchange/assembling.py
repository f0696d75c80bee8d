"""What every reader of a foreign file shares: its text, its faults, and the graph in the end."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from attribution.nodes import Node, NodeTable
from graphs.circuit_graph import CircuitGraph
from graphs.metadata import GraphMetadata

__all__ = ["Dtype", "assemble", "dtype_of", "narrowest", "parsed", "read_text"]

Dtype = Literal["float32", "float64"]
_Document = TypeVar("_Document", bound=BaseModel)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} should be UTF-8 text, but byte {error.start} is not; is it a graph?"
        ) from error


def parsed(kind: type[_Document], text: str, origin: str, *, strict: bool) -> _Document:
    """JSON text as a record of `kind`; its nesting is limited, its numbers are finite.

    Raises:
        ValueError: naming the file, the place and what is there.
    """
    try:
        return kind.model_validate_json(text, strict=strict)
    except ValidationError as error:
        raise ValueError(f"{origin}: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    if not place:
        return f"no such document ({fault['msg']}); want {error.title} as JSON"
    return f"{place}: {fault['msg']}, got {_short(fault['input'])} (a {error.title} is wanted)"


def _short(value: Any) -> str:
    shown = f"{type(value).__name__} without it" if isinstance(value, dict) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def dtype_of(graph: CircuitGraph) -> Dtype:
    """The name of the type of a graph's attributions."""
    return "float32" if graph.edge_attribution.dtype == torch.float32 else "float64"


def narrowest(values: Sequence[float]) -> Dtype:
    """The smallest type that holds every value exactly."""
    wide = torch.tensor(values, dtype=torch.float64)
    return "float32" if torch.equal(wide.float().double(), wide) else "float64"


def assemble(
    nodes: Iterable[Node],
    ends: Sequence[tuple[int, int]],
    attribution: Sequence[float],
    dtype: Dtype,
    metadata: GraphMetadata,
    origin: str,
) -> CircuitGraph:
    """A validated graph.

    Args:
        nodes: in order.
        ends: target and source of every edge, rows of `nodes`.
        attribution: one an edge.
        dtype: of the attributions.
        metadata: of the graph.
        origin: the file's name, for error messages.

    Raises:
        ValueError: naming the file, if this is no circuit graph.
    """
    rows = torch.tensor(ends, dtype=torch.long).reshape(-1, 2)
    values = torch.tensor(attribution, dtype=getattr(torch, dtype))
    try:
        return CircuitGraph(NodeTable(list(nodes)), rows[:, 0], rows[:, 1], values, metadata)
    except ValueError as error:
        raise ValueError(f"{origin} holds no circuit graph: {error}") from error
