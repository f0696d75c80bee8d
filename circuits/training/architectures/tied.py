"""Tied dictionaries (Cunningham et al. 2023, section 2): one normalised matrix reads and writes.

    m = rows of M divided by their norms;  c = relu(x m^T + b);  x_hat = c m
    loss = mean over tokens of |x_hat - x|^2 + penalty

The gradient of M passes through the division. Nothing is added to c m: scaled data have mean 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuits.training.architectures.base import Finished, Memory
from circuits.training.architectures.relu import ReLU
from circuits.training.architectures.unit_rows import project_out
from circuits.training.step import Moment, Parameters, Step

__all__ = ["Tied"]


@dataclass(frozen=True)
class Tied:
    """A ReLU SAE whose decoder is its encoder. `W_enc` is M; there is no `W_dec`, `b_dec` stays 0.

    Args:
        untied: the same with two matrices; its penalty has to know that rows have norm 1.
    """

    untied: ReLU

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        if "W_skip" in p or not torch.equal(p["W_enc"], p["W_dec"]):
            raise ValueError(
                "a tied dictionary reconstructs what it reads, so it is an SAE without a skip, "
                "whose decoder starts as its encoder; got a transcoder: train it with another "
                "architecture, or at a site other than mlp"
            )
        self.untied.begin(p, memory, x)
        del p["W_dec"]

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Step:
        norms = p["W_enc"].norm(dim=1, keepdim=True).clamp_min(1e-12)
        m = p["W_enc"] / norms
        step = self.untied.step(p | {"W_enc": m, "W_dec": m}, memory, x, y, moment)
        g_m = step.gradients["W_enc"].add_(step.gradients.pop("W_dec"))
        step.gradients["W_enc"] = project_out(g_m, m).div_(norms)
        step.gradients["b_dec"].zero_()
        return step

    def constrain(self, p: Parameters) -> None:
        pass

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        m = F.normalize(p["W_enc"], dim=1)
        return Finished(p | {"W_enc": m, "W_dec": m}, "relu")
