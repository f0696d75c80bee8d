"""The cosine between a fixed direction and one drawn uniformly from the sphere: tail and quantile.

Input-invariant. In `n` dimensions `cos^2` follows Beta(1/2, (n - 1) / 2), exactly.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cosine_p_value", "cosine_quantile"]

_TINY = 1e-300
_ITERATIONS = 500


def cosine_p_value(cosine: Float[Tensor, "*n"], d_model: int) -> Float[Tensor, "*n"]:
    """`P(|C| >= |cosine|)` for the cosine `C` of a uniformly random direction in `d_model`.

        p = I_{1 - c^2}((d_model - 1) / 2, 1 / 2)

    with `I` the regularised incomplete beta function. Small values keep their relative precision,
    so that they can be multiplied by a great number of weights looked at.

    Args:
        cosine: a weight over the norms of its two directions.
        d_model: dimensions, at least 2.

    Returns:
        In double precision.

    Raises:
        ValueError: if `d_model` is less than 2.

    Example:
        >>> cosine_p_value(torch.tensor([0.0, 0.25, 1.0]), 3)  # uniform in three dimensions
        tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)
    """
    if d_model < 2:
        raise ValueError(f"want at least 2 dimensions, got {d_model}")
    size = cosine.double().abs().clamp_max(1.0)
    square, rest = size.square(), (1 - size) * (1 + size)
    rare = square > 3 / (d_model + 4)
    # The fraction converges fast on 1 - c^2 in the tail, and on c^2, the complement, elsewhere.
    first, last = torch.full_like(size, (d_model - 1) / 2), torch.full_like(size, 0.5)
    a, b = torch.where(rare, first, last), torch.where(rare, last, first)
    x, y = torch.where(rare, rest, square), torch.where(rare, square, rest)
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    part = torch.exp(a * x.log() + b * y.log() - log_beta) / a * _fraction(x, a, b)
    return torch.where(rare, part, 1 - part)


def cosine_quantile(p: float, d_model: int) -> float:
    """The size a random direction's cosine reaches with probability `p`: inverts `cosine_p_value`.

    A weight between directions of norms `m` and `n` is larger in size than `m n` times this with
    probability `p`.

    Raises:
        ValueError: if `p` is not in (0, 1], or `d_model` is less than 2.

    Example:
        >>> round(cosine_quantile(0.25, 3), 12)
        0.75
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be in (0, 1], got {p}")
    low, high = 0.0, 1.0 if p < 1 else 0.0
    while (middle := (low + high) / 2) not in (low, high):
        rarer = float(cosine_p_value(torch.tensor(middle, dtype=torch.float64), d_model)) < p
        low, high = (low, middle) if rarer else (middle, high)
    return high


def _fraction(
    x: Float[Tensor, "*n"], a: Float[Tensor, "*n"], b: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """The continued fraction of the incomplete beta function, by Lentz's method.

    `I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) * fraction`; converges fast for
    `x < (a + 1) / (a + b + 2)` (Abramowitz and Stegun, 26.5.8).
    """
    c = torch.ones_like(x)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for numerator in (even, odd):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            fraction = fraction * c * d
        if torch.allclose(fraction, before, rtol=1e-15, atol=0.0):
            break
    return fraction


def _away_from_zero(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return torch.where(x.abs() < _TINY, torch.full_like(x, _TINY), x)
