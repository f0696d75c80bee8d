"""Activation functions of sparse dictionaries, as plain functions on pre-activations."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["jumprelu", "relu", "topk"]


def relu(z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
    """`max(z, 0)`."""
    return z.clamp_min(0)


def jumprelu(
    z: Float[Tensor, "*batch feature"], threshold: Float[Tensor, " feature"]
) -> Float[Tensor, "*batch feature"]:
    """`z` where it exceeds its threshold, else 0 (Rajamanoharan et al. 2024, equation 3).

    Example:
        >>> jumprelu(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([0., 2.])
    """
    return torch.where(z > threshold, z, torch.zeros_like(z))


def topk(z: Float[Tensor, "*batch feature"], k: int) -> Float[Tensor, "*batch feature"]:
    """The `k` largest entries of each row, negative ones cut to 0 (Gao et al. 2024).

    Example:
        >>> topk(torch.tensor([3.0, 1.0, 2.0]), 2)
        tensor([3., 0., 2.])
    """
    values, indices = z.topk(min(k, z.shape[-1]), dim=-1)
    return torch.zeros_like(z).scatter(-1, indices, values.clamp_min(0))
