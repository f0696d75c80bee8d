"""The six choices behind every proof number, named: Miller et al. 2024.

"Transformer Circuit Faithfulness Metrics are not Robust": two faithfulness numbers compare only if
all six agree, so each is a field with a closed vocabulary and is printed with the number.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Component", "ProofChoices"]

Component = Literal["features", "tokens", "MLPs"]
"""What may be ablated beside errors; MLPs are those that no transcoder replaces."""

_DIRECTIONS = {
    "noising": "noising (clean run, ablated nodes patched in)",
    "denoising": "denoising (corrupted run, the other nodes patched in clean)",
}


class ProofChoices(BaseModel):
    """How a circuit is tested on the live model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Literal["corrupted", "mean", "zero"] = Field(
        description="what an ablated node carries: its value on the corrupted prompt (resample), "
        "its mean over reference prompts at its position, or zero"
    )
    errors: Literal["as chosen", "kept", "dropped"] = Field(
        description="error nodes: in the circuit if they were chosen; clean in every run, the "
        "empty circuit's too; or ablated in every run but the model's own"
    )
    unit: Literal["node", "edge", "path"] = Field(default="node", description="what is ablated")
    component: tuple[Component, ...] = Field(
        default=("features", "tokens", "MLPs"),
        min_length=1,
        description="kinds of nodes that are ablated; the rest stays live in every run",
    )
    positions: Literal["each", "all"] = Field(
        default="each",
        description="whether a unit is a node at one position, or at all positions at once",
    )
    direction: Literal["noising", "denoising"] = Field(
        default="noising",
        description="start from the clean run and patch what is ablated, or start from the "
        "corrupted run and restore what is not",
    )
    ablated: Literal["outside the circuit", "the circuit", "everything"] = Field(
        default="outside the circuit", description="which set of nodes is ablated"
    )

    @model_validator(mode="after")
    def _can_be_run(self) -> "ProofChoices":
        if len(set(self.component)) < len(self.component):
            raise ValueError(f"component must name each kind once, got {self.component}")
        if self.value != "corrupted" and "tokens" in self.component:
            raise ValueError(
                f"tokens have no {self.value} value, only a corrupted one; leave 'tokens' out of "
                f"component, got {self.component}"
            )
        if self.value != "corrupted" and self.direction == "denoising":
            raise ValueError(
                f"denoising starts from a corrupted prompt, got value {self.value!r}; use "
                "direction 'noising'"
            )
        return self

    def on(
        self, ablated: Literal["outside the circuit", "the circuit", "everything"]
    ) -> "ProofChoices":
        """The same choices for the other numbers of a proof: another set ablated."""
        return self.model_copy(update={"ablated": ablated})

    def __str__(self) -> str:
        """All six, and what becomes of errors, in one line."""
        return (
            f"unit {self.unit}; component {', '.join(self.component)}, errors {self.errors}; "
            f"value {self.value}; positions {self.positions}; direction "
            f"{_DIRECTIONS[self.direction]}; set {self.ablated}"
        )
