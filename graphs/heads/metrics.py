"""What a circuit's output is judged by: one number from the logits at the last position."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.metrics import kl_divergence

__all__ = ["Metric", "logit_difference", "mean_kl"]

Metric = Callable[[Tensor], Tensor]
"""From last-position logits [batch, d_vocab] to a scalar. A mean over prompts, for scores that do
not grow with their number."""


def mean_kl(reference: Float[Tensor, "batch d_vocab"]) -> Metric:
    """KL(reference || circuit) in nats, the mean over prompts; 0 where they agree, never less.

    Args:
        reference: the logits to stay close to, normally the model's on the clean prompts.
    """
    log_p = reference.detach().log_softmax(-1)
    return lambda logits: kl_divergence(log_p, logits.log_softmax(-1)).mean()


def logit_difference(correct: Int[Tensor, " batch"], wrong: Int[Tensor, " batch"]) -> Metric:
    """Logit of the correct token minus that of the wrong one, the mean over prompts.

    Higher is better: ACDC, which wants lower, takes its negative.
    """

    def metric(logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return (logits[rows, correct] - logits[rows, wrong]).mean()

    return metric
