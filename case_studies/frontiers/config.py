"""Everything needed to repeat a run of `circuits frontier`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from circuits.plausibility import CHECK

__all__ = ["FrontierConfig"]


class FrontierConfig(BaseModel):
    """Settings of `circuits frontier`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["greater-than", "ioi"] = Field(description="which behaviour")
    model: str = Field(default="tiny", description="subject model: a name or a path")
    dictionaries: str = Field(
        default="tiny", description="a published set, or a file or folder of dictionaries"
    )
    check: bool = Field(default=True, description=CHECK)
    frames: Literal["plain", "story"] = Field(
        default="plain", description="ioi: everyday sentences, or those of a children's story"
    )
    n_discovery: int = Field(default=12, ge=1, description="aligned prompts that rank the units")
    n_proof: int = Field(default=64, ge=2, description="other aligned prompts that measure")
    n_random: int = Field(default=12, ge=2, description="random circuits a size")
    size_factor: float = Field(default=2.0, gt=1, description="from one size to the next, times")
    steps: int = Field(default=10, ge=1, description="integrated gradients: points a path")
    node_threshold: float = Field(
        default=0.9, gt=0, le=1, description="feature ACDC: influence kept a prompt before, share"
    )
    thresholds: tuple[float, ...] = Field(
        default=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
        min_length=1,
        description="ACDC: smallest harm that keeps a unit, share of KL(model, all patched)",
    )
    seed: int = Field(default=0, ge=0, description="seed of prompts, random circuits and bootstrap")
    memory_mib: int = Field(default=64, ge=1, description="about what one measuring call may take")
