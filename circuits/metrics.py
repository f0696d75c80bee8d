"""Fidelity metrics as plain functions: L0, FVU, dead share, CE recovered.

Sums run in float64 over all tokens before any ratio is taken.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SquaredError", "ce_recovered", "dead_share", "fvu", "l0"]


def l0(a: Float[Tensor, "token feature"]) -> float:
    """Mean number of active features a token; leave BOS out of `a`.

    Example:
        >>> l0(torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
        1.5
    """
    return a.count_nonzero().item() / len(a)


def dead_share(a: Float[Tensor, "token feature"]) -> float:
    """Share of features that are active on no token.

    Example:
        >>> dead_share(torch.tensor([[0.0, 2.0], [0.0, 3.0]]))
        0.5
    """
    return (a == 0).all(0).double().mean().item()


def fvu(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> float:
    """Squared error over the target's variance about its mean, both summed over all tokens.

        FVU = sum |y - y_hat|^2 / sum |y - mean(y)|^2

    0 is perfect, 1 predicts the mean. For a transcoder `y` is the MLP's output, not its input.

    Raises:
        ValueError: if the target does not vary.

    Example:
        >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
        1.0
    """
    sums = SquaredError(y.shape[1])
    sums.add(y, y_hat)
    return sums.fvu()


class SquaredError:
    """Running sums for `fvu`, over batches of any size.

    The target is shifted by its first row's value while summing, so that a mean far from 0
    cancels nothing.
    """

    def __init__(self, d: int) -> None:
        self.n_tokens = 0
        self._error = 0.0
        self._square = 0.0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(d, dtype=torch.float64)

    def add(self, y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> None:
        """Count one batch."""
        y, y_hat = y.cpu().double(), y_hat.cpu().double()
        if not len(y):
            return
        self._shift = y[0].clone() if self._shift is None else self._shift
        self._error += (y - y_hat).square().sum().item()
        shifted = y - self._shift
        self._square += shifted.square().sum().item()
        self._sum += shifted.sum(0)
        self.n_tokens += len(y)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the target so far, in float64."""
        if self._shift is None:
            raise ValueError("there is no token to average over; every position was left out")
        return self._shift + self._sum / self.n_tokens

    def fvu(self) -> float:
        """Squared error over variance, of everything counted."""
        variance = self._square - self._sum.square().sum().item() / max(self.n_tokens, 1)
        if not variance > 0:
            raise ValueError(
                f"FVU needs a target that varies, got {self.n_tokens} tokens without variance"
            )
        return self._error / variance


def ce_recovered(clean: float, spliced: float, ablated: float) -> float:
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_clean), from mean losses.

    1 is as good as the model, 0 as bad as the ablation; name the ablation with every figure.

    Raises:
        ValueError: if the ablation leaves the loss as it is.

    Example:
        >>> ce_recovered(clean=2.0, spliced=2.5, ablated=4.0)
        0.75
    """
    if ablated == clean:
        raise ValueError(
            f"the ablated loss equals the clean one ({clean:.6g}), so there is nothing to recover"
        )
    return (ablated - spliced) / (ablated - clean)
