"""Decoders whose rows keep norm 1, as in the first sparse autoencoders (Bricken et al. 2023).

The gradient loses what would change a norm, so that Adam's moments hold none of it; after a step
rows are scaled back to norm 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["project_out", "rescale"]


def project_out(
    gradient: Float[Tensor, "feature d"], rows: Float[Tensor, "feature d"]
) -> Float[Tensor, "feature d"]:
    """`gradient` less its component along each of `rows` (of norm 1), in place.

    Example:
        >>> project_out(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0., 4.]])
    """
    along = torch.linalg.vecdot(gradient, rows)
    return gradient.addcmul_(along.unsqueeze(1), rows, value=-1)


def rescale(rows: Float[Tensor, "feature d"]) -> None:
    """Give every row norm 1, in place; a row of zeros stays."""
    F.normalize(rows, dim=1, out=rows)
