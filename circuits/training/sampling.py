"""Text sampled from the subject model itself, where there is no corpus of its own kind."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.subject import SubjectModel

__all__ = ["choose", "sample_rows"]


def choose(
    logits: Float[Tensor, "batch d_vocab"], uniform: Float[Tensor, "batch one"]
) -> Int[Tensor, "batch one"]:
    """One token a row from softmax(logits), by inverting the cumulative distribution.

    Args:
        logits: unnormalised log probabilities.
        uniform: numbers in [0, 1) that decide.

    Example:
        >>> choose(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.75]]))
        tensor([[1]])
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return chosen.clamp_max(logits.shape[-1] - 1)


def sample_rows(
    model: SubjectModel, n_rows: int, context: int, *, bos: int, seed: int, batch_rows: int = 256
) -> Iterator[Int[Tensor, "row context"]]:
    """Batches of rows that begin with BOS and go on as the model would (temperature 1).

    Args:
        n_rows: rows in all.
        context: tokens a row, BOS included.
        bos: id of the first token of every row.
        seed: the same seed gives the same rows on the same machine.
        batch_rows: rows sampled side by side.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n_rows, batch_rows):
        n = min(batch_rows, n_rows - start)
        uniform = torch.rand(n, context, generator=generator).to(model.device)
        rows = torch.full((n, 1), bos, device=model.device)
        cache = None
        with torch.inference_mode():
            for position in range(1, context):
                logits, cache = model.extend(rows[:, -1:], cache)
                token = choose(logits.float(), uniform[:, position, None])
                rows = torch.cat([rows, token], dim=1)
        yield rows.clone().cpu()
