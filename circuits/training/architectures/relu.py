"""ReLU dictionaries with an L1 penalty (Bricken et al. 2023; Conerly et al. 2024), or an L0 one.

    z = x W_enc^T + b_enc;  a = relu(z)
    loss = mean over tokens of |a W_dec + b_dec - y|^2 + penalty

L0 counts H(z), which has no gradient. Its straight-through step is, with K(u) = 1 where |u| < 1/2
and bandwidth w, dH(z)/dz := (1/w) K(z/w): the half of "ReLU, L0" in the comparison of
Rajamanoharan et al. 2024 ("Jumping ahead"), section 6.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuits.training.architectures.base import (
    Finished,
    Memory,
    active_per_token,
    gradients_of,
    reconstruct,
    step_of,
)
from circuits.training.architectures.penalties import Penalty
from circuits.training.architectures.unit_rows import project_out, rescale
from circuits.training.entries import entries_above, pre_activations
from circuits.training.initial import fill_decoder, fire_at_rate
from circuits.training.step import Moment, Parameters, Step

__all__ = ["ReLU"]


@dataclass(frozen=True)
class ReLU:
    """Keeps what is positive.

    Args:
        penalty: what makes it sparse.
        bandwidth: w above.
        start_rate: share of tokens every feature fires on at the start.
    """

    penalty: Penalty
    bandwidth: float
    start_rate: float

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        fire_at_rate(p, x, rate=self.start_rate, threshold=0.0)
        if self.penalty.unit_decoder:
            fill_decoder(p)
        self.penalty.begin(memory)

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Step:
        w = 0.0 if self.penalty.kind == "l1" else self.bandwidth
        z = pre_activations(p, x, moment)
        entries = entries_above(p, x, z, -w / 2, moment)
        a = entries.raw.clamp_min(0)
        error = reconstruct(p, x, entries, a).sub_(y)
        g_out = error * (2 / len(x))
        push = self.penalty.push(memory, p, entries, a, active_per_token(a, x), y, moment)
        g_z = (entries.value_gradients(p["W_dec"], g_out) + push.activation) * (a > 0)
        if w:
            g_z.add_(entries.raw.abs() < w / 2, alpha=push.gate / w)
        gradients = gradients_of(p, x, entries, a, g_out, g_z)
        push.add_to(gradients, p["W_dec"])
        if self.penalty.unit_decoder:
            project_out(gradients["W_dec"], p["W_dec"])
        return step_of(gradients, error, entries, a)

    def constrain(self, p: Parameters) -> None:
        if self.penalty.unit_decoder:
            rescale(p["W_dec"])

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        return Finished(p, "relu")
