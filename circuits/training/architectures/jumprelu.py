"""JumpReLU dictionaries (Rajamanoharan et al. 2024) with straight-through thresholds.

    z = x W_enc^T + b_enc;  a = z H(z - t)
    loss = mean over tokens of |a W_dec + b_dec - y|^2 + penalty

With K(u) = 1 where |u| < 1/2 and bandwidth w (in the units of z):
    da/dt = -(t/w) K((z - t)/w),  dL0/dt = -(1/w) K((z - t)/w),  da/dz = H(z - t),  dL0/dz = 0.
The step of L0 sees pre-activations, and thresholds are raw float32 numbers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.training.architectures.base import (
    Code,
    Finished,
    Memory,
    active_per_token,
    feature_gradients,
    step_by_rule,
)
from circuits.training.architectures.penalties import Penalty
from circuits.training.entries import entries_above, pre_activations
from circuits.training.initial import fire_at_rate
from circuits.training.step import Moment, Parameters, Step

__all__ = ["JumpReLU"]


@dataclass(frozen=True)
class JumpReLU:
    """A learned threshold a feature.

    Args:
        penalty: what makes it sparse.
        bandwidth: w above; thresholds start at w and stay above w / 2, so that no inactive zero
            falls into the kernel.
        start_rate: share of tokens every feature fires on at the start.
    """

    penalty: Penalty
    bandwidth: float
    start_rate: float

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        fire_at_rate(p, x, rate=self.start_rate, threshold=self.bandwidth)
        p["threshold"] = torch.full_like(p["b_enc"], self.bandwidth)
        self.penalty.begin(memory)

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Step:
        return step_by_rule(self, p, memory, x, y, moment)

    def encode(self, p: Parameters, x: Float[Tensor, "token d_in"], moment: Moment) -> Code:
        z = pre_activations(p, x, moment)
        entries = entries_above(p, x, z, p["threshold"] - self.bandwidth / 2, moment)
        return Code(z, entries, entries.raw * (entries.raw > entries.at(p["threshold"])))

    def backward(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        code: Code,
        error: Float[Tensor, "token d_out"],
        g_out: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Parameters:
        w, entries, a = self.bandwidth, code.entries, code.a
        t = entries.at(p["threshold"])
        push = self.penalty.push(memory, p, entries, a, active_per_token(a, x), error, moment)
        g_a = entries.value_gradients(p["W_dec"], g_out) + push.activation
        kernel = ((entries.raw - t).abs() < w / 2).to(a.dtype).div_(-w)
        gradients = feature_gradients(x, entries, a, g_out, g_a * (entries.raw > t))
        gradients["threshold"] = entries.sums((t * g_a + push.gate) * kernel)
        push.add_to(gradients, p["W_dec"])
        return gradients

    def constrain(self, p: Parameters) -> None:
        p["threshold"].clamp_min_(self.bandwidth / 2)

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        parameters = {name: tensor for name, tensor in p.items() if name != "threshold"}
        return Finished(parameters, "jumprelu", threshold=p["threshold"])
