"""Changes as affine maps of some entries of a tensor: the same for a number and for a vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site

__all__ = ["Affine", "Entries", "Place", "gather", "moved"]

Place = tuple[Literal["feature", "error", "sublayer", "token"], Site]
"""A kind of node, and where its values are: the write site of a dictionary, an MLP, `embed`."""


@dataclass(frozen=True)
class Affine:
    """`x[at] -> scale x[at] + shift`, everything else as it is.

    Attributes:
        at: row, position and (for features) index of each entry that changes.
        scale: a factor each.
        shift: what is added then: a number each, or a vector each.
    """

    at: tuple[Int[Tensor, " change"], ...]
    scale: Float[Tensor, " change"]
    shift: Float[Tensor, "change ..."]

    def __call__(self, x: Float[Tensor, "row pos width"]) -> Float[Tensor, "row pos width"]:
        """A changed copy of `x`."""
        new = x.clone()
        scale = self.scale.to(x).reshape(-1, *[1] * (self.shift.ndim - 1))
        new[self.at] = scale * x[self.at] + self.shift.to(x)
        return new


@dataclass(frozen=True)
class Entries:
    """One part of an `Affine`: some rows and positions of one node.

    Attributes:
        rows: the rows, one each.
        positions: the positions, one each.
        feature: index in the dictionary; -1 for vectors.
        scale: one factor for all.
        shift: a number or vector each.
    """

    rows: Int[Tensor, " entry"]
    positions: Int[Tensor, " entry"]
    feature: int
    scale: float
    shift: Float[Tensor, "entry ..."]


def gather(parts: Mapping[Place, Sequence[Entries]]) -> dict[Place, Affine]:
    """All entries of each place as one map.

    Example:
        >>> one, site = torch.tensor([0]), Site("mlp_out", 2)
        >>> part = Entries(one, one, 3, 0.0, torch.tensor([5.0]))
        >>> gather({("feature", site): [part]})["feature", site](torch.ones(1, 2, 4))[0, 0]
        tensor([1., 1., 1., 5.])
    """
    return {place: _gather_one(entries) for place, entries in parts.items() if entries}


def _gather_one(entries: Sequence[Entries]) -> Affine:
    rows = torch.cat([part.rows for part in entries])
    positions = torch.cat([part.positions for part in entries])
    sizes = torch.tensor([len(part.rows) for part in entries], device=rows.device)
    features = torch.tensor([part.feature for part in entries], device=rows.device)
    features = features.repeat_interleave(sizes)
    shift = torch.cat([part.shift for part in entries])
    scales = torch.tensor([part.scale for part in entries], dtype=shift.dtype, device=rows.device)
    is_vector = shift.ndim > 1
    at = (rows, positions) if is_vector else (rows, positions, features)
    return Affine(at, scales.repeat_interleave(sizes), shift)


def moved(change: Affine | None, x: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
    """`x` after a change, or `x` itself if there is none."""
    return x if change is None else change(x)
