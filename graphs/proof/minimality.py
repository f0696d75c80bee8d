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

    Taking v itself out of K first makes every K a context for every v.

    Args:
        measure: runs circuits.
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
        metric = measure(torch.cat([base[None], flipped])).metric
        sign = torch.where(base[members], 1.0, -1.0).to(metric)
        harms.append(sign[:, None] * (metric[0] - metric[1:]))
    return members, torch.stack(harms)
