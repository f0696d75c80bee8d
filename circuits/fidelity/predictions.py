"""What replacing sites does to next-token predictions: losses and divergences from the model."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.metrics import kl_divergence

__all__ = ["counted_positions", "cross_entropy", "prediction_sums"]

_CHUNK = 64
"""Tokens whose vocabulary is held in float64 at once."""


def counted_positions(keep: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos_less_one"]:
    """Where a next-token loss counts: the position and the token it predicts are both kept.

    Example:
        >>> counted_positions(torch.tensor([[False, True, True, False]]))
        tensor([[False,  True, False]])
    """
    return keep[:, :-1] & keep[:, 1:]


def cross_entropy(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    keep: Bool[Tensor, "batch pos"],
) -> tuple[float, int]:
    """Summed next-token loss where both the position and the token it predicts are kept.

    Returns:
        Sum of losses in nats, and how many there were.
    """
    counted = counted_positions(keep)
    chunks = zip(
        logits[:, :-1][counted].split(_CHUNK), tokens[:, 1:][counted].split(_CHUNK), strict=True
    )
    losses = (
        torch.nn.functional.cross_entropy(chunk.double(), targets, reduction="sum").item()
        for chunk, targets in chunks
    )
    return sum(losses), int(counted.sum())


def prediction_sums(
    logits: Float[Tensor, "token d_vocab"],
    clean: Float[Tensor, "token d_vocab"],
    targets: Int[Tensor, " token"],
) -> tuple[float, float]:
    """Summed next-token loss, and summed KL(clean || logits), in nats and float64.

    Args:
        logits: with some sites replaced.
        clean: the model's own, of the same tokens.
        targets: the tokens that come next.
    """
    losses = divergences = 0.0
    for chunk, own, target in zip(
        logits.split(_CHUNK), clean.split(_CHUNK), targets.split(_CHUNK), strict=True
    ):
        log_q, log_p = chunk.double().log_softmax(-1), own.double().log_softmax(-1)
        losses += torch.nn.functional.nll_loss(log_q, target, reduction="sum").item()
        divergences += kl_divergence(log_p, log_q).sum().item()
    return losses, divergences
