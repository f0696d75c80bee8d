"""A bigram model as the yardstick of `tiny` on prose."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["bigram_log_probabilities", "bigram_loss"]


def bigram_log_probabilities(
    rows: Int[Tensor, "row context"], d_vocab: int, *, backoff: float = 4.0
) -> Float[Tensor, "d_vocab d_vocab"]:
    """`log p(next | token)` from counts, smoothed towards the unigram distribution.

        p(b | a) = (count(a, b) + backoff * unigram(b)) / (count(a) + backoff)

    The unigram counts start at one a token. `backoff` is in tokens.
    """
    pairs = rows[:, :-1].long() * d_vocab + rows[:, 1:].long()
    counts = torch.bincount(pairs.flatten(), minlength=d_vocab**2).view(d_vocab, d_vocab).double()
    unigram = counts.sum(0) + 1
    unigram = unigram / unigram.sum()
    smoothed = counts + backoff * unigram
    return (smoothed / smoothed.sum(1, keepdim=True)).log().float()


def bigram_loss(log_p: Float[Tensor, "d_vocab d_vocab"], rows: Int[Tensor, "row context"]) -> float:
    """Mean next-token loss on `rows`, in nats a token."""
    return -float(log_p[rows[:, :-1].long(), rows[:, 1:].long()].double().mean())
