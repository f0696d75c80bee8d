"""The JSON of attribution graphs, as circuit-tracer's front end and Neuronpedia read it.

Written from circuit-tracer 0.5.0's records and Neuronpedia's published schema. Files of many
makers are read: what neither viewer needs may be missing, what is not named here is ignored. The
fields called `circuitloom` hold exactly what the format cannot.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from attribution.nodes import Node
from graphs.exchange.node_link import GraphRecord

__all__ = ["AttributionDocument", "LinkRecord", "MetadataRecord", "NodeRecord", "ViewRecord"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class MetadataRecord(BaseModel):
    """What a graph says of itself; other keys are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    prompt_tokens: list[str]
    prompt: str | None = None
    scan: str | None = None
    slug: str | None = None
    circuitloom: GraphRecord | None = None


class ViewRecord(_Record):
    """State of the viewer; `pinnedIds` is a list, or ids with commas between."""

    pinnedIds: list[str] | str | None = None
    supernodes: list[list[str]] | None = None


class NodeRecord(_Record):
    """A node."""

    node_id: str
    feature_type: str
    layer: int | str
    ctx_idx: int
    feature: int | None = None
    token_prob: float | None = None
    clerp: str | None = None
    activation: float | None = None
    circuitloom: Node | None = None


class LinkRecord(_Record):
    """An edge, from source to target."""

    source: str
    target: str
    weight: float


class AttributionDocument(_Record):
    """An attribution graph."""

    metadata: MetadataRecord
    nodes: list[NodeRecord]
    links: list[LinkRecord]
    qParams: ViewRecord | None = Field(default=None)

    def more(self) -> dict[str, Any]:
        """Keys of the metadata that have no field here."""
        return self.metadata.model_extra or {}
