"""Rotary positions: queries and keys turned by angles that grow with their position.

Input-invariant: the tables depend on the position alone. A model without rotary positions has
tables of width 0, and one that rotates part of a head has tables narrower than the head.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["relative_rotation", "rotate"]


def rotate(
    x: Float[Tensor, "*batch d_head"],
    cos: Float[Tensor, "*#batch rotary"],
    sin: Float[Tensor, "*#batch rotary"],
) -> Float[Tensor, "*batch d_head"]:
    """Turn the first `rotary` entries, entry i with entry i + rotary / 2; the rest stay (Su 2021).

        R x = cos * x + sin * J x,    J (x_1, x_2) = (-x_2, x_1) for the two halves of x

    Example:
        >>> rotate(torch.tensor([1.0, 0.0, 5.0]), torch.zeros(2), torch.ones(2))
        tensor([0., 1., 5.])
    """
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    low, high = turned[..., : width // 2], turned[..., width // 2 :]
    return torch.cat([turned * cos + torch.cat([-high, low], -1) * sin, rest], -1)


def relative_rotation(
    cos: Float[Tensor, "pos rotary"], sin: Float[Tensor, "pos rotary"], query: int, key: int
) -> tuple[Float[Tensor, " rotary"], Float[Tensor, " rotary"]]:
    """Tables of the one rotation of the *key* that does what rotating both ends does.

        <R_q x, R_k y> = <x, R_q^T R_k y>,    R_q^T R_k a rotation by angle(k) - angle(q)

    It depends on the offset q - k alone (up to the rounding of the tables), so that a product of
    weights through it is input-invariant. Composed from the tables themselves by the addition
    theorems, it is exact whatever their rounding or scaling.
    """
    return (
        cos[query] * cos[key] + sin[query] * sin[key],
        cos[query] * sin[key] - sin[query] * cos[key],
    )
