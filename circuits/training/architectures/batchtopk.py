"""BatchTopK dictionaries (Bussmann et al. 2024): the `k` a token largest activations of a batch.

    z = x W_enc^T + b_enc;  a = relu(z) where it is among the k * n_tokens largest of the batch
    loss = mean over tokens of |a W_dec + b_dec - y|^2  +  aux_coefficient * AuxK

Outside training there is no batch to compare with: the dictionary becomes a JumpReLU one, whose
threshold is the running mean of the smallest activation that was kept.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.training.architectures.auxk import AuxK
from circuits.training.architectures.base import (
    Finished,
    Memory,
    gradients_of,
    reconstruct,
    step_of,
)
from circuits.training.entries import Entries, GridEntries, entries_above, pre_activations
from circuits.training.step import Moment, Parameters, Step

__all__ = ["BatchTopK", "kept_entries", "largest", "track"]

_SAMPLE = 65_536
_MARGIN = 1.3
_RATE = 0.01


@dataclass(frozen=True)
class BatchTopK:
    """Keeps the largest pre-activations of a batch.

    Args:
        k: features a token, on average.
        aux: how dead features are revived.
    """

    k: int
    aux: AuxK

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        memory["threshold"] = torch.zeros((), dtype=torch.float64, device=x.device)
        memory["steps"] = torch.zeros((), dtype=torch.int64, device=x.device)

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Step:
        z = pre_activations(p, x, moment)
        entries = kept_entries(p, x, z, self.k * len(x), moment)
        a = entries.raw
        track(memory, a, moment)
        error = reconstruct(p, x, entries, a).sub_(y)
        g_out = error * (2 / len(x))
        g_z = entries.value_gradients(p["W_dec"], g_out) * (a > 0)
        gradients = gradients_of(p, x, entries, a, g_out, g_z)
        self.aux.add(gradients, p, x, error, z, moment)
        return step_of(gradients, error, entries, a)

    def constrain(self, p: Parameters) -> None:
        pass

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        threshold = memory["threshold"].to(p["b_enc"].dtype).expand_as(p["b_enc"])
        return Finished(p, "jumprelu", threshold=threshold)


def track(memory: Memory, a: Tensor, moment: Moment) -> None:
    """Let the smallest positive `a` into the running mean that `memory` keeps of it.

    The mean is plain over the first 1 / rate steps, so that a short run forgets where it began.
    """
    kept = a[a > 0]
    smallest = kept.min().double() if len(kept) else memory["threshold"]
    memory["steps"] += 1
    rate = max(_RATE, 1 / memory["steps"].item())
    memory["threshold"].lerp_(moment.mean(smallest), rate)


def kept_entries(
    p: Parameters,
    x: Float[Tensor, "token d_in"],
    z: Float[Tensor, "token feature"],
    n: int,
    moment: Moment,
) -> Entries:
    """The `n` largest positive pre-activations of the batch.

    A sample of `z` gives a floor that a little more than `n` exceed, and the choice among these is
    exact. If too few exceed it, a lower one is tried.
    """
    share = _MARGIN * n / z.numel()
    while True:
        floor = _exceeded_by(z, share)
        entries = entries_above(p, x, z, floor, moment)
        if floor == 0 or isinstance(entries, GridEntries) or entries.raw.numel() >= n:
            return entries.select(largest(entries.raw, n))
        share *= 2


def largest(values: Tensor, n: int) -> Bool[Tensor, "..."]:
    """Which are the `n` largest positive values; of equal ones the first are taken.

    Example:
        >>> largest(torch.tensor([2.0, 1.0, -1.0, 1.0]), 2)
        tensor([ True,  True, False, False])
    """
    flat = values.flatten()
    if len(flat) <= n:
        return values > 0
    cut = flat.topk(n, sorted=False).values.min()
    if cut <= 0:
        return values > 0
    kept = flat > cut
    ties = (flat == cut).nonzero().flatten()
    kept[ties[: n - int(kept.count_nonzero())]] = True
    return kept.view(values.shape)


def _exceeded_by(z: Float[Tensor, "token feature"], share: float) -> float:
    """About the value that a `share` of all entries exceeds, from a sample; 0 if it is negative.

    The sample takes every so manieth entry, at a distance without a common divisor with the number
    of features, so that it visits all of them.
    """
    distance = max(1, z.numel() // _SAMPLE)
    while math.gcd(distance, z.shape[1]) > 1:
        distance += 1
    sample = z.flatten()[::distance]
    rank = math.ceil(share * len(sample))
    if rank >= len(sample):
        return 0.0
    return max(0.0, sample.topk(rank, sorted=False).values.min().item())
