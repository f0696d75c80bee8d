"""How well predictions agree with what is observed: correlation, slope, sign."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["Agreement", "measure_agreement"]


@dataclass(frozen=True)
class Agreement:
    """Predictions against observations.

    Attributes:
        correlation: Pearson's, in [-1, 1].
        slope: of the least-squares line, with intercept, of observations on predictions.
        same_sign: share of pairs with the same sign, among those where not both are 0.
        n: number of pairs.
    """

    correlation: float
    slope: float
    same_sign: float
    n: int


def measure_agreement(
    predicted: Float[Tensor, " pair"], observed: Float[Tensor, " pair"]
) -> Agreement:
    """Compare pairs, in float64.

        correlation = <p, o> / (|p| |o|),   slope = <p, o> / <p, p>,   both with means taken off

    Raises:
        ValueError: if all predictions or all observations are the same.

    Example:
        >>> import torch
        >>> measure_agreement(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 5.0])).slope
        2.0
    """
    p, o = predicted.double(), observed.double()
    if (p == p[:1]).all() or (o == o[:1]).all():
        raise ValueError(
            f"want predictions and observations that vary, got {len(p)} pairs in which one is "
            "constant; make more, or other, interventions"
        )
    dp, do = p - p.mean(), o - o.mean()
    signs = (p.sign() * o.sign())[(p != 0) | (o != 0)]
    return Agreement(
        correlation=float(dp @ do / (dp.norm() * do.norm())),
        slope=float(dp @ do / (dp @ dp)),
        same_sign=float((signs > 0).double().mean()),
        n=len(p),
    )
