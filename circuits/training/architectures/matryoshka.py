"""Matryoshka BatchTopK dictionaries (Bussmann et al. 2025): every prefix reconstructs by itself.

    a = BatchTopK over all features;  features lie in groups 1 .. G
    y_hat_g = sum over the features of groups 1 .. g of a_f W_dec[f]  + b_dec (+ x W_skip)
    loss = mean over g of mean over tokens of |y_hat_g - y|^2  +  aux_coefficient * AuxK

AuxK sees the error of the whole dictionary, y_hat_G - y.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.training.architectures.base import Finished, Memory, step_of
from circuits.training.architectures.batchtopk import BatchTopK, kept_entries, track
from circuits.training.entries import pre_activations
from circuits.training.step import Moment, Parameters, Step

__all__ = ["Matryoshka", "group_bounds"]


def group_bounds(shares: Sequence[float], n_features: int) -> list[int]:
    """Where each group begins, and where the last ends.

    Example:
        >>> group_bounds([0.25, 0.75], 8)
        [0, 2, 8]
    """
    bounds = [0, *(round(total * n_features) for total in accumulate(shares))]
    if any(stop <= start for start, stop in pairwise(bounds)):
        raise ValueError(
            f"every group needs a feature, got group_shares {tuple(shares)} of {n_features} "
            f"features: groups begin and end at {bounds}; want larger shares or more features"
        )
    return bounds


@dataclass(frozen=True)
class Matryoshka:
    """BatchTopK whose first features have to do alone as well.

    Args:
        whole: how features are chosen and what the dictionary becomes.
        group_shares: share of the features in each group, from the innermost.
    """

    whole: BatchTopK
    group_shares: tuple[float, ...]

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        group_bounds(self.group_shares, len(p["W_enc"]))
        self.whole.begin(p, memory, x)

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Step:
        z = pre_activations(p, x, moment)
        entries = kept_entries(p, x, z, self.whole.k * len(x), moment)
        track(memory, entries.raw, moment)
        bounds = group_bounds(self.group_shares, z.shape[1])
        groups = [(slice(*b), entries.group(*b)) for b in pairwise(bounds)]
        error = p["b_dec"] - y
        if "W_skip" in p:
            error.addmm_(x, p["W_skip"])
        errors = []
        for rows, group in groups:
            error = group.decode(group.raw, p["W_dec"][rows]).add_(error)
            errors.append(error)
        gradients = {name: torch.empty_like(p[name]) for name in ("W_enc", "W_dec", "b_enc")}
        g_out = torch.zeros_like(error)
        for (rows, group), missed in zip(reversed(groups), reversed(errors), strict=True):
            g_out.add_(missed, alpha=2 / (len(x) * len(groups)))
            g_z = group.value_gradients(p["W_dec"][rows], g_out) * (group.raw > 0)
            g_dec, g_enc = group.weight_gradients([(group.raw, g_out), (g_z, x)])
            gradients["W_dec"][rows], gradients["W_enc"][rows] = g_dec, g_enc
            gradients["b_enc"][rows] = group.sums(g_z)
        gradients["b_dec"] = g_out.sum(0)
        if "W_skip" in p:
            gradients["W_skip"] = x.T @ g_out
        self.whole.aux.add(gradients, p, x, error, z, moment)
        return step_of(gradients, error, entries, entries.raw)

    def constrain(self, p: Parameters) -> None:
        self.whole.constrain(p)

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        return self.whole.finish(p, memory)
