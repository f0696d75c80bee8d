"""Minimality: does every unit of the circuit matter, alone or once others are gone?

Wang et al. 2023 (IOI), section 4: for every v in C there should be a K inside C without v such that
`|F(C without K and v) - F(C without K)|` is at least 1 % of F(M).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphs.proof.trial import Measure

__all__ = ["removal_harms"]


def removal_harms(
    measure: Measure, circuit: Bool[Tensor, " unit"], knockouts: Bool[Tensor, "context unit"]
) -> tuple[Int[Tensor, " member"], Float[Tensor, "context member prompt"]]:
    """How much removing each unit lowers the metric, in the circuit without each K.

        harm[K, v] = m(C without (K without v)) - m(C without (K and v))

    Taking v itself out of K first makes every K a context for every v. Each context is run alone,
    then its changes from the top layer down: a runner that holds its last circuit
    (`graphs.scorer.CircuitRunner`) then begins at the layer that changes.

    Args:
        measure: runs circuits, the units of lower layers first.
        circuit: flags of C.
        knockouts: the K; an empty row is C itself.

    Returns:
        The units of C, and their harms in the metric's units; negative where the removal helps.
    """
    members = circuit.nonzero().flatten()
    harms = []
    for base in circuit & ~knockouts:
        flipped = base.repeat(len(members), 1)
        flipped[torch.arange(len(members)), members] ^= True
        whole = measure(base[None]).metric
        changed = measure(flipped.flip(0)).metric.flip(0)
        sign = torch.where(base[members], 1.0, -1.0).to(whole)
        harms.append(sign[:, None] * (whole - changed))
    return members, torch.stack(harms)
