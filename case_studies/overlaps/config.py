"""The settings of a comparison of circuits."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from circuits.plausibility import CHECK

__all__ = ["OverlapConfig"]


class OverlapConfig(BaseModel):
    """Everything needed to repeat a comparison of circuits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    circuits: tuple[str, ...] = Field(
        min_length=1, description="study folders, or graph.json files; all groups of a folder"
    )
    positions: Literal["auto", "role", "position", "any"] = Field(
        default="auto",
        description="nodes are the same at the same role, at the same position, or wherever they "
        "are; auto: role where all graphs have roles, else position",
    )
    min_similarity: float = Field(
        default=0.7,
        ge=-1,
        le=1,
        description="two dictionaries: smallest mean cosine of encoders and decoders that makes "
        "two features the same",
    )
    chance: bool = Field(
        default=True,
        description="set overlaps against random circuits of the same size per layer; runs the "
        "model on the studies' prompts to see what they could be drawn from",
    )
    n_depths: int = Field(
        default=4, ge=1, description="groups of layers in which two models are compared"
    )
    check: bool = Field(default=True, description=CHECK)
