"""What a circuit's last-position logits are measured by: a task's metric, and KL to the model."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from circuits.metrics import kl_divergence

__all__ = ["Metric", "kl_to_model"]

Metric = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, " batch"]]
"""A task's metric of last-position logits, one number a prompt, higher is better."""


def kl_to_model(
    full: Float[Tensor, "batch d_vocab"], logits: Float[Tensor, "*circuit batch d_vocab"]
) -> Float[Tensor, "*circuit batch"]:
    """KL(model || circuit) of the next-token distributions, in nats."""
    return kl_divergence(full.log_softmax(-1), logits.log_softmax(-1))
