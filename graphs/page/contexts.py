"""A piece of text in which a feature was active, as the page shows it."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ShownContext"]


class ShownContext(BaseModel):
    """Tokens as text, with the feature's activation at each; the page shades by activation.

    Raises:
        ValueError: if there is not one activation a token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[str, ...] = Field(description="as text, spaces kept")
    values: tuple[float, ...] = Field(description="activations, 0 where it is not active")

    @model_validator(mode="after")
    def _one_each(self) -> "ShownContext":
        if len(self.tokens) != len(self.values):
            raise ValueError(
                f"a context needs one activation a token, got {len(self.values)} for "
                f"{len(self.tokens)} tokens"
            )
        return self
