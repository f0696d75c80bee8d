"""The causal graph of a trace as levels of features, and sums over all its paths.

With `N[t, s] = gain_t E[t, s]` on the rows of features, paths of any length from sources to targets
add up to `E (I - N)^-1`. Features of one dictionary never feed each other, so substitution, one
dictionary after another, gives that without an inverse. Input-dependent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.edges import EdgeBlock, Edges
from attribution.nodes import NodeTable

__all__ = ["Flow", "Level", "build_flow", "map_edges", "pull", "push"]


@dataclass(frozen=True, eq=False)
class Level:
    """The features of one dictionary: no path leads from one of them to another.

    Attributes:
        columns: where they are among the sources.
        gain: what a feature passes on per unit of an edge into it.
        edges: the edges into them, rows in the order of `columns`.
    """

    columns: Int[Tensor, " feature"]
    gain: Float[Tensor, " feature"]
    edges: Edges


@dataclass(frozen=True, eq=False)
class Flow:
    """All edges, and those into features by level, lower levels first."""

    edges: Edges
    levels: tuple[Level, ...]


def build_flow(
    edges: Edges, targets: NodeTable, sources: NodeTable, gain: Float[Tensor, " source"]
) -> Flow:
    """Sort the edges into features by dictionary.

    Args:
        edges: `[target, source]`.
        targets: its rows; those that are also sources pass on what arrives.
        sources: its columns, lower dictionaries first.
        gain: one a source; read for features that have a row.

    Raises:
        ValueError: if an edge leads up the columns, from a dictionary to itself or a lower one.
    """
    device = gain.device
    column_of = {node.id: i for i, node in enumerate(sources)}
    row_of = {node.id: i for i, node in enumerate(targets) if node.id in column_of}
    groups: dict[tuple[int, str], list[int]] = {}
    for column, node in enumerate(sources):
        if node.id in row_of:
            groups.setdefault((node.layer, node.site), []).append(column)
    level_of = torch.full((len(sources),), -1, device=device)
    place = torch.full((len(targets),), -1, device=device)
    levels = []
    for i, columns in enumerate(groups.values()):
        level_of[columns] = i
    for i, columns in enumerate(groups.values()):
        place.fill_(-1)
        place[[row_of[sources[c].id] for c in columns]] = torch.arange(len(columns), device=device)
        blocks = tuple(_blocks_into(edges, place))
        for block in blocks:
            later = level_of[block.sources] >= i
            if block.values[:, later].any():
                raise ValueError(
                    f"features of {sources[columns[0]].site!r} in layer "
                    f"{sources[columns[0]].layer} have edges from features that do not lie "
                    "below; order the sources with lower dictionaries first"
                )
        if blocks:
            index = torch.tensor(columns, device=device)
            into = Edges((len(columns), len(sources)), blocks)
            levels.append(Level(index, gain[index], into))
    return Flow(edges, tuple(levels))


def _blocks_into(edges: Edges, place: Int[Tensor, " target"]) -> list[EdgeBlock]:
    """The blocks of the targets that have a place, renumbered by it."""
    blocks = []
    for block in edges.blocks:
        rows = place[block.targets]
        mine = (rows >= 0).nonzero()[:, 0]
        if not len(mine):
            continue
        first, last = int(mine[0]), int(mine[-1])
        in_a_row = last - first + 1 == len(mine)  # then no copy is needed
        at = slice(first, last + 1) if in_a_row else mine
        blocks.append(EdgeBlock(rows[at], block.sources, block.values[at]))
    return blocks


def map_edges(
    edges: Edges,
    change: Callable[[Float[Tensor, "t s"], Int[Tensor, " t"]], Float[Tensor, "t s"]],
) -> Edges:
    """The same blocks with `change(values, targets)` in the place of their values."""
    blocks = (EdgeBlock(b.targets, b.sources, change(b.values, b.targets)) for b in edges.blocks)
    return Edges(edges.shape, tuple(blocks))


def pull(flow: Flow, rows: list[int]) -> Float[Tensor, "row source"]:
    """Sums over all paths into some targets, from every source: `E[rows] (I - N)^-1`.

    Back-substitution: from the highest level down, what has arrived at a feature is handed on to
    its own sources. Exact after one pass.
    """
    total = flow.edges.rows(rows)
    for level in reversed(flow.levels):
        total += level.edges.left(total[:, level.columns] * level.gain)
    return total


def push(flow: Flow, start: Float[Tensor, "source n"]) -> Float[Tensor, "target n"]:
    """Sums over all paths to every target of what is put in at the sources: `E (I - N)^-1 start`.

    Substitution from the lowest level up; the cheaper side where there are fewer sources.
    """
    changes = start.clone()
    for level in flow.levels:
        changes[level.columns] += level.gain[:, None] * level.edges.right(changes)
    return flow.edges.right(changes)
