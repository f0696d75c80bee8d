"""What one optimiser step of a dictionary needs and gives."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Moment", "Parameters", "Step", "Workspace"]

Parameters = dict[str, Tensor]
"""`W_enc` [feature, d_in], `W_dec` [feature, d_out], `b_enc`, `b_dec`, where there is one `W_skip`
[d_in, d_out], and what an architecture adds."""


class Workspace:
    """Large buffers used again at every step: fresh ones cost as much as some products.

    One workspace serves many dictionaries one after another; what it hands out is overwritten by
    the next to ask under the same name.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._parts: dict[str, Workspace] = {}

    def part(self, name: str) -> "Workspace":
        """A workspace inside this one, whose buffers are its own."""
        return self._parts.setdefault(name, Workspace())

    def take(
        self, name: str, *shape: int, like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """An uninitialised tensor on the device of `like`, in its dtype unless another is given."""
        dtype, n = dtype or like.dtype, 1
        for size in shape:
            n *= size
        old = self._buffers.get(name)
        if old is None or old.numel() < n or old.dtype != dtype or old.device != like.device:
            old = self._buffers[name] = torch.empty(n, dtype=dtype, device=like.device)
        return old[:n].view(shape)


def _alone(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Moment:
    """What a step depends on besides parameters and data.

    Args:
        dead: features that have been silent for long.
        ramp: share of the final sparsity penalty that holds now, from 0 to 1.
        work: buffers to use.
        encode_dtype: dtype of the encoder's product; None for that of the data.
        mean: the mean of a tensor over all processes that train together.
    """

    dead: Int[Tensor, " dead"]
    ramp: float = 1.0
    work: Workspace = field(default_factory=Workspace)
    encode_dtype: torch.dtype | None = None
    mean: Callable[[Tensor], Tensor] = _alone


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
