"""What a circuit graph was made from: enough for a stranger to say which model and which text."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["GraphMetadata"]


class GraphMetadata(BaseModel):
    """Where a graph comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="name of the subject model")
    prompt: str = Field(description="the text traced, or a description of several")
    tokens: tuple[str, ...] = Field(description="one string a position, BOS included")
    n_layers: int = Field(ge=0, description="number of blocks of the model")
    target: str = Field(description="what the output nodes measure, such as a logit difference")
    notes: dict[str, str] = Field(default_factory=dict, description="anything else, for readers")
