"""Numbers with bootstrap intervals over prompts: means, and ratios of means.

Never a mean of ratios: a prompt whose own denominator is near zero would decide it.
"""

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = [
    "Estimate",
    "as_estimate",
    "check_span",
    "mean_estimate",
    "resampling",
    "share",
    "share_estimate",
    "shares",
]

_TAIL = 0.025


class Estimate(BaseModel):
    """A number and its 95 % percentile bootstrap interval over prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float = Field(description="2.5 % quantile over resampled prompts, at most the value")
    high: float = Field(description="97.5 % quantile over resampled prompts, at least the value")

    def __str__(self) -> str:
        return f"{self.value:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


def resampling(n_prompts: int, *, n_resamples: int, seed: int) -> Float[Tensor, "resample prompt"]:
    """How much each prompt counts in each resample; rows add up to 1, as draws with replacement.

    `resampling(...) @ values` is the mean of every resample. One matrix serves every number of a
    proof, so that they vary together.

    Raises:
        ValueError: if there is no prompt or no resample.
    """
    if n_prompts < 1 or n_resamples < 1:
        raise ValueError(f"want at least one prompt and resample, got {n_prompts}, {n_resamples}")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(n_prompts, (n_resamples, n_prompts), generator=generator)
    counts = torch.zeros(n_resamples, n_prompts, dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(counts))
    return counts / n_prompts


def as_estimate(value: float, resampled: Float[Tensor, " resample"]) -> Estimate:
    """`value` with the quantiles of what it is on resamples.

    The interval is widened to `value` where skew or rounding would leave that outside. Resamples
    without a value (0 of 0, where no prompt drawn was changed by the ablation) are left out.
    """
    tails = torch.tensor([_TAIL, 1 - _TAIL], dtype=resampled.dtype)
    low, high = resampled.nanquantile(tails).tolist()
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def mean_estimate(
    values: Float[Tensor, " prompt"], weights: Float[Tensor, "resample prompt"]
) -> Estimate:
    """The mean over prompts."""
    return as_estimate(float(values.mean()), weights @ values)


def share(part: Float[Tensor, " prompt"], whole: Float[Tensor, " prompt"]) -> float:
    """`mean part / mean whole` over all prompts."""
    return float(part.mean() / whole.mean())


def shares(
    part: Float[Tensor, "*circuit prompt"],
    whole: Float[Tensor, " prompt"],
    weights: Float[Tensor, "resample prompt"],
) -> Float[Tensor, "*circuit resample"]:
    """`mean part / mean whole`, means taken over prompts by each row of `weights`."""
    return (part @ weights.T) / (weights @ whole)


def share_estimate(
    part: Float[Tensor, " prompt"],
    whole: Float[Tensor, " prompt"],
    weights: Float[Tensor, "resample prompt"],
) -> Estimate:
    """`mean part / mean whole`: with `part = m(C) - m(empty)`, `whole = m(M) - m(empty)`, the
    faithfulness of a circuit C.

    Example:
        >>> weights = resampling(2, n_resamples=100, seed=0)
        >>> share_estimate(torch.tensor([1.0, 1.0]).double(), torch.tensor([1.0, 3.0]).double(),
        ...                weights).value
        0.5
    """
    return as_estimate(share(part, whole), shares(part, whole, weights))


def check_span(
    model: Float[Tensor, " prompt"],
    empty: Float[Tensor, " prompt"],
    weights: Float[Tensor, "resample prompt"],
) -> Float[Tensor, " prompt"]:
    """`m(M) - m(empty)` of every prompt, what all shares are of.

    Raises:
        ValueError: if its mean is zero, or its sign unsure, so that a share of it means nothing.
    """
    span = model - empty
    mean, resampled = float(span.mean()), weights @ span
    agreeing = float(((resampled * mean) > 0).double().mean())
    if abs(mean) < 1e-6 or agreeing < 1 - _TAIL:
        raise ValueError(
            f"the model's metric ({float(model.mean()):.4g}) must differ from the empty circuit's "
            f"({float(empty.mean()):.4g}), but over {len(span)} prompts only {agreeing:.1%} of the "
            "resamples agree that it does; take more prompts, or an ablation that changes the "
            "behaviour"
        )
    return span
