"""What a reader wants to know of a node beyond its numbers: shown in labels and on hover."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NodeNotes"]


class NodeNotes(BaseModel):
    """Names and top tokens of one node, strongest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field("", description="short name; empty leaves the node's own")
    deembedding: tuple[str, ...] = Field((), description="tokens that push the feature most")
    promoted: tuple[str, ...] = Field((), description="tokens whose logit the node raises most")
    suppressed: tuple[str, ...] = Field((), description="tokens whose logit the node lowers most")
