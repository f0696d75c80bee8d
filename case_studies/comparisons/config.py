"""What a comparison needs to be repeated."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ComparisonConfig", "Question"]

Question = Literal["sites", "architectures", "two-by-two", "size"]


class ComparisonConfig(BaseModel):
    """Settings of a comparison; the same settings give the same numbers on the same machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("tiny", description="subject model: a name or a path")
    questions: tuple[Question, ...] = Field(
        ("sites", "architectures", "two-by-two", "size"),
        min_length=1,
        description="`sites` (transcoder, skip transcoder and SAE on the MLP), `architectures` "
        "(JumpReLU, Gated, TopK), `two-by-two` ({ReLU, JumpReLU} x {L1, L0}), `size`",
    )
    layer: int | None = Field(None, ge=0, description="block to train at; None for the middle one")
    text: str = Field(
        "sample",
        description="`sample` (text sampled from the model), or a file, folder or hub dataset as "
        "for `circuits train`",
    )
    n_text_tokens: int = Field(491_520, ge=1, description="most distinct tokens of text")
    context: int = Field(128, ge=2, description="tokens a row of text, the first one BOS")
    n_tokens: int = Field(750_000, ge=1, description="tokens every dictionary is trained on")
    batch_size: int = Field(1024, ge=1, description="tokens an optimiser step")
    n_features: int = Field(768, ge=1, description="features a dictionary")
    levels: tuple[int, ...] = Field(
        (8, 16, 32, 64, 128), min_length=2, description="wanted L0, one dictionary each"
    )
    sizes: tuple[int, ...] = Field(
        (192, 384, 768, 1536, 3072), min_length=2, description="features, for `size`"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="of weights and order")
    learning_rates: tuple[float, ...] = Field(
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        min_length=1,
        description="tried for every method at its middle level with a seed of its own; the best "
        "by FVU among those within a quarter of the wanted L0, on rows used for nothing else, is "
        "taken",
    )
    n_eval_rows: int = Field(
        48, ge=1, description="rows for the results; as many more choose the learning rates"
    )
