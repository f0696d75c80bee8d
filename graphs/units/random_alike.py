"""Control for a circuit of any units: random ones with as many units in every place."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["random_alike"]


def random_alike(
    kept: Bool[Tensor, " unit"],
    place: Int[Tensor, " unit"],
    stay: Bool[Tensor, " unit"],
    *,
    n: int,
    seed: int,
) -> Bool[Tensor, "draw unit"]:
    """Random circuits with as many units of every place as `kept`.

    Args:
        kept: the circuit.
        place: what a random unit must share with the one it stands for, as a number: the layer and
            the kind, say.
        stay: units that are never drawn, but stay as they are in the circuit: tokens, say.
        n: circuits to draw.
        seed: of the draws.

    Raises:
        ValueError: if `n` is not positive.

    Example:
        >>> kept = torch.tensor([True, True, False, False])
        >>> place = torch.tensor([0, 0, 0, 1])
        >>> random_alike(kept, place, torch.zeros(4, dtype=torch.bool), n=3, seed=0).sum(1)
        tensor([2, 2, 2])
    """
    if n < 1:
        raise ValueError(f"want at least one draw, got n = {n}")
    generator = torch.Generator().manual_seed(seed)
    drawn = kept.repeat(n, 1)
    for number in place[~stay].unique().tolist():
        members = ((place == number) & ~stay).nonzero().flatten()
        size = int(kept[members].sum())
        drawn[:, members] = False
        rank = torch.rand(n, len(members), generator=generator).argsort(1)[:, :size]
        drawn[torch.arange(n)[:, None], members[rank]] = True
    return drawn
