"""What the outputs do as one target's activation moves, all above it decided: exactly, in pieces.

    outputs(m) = outputs(m0) + gain (m - m0)   for m in the piece of m0

On one prompt the response is a function of one number, and affine as long as no feature that the
target reaches turns on or off. So one pass over the kept edges above gives a piece, and removals
whose move lies in a known piece cost a multiplication instead of a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphs.frozen_graph import FrozenGraph

__all__ = ["OutputResponse", "Standing", "Step", "reachable"]

_CLEARANCE = 1e-9
"""Share of the way to where a feature turns on or off that is left to a pass of its own."""


@dataclass(frozen=True)
class Standing:
    """Where every node stands in the current circuit, against the clean prompts.

    Attributes:
        shift: of the value of each target, [prompt, node].
        change: of the activation of each feature, of the value of each output, [prompt, node].
    """

    shift: np.ndarray
    change: np.ndarray


@dataclass(frozen=True)
class Step:
    """Kept edges from features into targets of one level, those of one target together.

    Attributes:
        source: where the sources are, one an edge.
        target: rows of the nodes, one an edge.
        slope: what an edge carries per unit of its source's activation, [prompt, edge].
    """

    source: np.ndarray
    target: np.ndarray
    slope: np.ndarray

    def where(self, wanted: np.ndarray) -> "Step":
        """The marked edges."""
        if wanted.all():
            return self
        at = np.flatnonzero(wanted)
        return Step(self.source[at], self.target[at], self.slope[:, at])


@dataclass(frozen=True)
class Reach:
    """The edges on paths from one node, as places among the nodes it reaches.

    Attributes:
        nodes: rows of the nodes; the node itself, then level by level.
        steps: `source` counts into `nodes`.
        starts: of each step, where the edges of each target begin.
        places: of each step, where its targets are among the nodes.
    """

    nodes: np.ndarray
    steps: list[Step]
    starts: list[np.ndarray]
    places: list[slice]


def reachable(steps: Sequence[Step], target: int, n_nodes: int) -> Reach:
    """The part of a graph that one node reaches.

    Args:
        steps: lower levels first, whose sources are rows of the nodes.
        target: row of the node.
        n_nodes: how many rows there are.
    """
    place = np.full(n_nodes, -1, np.int32)
    place[target] = 0
    found = Reach(np.array([target]), [], [], [])
    nodes, n_found = [found.nodes], 1
    for step in steps:
        hit = place[step.source] >= 0
        if not hit.any():
            continue
        mine = step.where(hit)
        starts = np.flatnonzero(np.diff(mine.target, prepend=-1))
        nodes.append(mine.target[starts])
        found.steps.append(Step(place[mine.source], mine.target, mine.slope))
        found.starts.append(starts)
        found.places.append(slice(n_found, n_found + len(starts)))
        place[nodes[-1]] = np.arange(n_found, n_found + len(starts))
        n_found += len(starts)
    return Reach(np.concatenate(nodes), found.steps, found.starts, found.places)


@dataclass(frozen=True)
class _Piece:
    """An affine part of the response: [prompt] or [prompt, output]."""

    at: np.ndarray
    low: np.ndarray
    high: np.ndarray
    outputs: np.ndarray
    gain: np.ndarray

    def holds(self, moved: np.ndarray) -> np.ndarray:
        """Whether moves lie in the piece, [..., prompt]; no move at all is in every piece."""
        inside = (self.low < moved) & (moved < self.high)
        return inside | (moved == self.at) | (moved == 0)


class OutputResponse:
    """Outputs of circuits that differ in where one target's value stands.

    Args:
        graph: what reacts.
        standing: of the current circuit; read, and written by `settle` alone.
        reach: of the node that moves.
    """

    def __init__(self, graph: FrozenGraph, standing: Standing, reach: Reach) -> None:
        self._standing, self._reach = standing, reach
        self._reaction = graph.reaction(reach.nodes)
        self._shift = standing.shift[:, reach.nodes]
        self._change = standing.change[:, reach.nodes]
        at = graph.outputs.numpy()
        self._now = graph.value[:, graph.outputs].double().numpy() + standing.change[:, at]
        self._which, self._place = np.nonzero(at[:, None] == reach.nodes)
        self._pieces: list[_Piece] = []
        self._latest = np.empty(0), np.empty(0)

    def outputs(self, shift: np.ndarray) -> np.ndarray:
        """Outputs [circuit, prompt, output] as the node's value stands at [circuit, prompt]."""
        moved = self._moved(shift)
        found = np.repeat(self._now[None], len(moved), 0)
        left = moved != 0
        for piece in self._pieces:
            if not left.any():
                return found
            _fill(found, moved, left, piece)
        while left.any():
            first = np.take_along_axis(moved, left.argmax(0)[None], 0)[0]
            self._add_piece(np.where(left.any(0), first, 0.0))
            _fill(found, moved, left, self._pieces[-1])
        return found

    def settle(self, shift: np.ndarray) -> None:
        """Let the node's value stand at [prompt], and with it all that it reaches."""
        moved = self._moved(shift)
        if moved.any():
            if not (self._pieces and self._pieces[-1].holds(moved).all()):
                self._add_piece(moved)
            step = (moved - self._pieces[-1].at)[:, None]
            activation, value = (found[0] + found[1] * step for found in self._latest)
            nodes, moves = self._reach.nodes, moved[:, None] != 0
            self._standing.change[:, nodes] += np.where(moves, activation, 0.0)
            self._standing.shift[:, nodes] += np.where(moves, value, 0.0)
        self._standing.shift[:, self._reach.nodes[0]] = shift

    def _moved(self, shift: np.ndarray) -> np.ndarray:
        """By how much the node's activation moves, [..., prompt]."""
        own = self._reaction[:1].change(shift[..., None])
        return (own - self._change[:, :1])[..., 0]

    def _add_piece(self, at: np.ndarray) -> None:
        """The affine part about a move that is not 0; of a prompt where it is, that point alone."""
        self._latest = activation, value = self._spread(at)
        with np.errstate(divide="ignore", invalid="ignore"):
            way = self._reaction.clearance(self._shift + value[0]) / value[1]
        low = np.where(way <= 0, way, -np.inf).max(1)
        high = np.where(way >= 0, way, np.inf).min(1)
        low, high = (at + (1 - _CLEARANCE) * np.where(at == 0, 0.0, end) for end in (low, high))
        outputs, gain = self._now.copy(), np.zeros_like(self._now)
        outputs[:, self._which] += activation[0][:, self._place]
        gain[:, self._which] = activation[1][:, self._place]
        self._pieces.append(_Piece(at, low, high, outputs, gain))

    def _spread(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Let the node move by `at`, and by a little more, through everything it reaches.

        Returns:
            By how much the activations move, and the values; each [2, prompt, reached], where the
            second row is the slope of the first. The node's own value does not count.
        """
        reach = self._reach
        activation = np.zeros((2, len(at), len(reach.nodes)))
        value = np.zeros_like(activation)
        activation[0, :, 0], activation[1, :, 0] = at, 1.0
        for step, starts, place in zip(reach.steps, reach.starts, reach.places, strict=True):
            rise = np.add.reduceat(activation[..., step.source] * step.slope, starts, -1)
            reaction, shift = self._reaction[place], self._shift[:, place] + rise[0]
            value[..., place] = rise
            activation[0, :, place] = reaction.change(shift) - self._change[:, place]
            activation[1, :, place] = np.where(reaction.clearance(shift) < 0, rise[1], 0.0)
        return activation, value


def _fill(found: np.ndarray, moved: np.ndarray, left: np.ndarray, piece: _Piece) -> None:
    """Write the outputs of the moves that lie in the piece, which are then no longer left."""
    inside = left & piece.holds(moved)
    circuit, prompt = inside.nonzero()
    step = (moved[circuit, prompt] - piece.at[prompt])[:, None]
    found[circuit, prompt] = piece.outputs[prompt] + piece.gain[prompt] * step
    left &= ~inside
