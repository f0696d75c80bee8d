"""What one optimiser step of a dictionary needs: gradients, and numbers to watch."""

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

__all__ = ["Parameters", "Step"]

Parameters = dict[str, Tensor]
"""`W_enc` [feature, d_in], `W_dec` [feature, d_out], `b_enc`, `b_dec`, and where there are any
`threshold` [feature] and `W_skip` [d_in, d_out]."""


@dataclass(frozen=True)
class Step:
    """Gradients of one batch under the names of the parameters, and its statistics.

    Args:
        gradients: of the whole loss, auxiliary terms included.
        loss: mean squared error a dimension: the batch's FVU where targets have unit variance.
        l0: active features a token.
        fired: which features were active.
    """

    gradients: Parameters
    loss: float
    l0: float
    fired: Bool[Tensor, " feature"]
