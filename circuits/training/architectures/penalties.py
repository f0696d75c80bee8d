"""What makes a dictionary sparse: L1, L0, or a target for L0.

    l1         weight * sqrt(d_out) * mean over tokens of sum_f a_f |W_dec[f]|
    l0         weight * d_out * mean over tokens of L0
    l0_target  weight * d_out * (L0 / k - 1)^2

L0 is the mean number of active features a token. Targets have unit variance a dimension, so that
d_out stands for their variance and weights mean the same at every width. L1 weighs activations by
decoder norms (Conerly et al. 2024), so that a small a with a large decoder gains nothing; where
norms are held at 1 it is plain.

A weight of None is adapted to L0 = k. With u = log(L0 / k), kept within [-1, 1], the batch gets

    weight = base * exp(2 u),   and then   base <- base * exp(0.02 u)

The second line is a multiplier for the constraint; it remembers, and alone it would swing, for L0
follows the weight late. The first line answers at once and damps it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.training.entries import Entries
from circuits.training.step import Moment, Parameters

__all__ = ["Penalty", "PenaltyKind", "Push"]

PenaltyKind = Literal["l1", "l0", "l0_target"]
_FIRST, _LAST = {"l1": 0.5, "l0": 0.05}, {"l1": 10.0, "l0": 3.0}
_RATE = 0.02
_DAMPING = 2.0


@dataclass(frozen=True)
class Push:
    """Gradients of a penalty.

    Args:
        activation: with respect to the activation of an entry; a number, or one an entry.
        gate: with respect to whether an entry is active.
        decoder: with respect to the decoder, as a multiple of each of its rows; None for none.
    """

    activation: Tensor | float
    gate: float
    decoder: Float[Tensor, " feature"] | None

    def add_to(self, gradients: Parameters, W_dec: Float[Tensor, "feature d_out"]) -> None:
        """Add the gradient of the decoder."""
        if self.decoder is not None:
            gradients["W_dec"].addcmul_(self.decoder.unsqueeze(1), W_dec)


@dataclass(frozen=True)
class Penalty:
    """A sparsity penalty.

    Args:
        kind: see the module.
        k: wanted features a token.
        weight: its weight; None adapts it.
        unit_decoder: whether decoder rows are held at norm 1.
    """

    kind: PenaltyKind
    k: float
    weight: float | None
    unit_decoder: bool = False

    def __post_init__(self) -> None:
        if self.kind == "l0_target" and self.weight is None:
            raise ValueError("the penalty l0_target holds L0 by itself; give it a weight")

    def begin(self, memory: dict[str, Tensor]) -> None:
        """Put an adapted weight into `memory`."""
        if self.weight is None:
            memory["penalty"] = torch.tensor(_FIRST[self.kind] * self._unit, dtype=torch.float64)

    def push(
        self,
        memory: dict[str, Tensor],
        p: Parameters,
        entries: Entries,
        a: Tensor,
        l0: float,
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Push:
        """Gradients of the penalty on one batch, of mean over tokens; adapts the weight.

        Args:
            a: what L1 weighs, a number an entry and not negative.
            l0: active features a token in this process's batch.
        """
        n_tokens, d_out = y.shape
        l0 = moment.mean(torch.tensor(l0, dtype=torch.float64, device=y.device)).item()
        weight = self._weight(memory, l0, moment)
        if self.kind != "l1":
            slope = 1.0 if self.kind == "l0" else 2 * (l0 / self.k - 1) / self.k
            return Push(0.0, weight * d_out * slope / n_tokens, None)
        each = weight * d_out**0.5 / n_tokens
        if self.unit_decoder:
            return Push(each, 0.0, None)
        norms = p["W_dec"].norm(dim=1)
        return Push(entries.at(norms * each), 0.0, entries.sums(a) / norms.clamp_min(1e-12) * each)

    @property
    def _unit(self) -> float:
        """The size of a weight that matters: k equal features that explain everything have a sum
        of activations of about k^0.5 (for l1), and each of them explains 1 / k (for l0).
        """
        return self.k**-0.5 if self.kind == "l1" else 1 / self.k

    def _weight(self, memory: dict[str, Tensor], l0: float, moment: Moment) -> float:
        if self.weight is not None:
            return self.weight * moment.ramp
        excess = max(-1.0, min(1.0, math.log(max(l0, 1e-9) / self.k)))
        weight = memory["penalty"].item() * math.exp(_DAMPING * excess)
        most = _LAST[self.kind] * self._unit
        memory["penalty"].mul_(math.exp(_RATE * excess)).clamp_max_(most)
        return min(weight, most)
