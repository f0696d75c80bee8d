"""What a dictionary expects of its input and was taught to write: facts that weights do not show.

Read as another convention than it was trained with, a dictionary is garbage without a word, so
every file's convention is declared, applied when it is put into a model, and tested there.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NATIVE", "Convention"]


class Convention(BaseModel):
    """How a dictionary was trained; the defaults are this package's own convention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: Literal["gain and bias", "bare", "none"] = Field(
        default="gain and bias",
        description="what a transcoder reads: the output of the norm before the MLP with gain and "
        "bias, that output without them, or the residual stream before the norm",
    )
    subtracted: Literal["nothing", "b_dec", "own vector"] = Field(
        default="nothing",
        description="what was subtracted from the input; `b_enc` has it folded in since the file "
        "was read",
    )
    centred: bool = Field(
        default=False,
        description="trained on a model whose writing weights were centred: activations had mean 0 "
        "over d_model",
    )
    output: Literal["before post-norm", "after post-norm"] = Field(
        default="before post-norm",
        description="what a transcoder predicts where an MLP has a post-norm",
    )
    bos: Literal["in front", "none", "unknown"] = Field(
        default="unknown", description="whether training rows began with a BOS token"
    )
    first_position: Literal["read", "left out", "unknown"] = Field(
        default="unknown", description="whether the first token of a row was trained on"
    )


NATIVE = Convention()
"""What `circuits train` makes, and what attribution computes with."""
