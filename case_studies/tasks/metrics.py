"""The metrics of the tasks, from logits at the last position. Plain tensors, no model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["logit_difference", "probability_difference", "probability_of", "step_in_probability"]

TokenSets = Sequence[Int[Tensor, " _"]]
"""One tensor of token ids a row, each of its own length."""


def logit_difference(
    logits: Float[Tensor, "batch d_vocab"], correct: TokenSets, wrong: TokenSets
) -> Float[Tensor, " batch"]:
    """Mean logit of the right answers minus mean logit of the wrong ones, row by row.

    With one of each it is the logit difference of Wang et al. 2022, section 2.

    Example:
        >>> one = [torch.tensor([1])]
        >>> logit_difference(torch.tensor([[0.5, 3.0]]), one, [torch.tensor([0])])
        tensor([2.5000])
    """
    rows = zip(logits, correct, wrong, strict=True)
    return torch.stack(
        [row[right].mean() - row[not_right].mean() for row, right, not_right in rows]
    )


def probability_of(
    logits: Float[Tensor, "batch d_vocab"], answers: TokenSets
) -> Float[Tensor, " batch"]:
    """Summed probability of each row's answers under the softmax over the full vocabulary."""
    rows = zip(logits.softmax(-1), answers, strict=True)
    return torch.stack([row[ids].sum() for row, ids in rows])


def probability_difference(
    logits: Float[Tensor, "batch d_vocab"], correct: TokenSets, wrong: TokenSets
) -> Float[Tensor, " batch"]:
    """`sum p(right) - sum p(wrong)` under the softmax over the full vocabulary.

    Hanna et al. 2023, section 2; in [-1, 1], and all other tokens count for nothing.

    Example:
        >>> right, wrong = [torch.tensor([1, 2])], [torch.tensor([0])]
        >>> probability_difference(torch.zeros(1, 4), right, wrong)
        tensor([0.2500])
    """
    return probability_of(logits, correct) - probability_of(logits, wrong)


def step_in_probability(
    logits: Float[Tensor, "batch d_vocab"],
    above: Int[Tensor, " batch"],
    below: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """`p(above) - p(below)`: with the years just above and below YY, Hanna's cut-off sharpness."""
    p = logits.softmax(-1)
    row = torch.arange(len(p), device=p.device)
    return p[row, above] - p[row, below]
