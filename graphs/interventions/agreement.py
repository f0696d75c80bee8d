"""How well predicted effects agree with observed ones: rank, line, distance, sign."""

from jaxtyping import Float, Num
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attribution.effects.agreement import measure_agreement

__all__ = ["EffectAgreement", "average_ranks", "compare_effects"]


class EffectAgreement(BaseModel):
    """Predictions against observations, one pair a node or group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spearman: float = Field(description="correlation of ranks, in [-1, 1]")
    pearson: float = Field(description="correlation of values, in [-1, 1]")
    slope: float = Field(description="of the least-squares line of observations on predictions")
    mean_absolute_error: float = Field(description="of predictions, in the target's units")
    mean_absolute_effect: float = Field(description="of observations, to lay the error beside")
    same_sign: float = Field(description="share of pairs with the same sign, both 0 left out")
    n: int = Field(description="number of pairs")


def compare_effects(
    predicted: Float[Tensor, " pair"], observed: Float[Tensor, " pair"]
) -> EffectAgreement:
    """Compare pairs, in float64.

    Raises:
        ValueError: if all predictions or all observations are the same.

    Example:
        >>> import torch
        >>> found = compare_effects(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 8.0]))
        >>> round(found.spearman, 6), found.mean_absolute_error
        (1.0, 2.0)
    """
    values = measure_agreement(predicted, observed)
    ranks = measure_agreement(average_ranks(predicted), average_ranks(observed))
    gap = (predicted.double() - observed.double()).abs()
    return EffectAgreement(
        spearman=ranks.correlation,
        pearson=values.correlation,
        slope=values.slope,
        mean_absolute_error=float(gap.mean()),
        mean_absolute_effect=float(observed.double().abs().mean()),
        same_sign=values.same_sign,
        n=values.n,
    )


def average_ranks(values: Num[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 1, lowest first; equal values share the mean of their ranks.

    Example:
        >>> import torch
        >>> average_ranks(torch.tensor([5.0, 1.0, 5.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]
