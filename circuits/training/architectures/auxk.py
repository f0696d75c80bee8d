"""AuxK (Gao et al. 2024): dead features learn to predict what the living ones missed.

a = relu of the `k` largest z over dead features
AuxK = coefficient * min(n_dead / k, 1) * mean over tokens of |a W_dec - (y - y_hat)|^2
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.training.step import Moment, Parameters

__all__ = ["AuxK"]


@dataclass(frozen=True)
class AuxK:
    """The auxiliary loss.

    Args:
        k: dead features used a token.
        coefficient: its weight; 0 for none.
    """

    k: int
    coefficient: float

    def add(
        self,
        gradients: Parameters,
        p: Parameters,
        x: Float[Tensor, "token d_in"],
        error: Float[Tensor, "token d_out"],
        z: Float[Tensor, "token feature"],
        moment: Moment,
    ) -> None:
        """Add the gradients of AuxK to `gradients`.

        What was missed is a constant, so that no gradient reaches living features or `b_dec`.

        Args:
            error: y_hat - y.
            z: pre-activations of all features.
        """
        dead = moment.dead
        if not self.coefficient or not len(dead):
            return
        a = z[:, dead].to(x.dtype).clamp_min_(0)
        if len(dead) > self.k:
            value, index = a.topk(self.k, dim=-1, sorted=False)
            a = torch.zeros_like(a).scatter_(-1, index, value)
        slope = 2 * self.coefficient * min(len(dead) / self.k, 1.0) / len(x)
        W_dec = p["W_dec"][dead]
        buffer = moment.work.take("auxk", *error.shape, like=error)
        missed = torch.addmm(error, a, W_dec, out=buffer)
        g_z = (missed @ W_dec.T).mul_(a > 0).mul_(slope)
        gradients["W_dec"].index_add_(0, dead, a.mul_(slope).T @ missed)
        gradients["W_enc"].index_add_(0, dead, g_z.T @ x)
        gradients["b_enc"].index_add_(0, dead, g_z.sum(0))
