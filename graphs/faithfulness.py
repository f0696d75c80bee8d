"""Faithfulness: how much of the model's behaviour a circuit keeps when all else is patched.

    faithfulness = (m(C) - m(empty)) / (m(M) - m(empty))

on the unfrozen model, from means over prompts (not a mean of ratios), with a bootstrap interval.
One circuit under one choice of ablation; `graphs.proof` has the other choices and numbers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attribution.nodes import Node
from graphs.measures import Metric, kl_to_model
from graphs.proof.estimates import as_estimate, resampling, share, shares
from graphs.scorer import CircuitRunner

__all__ = ["Faithfulness", "Metric", "faithfulness", "kl_to_model", "normalised"]


class Faithfulness(BaseModel):
    """One circuit on one set of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    faithfulness: float = Field(description="(m(C) - m(empty)) / (m(M) - m(empty)), from means")
    interval: tuple[float, float] = Field(description="95 % bootstrap interval over prompts")
    metric_model: float = Field(description="mean metric of the model")
    metric_circuit: float = Field(description="mean metric of the circuit")
    metric_empty: float = Field(description="mean metric with every node patched")
    kl: float = Field(description="mean KL(model || circuit) at the last position, nats")
    ablation: str = Field(description="what nodes outside the circuit carry")
    n_prompts: int = Field(description="prompts measured on")


def normalised(
    circuit: Float[Tensor, " batch"], model: Float[Tensor, " batch"], empty: Float[Tensor, " batch"]
) -> float:
    """`(mean m(C) - mean m(empty)) / (mean m(M) - mean m(empty))`.

    Raises:
        ValueError: if the model does no better than the empty circuit, so that there is nothing to
            be faithful to.

    Example:
        >>> one, half, zero = torch.ones(2), torch.full((2,), 0.5), torch.zeros(2)
        >>> normalised(half, one, zero)
        0.5
    """
    span = float((model - empty).mean())
    if abs(span) < 1e-6:
        raise ValueError(
            f"the model's metric ({float(model.mean()):.4g}) equals the empty circuit's; choose a "
            "corruption that changes the behaviour"
        )
    return share(circuit - empty, model - empty)


def faithfulness(
    runner: CircuitRunner,
    nodes: Sequence[Node],
    metric: Metric,
    *,
    kept: Bool[Tensor, " node"] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Faithfulness:
    """Measure a circuit on the runner's prompts, everything else patched with corrupted values.

    Args:
        runner: holds clean and corrupted prompts; not the prompts that chose the circuit.
        nodes: the circuit's nodes (a graph's `nodes`), or more of them together with `kept`.
        metric: of last-position logits.
        kept: which of `nodes` are in the circuit; None takes all.
        n_bootstrap: resamples of the prompts.
        seed: of the resampling.

    Raises:
        ValueError: if the corruption does not change the metric.
    """
    kept = torch.ones(len(nodes), dtype=torch.bool) if kept is None else kept
    logits = runner.logits(nodes, kept[None])[0]
    circuit, model, empty = (
        metric(x).double().cpu() for x in (logits, runner.full_logits, runner.empty_logits)
    )
    value = normalised(circuit, model, empty)
    weights = resampling(len(model), n_resamples=n_bootstrap, seed=seed)
    resampled = shares(circuit - empty, model - empty, weights)
    estimate = as_estimate(value, resampled[resampled.isfinite()])
    return Faithfulness(
        faithfulness=value,
        interval=(estimate.low, estimate.high),
        metric_model=float(model.mean()),
        metric_circuit=float(circuit.mean()),
        metric_empty=float(empty.mean()),
        kl=float(kl_to_model(runner.full_logits, logits).mean()),
        ablation="each node outside the circuit takes its value on the corrupted prompt",
        n_prompts=len(model),
    )
