"""Gated dictionaries (Rajamanoharan et al. 2024, "Improving dictionary learning with gated SAEs").

    pi = x W_enc^T + b_enc;  m = relu(exp(r) * (x W_enc^T) + b_mag);  a = H(pi) m
    loss = mean over tokens of |a W_dec + b_dec (+ x W_skip) - y|^2
                             + |relu(pi) W_dec' + b_dec' (+ x W_skip') - y|^2
           + penalty on relu(pi)

A prime stops gradients: the second reconstruction teaches the gate and nothing else. The penalty
is L1, weighted by decoder norms unless they are held at 1; the norms are primed too, or the decoder
would shrink without end while r makes up for it in the first reconstruction. What is learned is
exactly a JumpReLU dictionary: pi > 0 says that exp(r) * (x W_enc^T) + b_mag exceeds
b_mag - exp(r) b_enc.
"""

from dataclasses import dataclass

import torch
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

__all__ = ["Gated"]


@dataclass(frozen=True)
class Gated:
    """One bias decides whether a feature is active, another and a scale decide how much.

    Args:
        penalty: what makes it sparse.
        start_rate: share of tokens every feature fires on at the start.
    """

    penalty: Penalty
    start_rate: float

    def __post_init__(self) -> None:
        if self.penalty.kind != "l1":
            raise ValueError(f"gated dictionaries take the penalty l1, got {self.penalty.kind}")

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        fire_at_rate(p, x, rate=self.start_rate, threshold=0.0)
        if self.penalty.unit_decoder:
            fill_decoder(p)
        p["b_mag"] = p["b_enc"].clone()
        p["r"] = torch.zeros_like(p["b_enc"])
        self.penalty.begin(memory)

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Step:
        entries = entries_above(p, x, pre_activations(p, x, moment), 0.0, moment)
        scale, W_dec = entries.at(p["r"].exp()), p["W_dec"]
        gate = entries.raw.clamp_min(0)
        scaled = (entries.raw - entries.at(p["b_enc"])) * scale
        a = (scaled + entries.at(p["b_mag"])).clamp_min_(0) * (gate > 0)
        error = reconstruct(p, x, entries, a).sub_(y)
        gate_error = reconstruct(p, x, entries, gate).sub_(y)
        g_out = error * (2 / len(x))
        push = self.penalty.push(memory, p, entries, gate, active_per_token(a, x), y, moment)
        g_m = entries.value_gradients(W_dec, g_out) * (a > 0)
        g_pi = entries.value_gradients(W_dec, gate_error.mul_(2 / len(x))) + push.activation
        g_pi *= gate > 0
        gradients = gradients_of(p, x, entries, a, g_out, g_m * scale + g_pi)
        gradients["b_enc"] = entries.sums(g_pi)
        gradients["b_mag"] = entries.sums(g_m)
        gradients["r"] = entries.sums(g_m * scaled)
        if self.penalty.unit_decoder:
            project_out(gradients["W_dec"], W_dec)
        return step_of(gradients, error, entries, a)

    def constrain(self, p: Parameters) -> None:
        if self.penalty.unit_decoder:
            rescale(p["W_dec"])

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        scale = p["r"].exp()
        threshold = (p["b_mag"] - scale * p["b_enc"]).clamp_min(0)
        shared = {name: tensor for name, tensor in p.items() if name not in ("b_mag", "r")}
        encoder = {"W_enc": scale.unsqueeze(1) * p["W_enc"], "b_enc": p["b_mag"]}
        return Finished(shared | encoder, "jumprelu", threshold=threshold)
