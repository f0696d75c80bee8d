"""Where given edges are among the edges of a graph."""

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["edge_rows"]


def edge_rows(keys: Int[Tensor, " edge"], wanted: Int[Tensor, " wanted"]) -> Int[Tensor, " wanted"]:
    """The row of each wanted edge, -1 for one that is not there.

    Args:
        keys: of the edges, in any order: target times number of nodes plus source.
        wanted: keys likewise, repeated or not.

    Example:
        >>> edge_rows(torch.tensor([7, 3, 5]), torch.tensor([5, 7, 4, 9]))
        tensor([ 2,  0, -1, -1])
    """
    if not len(keys):
        return torch.full_like(wanted, -1)
    ordered, rows = keys.sort()
    at = torch.searchsorted(ordered, wanted).clamp_max(len(ordered) - 1)
    return torch.where(ordered[at] == wanted, rows[at], -1)
