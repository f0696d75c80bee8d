"""TopK dictionaries (Gao et al. 2024): squared error, and AuxK for dead features.

    z = x W_enc^T + b_enc;  a = the k largest z of a token, negative ones cut to 0
    loss = mean over tokens of |a W_dec + b_dec - y|^2  +  aux_coefficient * AuxK

Gradients are written out, over active features only; tests hold them against autograd.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuits.training.architectures.auxk import AuxK
from circuits.training.architectures.base import (
    Code,
    Finished,
    Memory,
    feature_gradients,
    step_by_rule,
)
from circuits.training.entries import chosen_entries, pre_activations
from circuits.training.step import Moment, Parameters, Step

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK:
    """Keeps the `k` largest pre-activations of a token.

    Args:
        k: features a token.
        aux: how dead features are revived.
    """

    k: int
    aux: AuxK

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        pass

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
        entries = chosen_entries(p, x, z, z.topk(self.k, dim=-1, sorted=False).indices)
        return Code(z, entries, entries.raw.clamp_min(0))

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
        g_z = code.entries.value_gradients(p["W_dec"], g_out) * (code.a > 0)
        gradients = feature_gradients(x, code.entries, code.a, g_out, g_z)
        self.aux.add(gradients, p, x, error, code.z, moment)
        return gradients

    def constrain(self, p: Parameters) -> None:
        pass

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        return Finished(p, "topk", k=self.k)
