"""Fewer crossings: order the nodes of a cell by the barycentre of their neighbours.

Sugiyama, Tagawa and Toda (1981), with the layers and columns fixed by layer and token: only the
order within a cell is free. Deterministic.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.layout import Layout

__all__ = ["barycentres", "count_crossings", "untangle"]

_N_COUNTED = 800  # edges among which crossings are counted to choose a sweep
_CHUNK = 500


def count_crossings(ends: Float[np.ndarray, "edge 4"]) -> int:
    """How many pairs of straight edges cross; edges that meet at an end do not.

    Args:
        ends: x and y of the source, then of the target.
    """
    total = 0
    for first in range(0, len(ends), _CHUNK):
        one, two = ends[first : first + _CHUNK, None], ends[None]
        crossing = (_side(one, two[..., :2]) * _side(one, two[..., 2:]) < 0) & (
            _side(two, one[..., :2]) * _side(two, one[..., 2:]) < 0
        )
        total += int(crossing.sum())
    return total // 2


def barycentres(
    x: Float[np.ndarray, " node"],
    source: Int[np.ndarray, " edge"],
    target: Int[np.ndarray, " edge"],
    strength: Float[np.ndarray, " edge"],
) -> Float[np.ndarray, " node"]:
    """Mean place of each node's neighbours on either side, by strength; its own without any."""
    weight = np.bincount(source, strength, len(x)) + np.bincount(target, strength, len(x))
    pull = np.bincount(source, strength * x[target], len(x))
    pull += np.bincount(target, strength * x[source], len(x))
    return np.where(weight > 0, pull / np.where(weight > 0, weight, 1.0), x)


def untangle(
    place: Callable[[Float[np.ndarray, " node"]], Layout],
    order: Float[np.ndarray, " node"],
    *,
    movable: Bool[np.ndarray, " node"],
    source: Int[np.ndarray, " edge"],
    target: Int[np.ndarray, " edge"],
    strength: Float[np.ndarray, " edge"],
    n_sweeps: int,
) -> Float[np.ndarray, " node"]:
    """The best order of a few barycentre sweeps, by crossings among the strongest edges.

    Args:
        place: makes a layout of an order; higher comes first, which is left.
        order: to begin with; kept where no sweep is better.
        movable: nodes whose order may change.
        source: rows the edges come from.
        target: rows the edges run to.
        strength: non-negative, one an edge.
        n_sweeps: how many orders to try.
    """
    counted = np.argsort(-strength, kind="stable")[:_N_COUNTED]

    def crossings(layout: Layout) -> int:
        x, y, s, t = np.asarray(layout.x), np.asarray(layout.y), source[counted], target[counted]
        return count_crossings(np.stack([x[s], y[s], x[t], y[t]], axis=-1))

    layout = place(order)
    best, fewest = order, crossings(layout)
    for _ in range(n_sweeps):
        pull = barycentres(np.asarray(layout.x), source, target, strength)
        swept = np.where(movable, -pull, order)
        layout = place(swept)
        found = crossings(layout)
        if found < fewest:
            best, fewest = swept, found
    return best


def _side(
    line: Float[np.ndarray, "a b 4"], point: Float[np.ndarray, "c d 2"]
) -> Float[np.ndarray, "e f"]:
    """Positive on the left of the line, negative on its right, 0 on it."""
    along = line[..., 2:] - line[..., :2]
    to = point - line[..., :2]
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
