"""The records of an evaluation: what `metrics.json` of a training or evaluation run holds."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["CrossEntropy", "Density", "DictionaryFidelity", "FidelityReport", "KLDivergence"]

_VERSION = 2
_NO_LOSS = "None where the ablation does not raise the loss, so that nothing is there to recover"


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class CrossEntropy(_Record):
    """Mean next-token losses, in nats, of the model and of what stands in for some of its sites."""

    clean: float = Field(description="the model itself, nats a token")
    spliced: float = Field(description="reconstructions in place of the sites, nats a token")
    mean_ablated: float = Field(description="the sites at their mean over the tokens, nats a token")
    zero_ablated: float = Field(description="the sites at zero, nats a token")
    recovered_mean: float | None = Field(
        description=f"CE recovered against mean ablation; 1 is perfect, 0 the ablation; {_NO_LOSS}"
    )
    recovered_zero: float | None = Field(
        description=f"CE recovered against zero ablation; 1 is perfect, 0 the ablation; {_NO_LOSS}"
    )


class KLDivergence(_Record):
    """Mean KL(model || what stands in for some of its sites), in nats, over the same tokens."""

    spliced: float = Field(description="reconstructions in place of the sites, nats a token")
    mean_ablated: float = Field(description="the sites at their mean over the tokens, nats a token")
    zero_ablated: float = Field(description="the sites at zero, nats a token")
    recovered_mean: float | None = Field(
        description="1 - spliced / mean_ablated; None where the ablation changes no prediction"
    )
    recovered_zero: float | None = Field(
        description="1 - spliced / zero_ablated; None where the ablation changes no prediction"
    )


class Density(_Record):
    """On what share of the tokens the features of one dictionary are active."""

    log10_edges: tuple[float, ...] = Field(description="edges of the histogram's bins, in log10")
    counts: tuple[int, ...] = Field(
        description="features a bin; the first also has what is rarer, and dead ones are in none"
    )
    above_1_percent: float = Field(description="share of features active on over 1 % of tokens")
    above_10_percent: float = Field(description="share of features active on over 10 % of tokens")


class DictionaryFidelity(_Record):
    """How well one dictionary does, alone in the model."""

    name: str = Field(description="SITE.LAYER; site mlp is a transcoder")
    n_features: int = Field(description="features of the dictionary")
    l0: float = Field(description="mean active features a token")
    fvu: float = Field(description="squared error over the target's variance about its mean")
    explained_variance: float = Field(description="1 - FVU")
    cosine: float = Field(description="mean cosine of target and reconstruction")
    l2_ratio: float = Field(description="mean |reconstruction| / |target|; below 1 is shrinkage")
    reconstruction_bias: float | None = Field(
        description="E|y_hat|^2 / E[y . y_hat]; below 1 is shrinkage; None where that is 0 / 0"
    )
    dead_share: float = Field(description="share of features active on none of the tokens")
    density: Density = Field(description="how often features are active")
    cross_entropy: CrossEntropy = Field(description="losses with this dictionary alone")
    kl: KLDivergence = Field(description="divergences with this dictionary alone")


class FidelityReport(_Record):
    """Every dictionary alone, and all of each kind of site together."""

    version: Literal[2] = Field(default=_VERSION, description="version of this record")
    model: str = Field(description="name of the subject model")
    n_tokens: int = Field(description="tokens measured on; left-out positions not counted")
    n_predictions: int = Field(
        description="tokens whose next token is measured on too; losses are means over these"
    )
    dictionaries: tuple[DictionaryFidelity, ...] = Field(description="each dictionary alone")
    together: dict[str, CrossEntropy] = Field(
        description="losses with all dictionaries of a site (mlp, resid_post, ...) at once"
    )
    together_kl: dict[str, KLDivergence] = Field(
        description="divergences with all dictionaries of a site at once"
    )

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, record: Any) -> Any:
        found = record.get("version", _VERSION) if isinstance(record, Mapping) else _VERSION
        if found != _VERSION:
            raise PydanticCustomError(
                "version",
                "this fidelity record has version {found}, want {wanted}: version 1 has no KL, "
                "cosine, shrinkage or density; measure the dictionaries with `circuits evaluate`",
                {"found": found, "wanted": _VERSION},
            )
        return record
