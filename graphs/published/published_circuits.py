"""Published circuits of GPT-2 small's heads: read from the data files beside this module."""

import json
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PublishedCircuit", "published_circuit", "published_names"]

_FILES = {"ioi": "ioi.json", "greater-than": "greater_than.json"}


class PublishedCircuit(BaseModel):
    """One circuit of attention heads and MLPs, in one encoding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="what the circuit does: ioi or greater-than")
    encoding: str = Field(description="by whose rules it was wired: acdc or auto-circuit")
    model: str = Field(description="whose heads these are")
    n_layers: int = Field(description="blocks of that model")
    n_heads: int = Field(description="heads a block")
    groups: dict[str, tuple[str, ...]] = Field(description="nodes by what they do, as a9.h6 or m3")
    other_groups: dict[str, tuple[str, ...]] = Field(
        description="groups that another source names differently; not wired"
    )
    edges: tuple[str, ...] = Field(description="named as in EAP-IG, such as input->a0.h1<q>")
    n_direct: int = Field(
        description="further edges that the encoding counts from each head's input to its q, k, v"
    )

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node that an edge names, sorted."""
        ends = {end.split("<")[0] for edge in self.edges for end in edge.split("->")}
        return tuple(sorted(ends))


def published_names() -> tuple[tuple[str, str], ...]:
    """Every (task, encoding) there is."""
    return tuple((task, encoding) for task in _FILES for encoding in _read(task)["edges"])


def published_circuit(task: str, encoding: str = "acdc") -> PublishedCircuit:
    """The circuit of `task` as `encoding` has it.

    Raises:
        ValueError: if there is no such circuit.

    Example:
        >>> circuit = published_circuit("ioi")
        >>> len(circuit.edges), circuit.n_direct
        (963, 78)
    """
    if task not in _FILES:
        raise ValueError(f"task must be one of {sorted(_FILES)}, got {task!r}; choose one")
    record = _read(task)
    if encoding not in record["edges"]:
        raise ValueError(
            f"encoding must be one of {sorted(record['edges'])}, got {encoding!r}; choose one"
        )
    own = {key: record[key][encoding] for key in ("edges", "n_direct")}
    shared = {key: record[key] for key in record.keys() - {"version", "edges", "n_direct"}}
    return PublishedCircuit(encoding=encoding, **own, **shared)


def _read(task: str) -> dict:
    return json.loads(files("graphs.published").joinpath(_FILES[task]).read_text("utf-8"))
