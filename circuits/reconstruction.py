"""How well a dictionary reconstructs its target: running sums over tokens, in float64.

Ratios are taken once, at the end, so that how the text was cut into batches changes nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ReconstructionSums"]


class ReconstructionSums:
    """Sums that compare reconstructions `y_hat` with their target `y`, over batches of any size.

    The target is shifted by its first row's value while its variance is summed, so that a mean far
    from 0 cancels nothing.
    """

    def __init__(self) -> None:
        self.n_tokens = 0
        self._n_nonzero = 0
        self._error = self._square_hat = self._product = 0.0
        self._cosine = self._ratio = 0.0
        self._square = 0.0
        self._shift: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> None:
        """Count one batch."""
        if not len(y):
            return
        y, y_hat = y.double(), y_hat.double()
        self._add_target(y)
        product, norm, norm_hat = (y * y_hat).sum(1), y.norm(dim=1), y_hat.norm(dim=1)
        self._error += (y - y_hat).square().sum().item()
        self._product += product.sum().item()
        self._square_hat += y_hat.square().sum().item()
        # A zero target has neither direction nor size to compare with; a zero guess has cosine 0.
        own = norm > 0
        ratio = norm_hat[own] / norm[own]
        cosine = product[own] / (norm[own] * norm_hat[own])
        self._cosine += torch.where(ratio == 0, 0.0, cosine).sum().item()
        self._ratio += ratio.sum().item()
        self._n_nonzero += len(ratio)

    def _add_target(self, y: Float[Tensor, "token d"]) -> None:
        self._shift = y[0].clone() if self._shift is None else self._shift
        shifted = y - self._shift
        self._square += shifted.square().sum().item()
        total = shifted.sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self.n_tokens += len(y)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the target so far, in float64."""
        if self._shift is None or self._sum is None:
            raise ValueError("there is no token to average over; every position was left out")
        return self._shift + self._sum / self.n_tokens

    def fvu(self) -> float:
        """Squared error over variance; see `circuits.metrics.fvu`."""
        shifted_mean = 0.0 if self._sum is None else self._sum.square().sum().item() / self.n_tokens
        variance = self._square - shifted_mean
        if not variance > 0:
            raise ValueError(
                f"FVU needs a target that varies, got {self.n_tokens} tokens without variance"
            )
        return self._error / variance

    def cosine(self) -> float:
        """Mean cosine of target and reconstruction; see `circuits.metrics.cosine`."""
        return self._cosine / self._checked_n_nonzero()

    def l2_ratio(self) -> float:
        """Mean ratio of norms; see `circuits.metrics.l2_ratio`."""
        return self._ratio / self._checked_n_nonzero()

    def _checked_n_nonzero(self) -> int:
        if not self._n_nonzero:
            raise ValueError(
                "cosine and l2 ratio need a target that is not zero, got zeros on all "
                f"{self.n_tokens} tokens"
            )
        return self._n_nonzero

    def reconstruction_bias(self) -> float | None:
        """`E|y_hat|^2 / E[y . y_hat]`, None where that is 0 / 0; see `circuits.metrics`."""
        if self._product == 0:
            return None
        return self._square_hat / self._product
