"""What can matter in a circuit of edges: parts that reach the output, and where they are read."""

import torch
from jaxtyping import Bool
from torch import Tensor

from graphs.heads.edges import HeadEdges

__all__ = ["downstream", "live_and_wide"]


def live_and_wide(
    edges: HeadEdges, keep: Bool[Tensor, "reader writer"]
) -> tuple[Bool[Tensor, " writer"], Bool[Tensor, " writer"]]:
    """Which writers reach the output through kept edges, and which are read at every position.

    The output reads the last position alone. So does an MLP, or the query side of a head, that is
    itself read there alone; keys and values are read at every position.
    """
    owners = torch.tensor([edges.owner(reader) for reader in range(edges.n_readers)])
    everywhere = torch.tensor(["<k>" in name or "<v>" in name for name in edges.reader_names])
    live, wide = torch.zeros(2, edges.n_writers + 1, dtype=torch.bool)
    live[-1] = True
    for writer in reversed(range(edges.n_writers)):
        read = keep[:, writer] & live[owners]
        live[writer] = read.any()
        wide[writer] = (read & (everywhere | wide[owners])).any()
    return live[:-1], wide[:-1]


def downstream(
    edges: HeadEdges, keep: Bool[Tensor, "reader writer"], writer: int
) -> Bool[Tensor, " writer"]:
    """Writers that see `writer` through kept edges, itself included."""
    reached = torch.zeros(edges.n_writers, dtype=torch.bool)
    if writer == edges.n_writers:
        return reached
    reached[writer] = True
    sees = torch.zeros(edges.n_writers + 1, edges.n_writers)
    owners = torch.tensor([edges.owner(reader) for reader in range(edges.n_readers)])
    sees = sees.index_add(0, owners, keep.float()) > 0
    for other in range(writer + 1, edges.n_writers):
        reached[other] = (sees[other] & reached).any()
    return reached
