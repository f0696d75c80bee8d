"""The settings of a study: task, model, prompts, pruning, and the choices of the proof."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from circuits.plausibility import CHECK
from graphs import ProofChoices

__all__ = ["StudyConfig"]


class StudyConfig(BaseModel):
    """Everything needed to repeat a study."""

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
    n_behaviour: int = Field(default=200, ge=2, description="prompts that measure the behaviour")
    n_discovery: int = Field(
        default=24, ge=1, description="aligned prompts that choose the circuit"
    )
    n_proof: int = Field(default=64, ge=2, description="other aligned prompts that prove it")
    n_random: int = Field(
        default=20, ge=1, description="random circuits of the same size per layer"
    )
    node_threshold: float = Field(
        default=0.9, description="influence kept a prompt before ACDC, share"
    )
    threshold: float = Field(
        default=0.0005,
        ge=0,
        description="ACDC: smallest harm that keeps a node, as a share of KL(model, all patched)",
    )
    value: Literal["corrupted", "mean", "zero"] = Field(
        default="corrupted",
        description="proof: what ablated nodes carry, their value on the corrupted prompt, its "
        "mean over prompts, or zero; tokens can only be corrupted, else they stay clean",
    )
    errors: Literal["as chosen", "kept", "dropped"] = Field(
        default="as chosen",
        description="proof: error nodes are in the circuit if chosen, kept clean in every run, or "
        "ablated in every run",
    )
    direction: Literal["noising", "denoising"] = Field(
        default="noising",
        description="proof: ablate nodes in the clean run, or restore the others in the corrupted",
    )
    n_knockouts: int = Field(
        default=16, ge=1, description="proof: random parts of the circuit to knock out"
    )
    n_contexts: int = Field(
        default=1,
        ge=0,
        description="proof: random parts without which every node's harm is measured again; each "
        "costs a run for every node",
    )
    seed: int = Field(default=0, description="seed of prompts, random circuits and bootstrap")

    @model_validator(mode="after")
    def _can_be_proved(self) -> "StudyConfig":
        try:
            _ = self.choices
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @property
    def choices(self) -> ProofChoices:
        """The choices of the proof."""
        with_tokens = self.value == "corrupted"
        return ProofChoices(
            value=self.value,
            errors=self.errors,
            direction=self.direction,
            component=("features", "tokens", "MLPs") if with_tokens else ("features", "MLPs"),
        )
