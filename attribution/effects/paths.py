"""The strongest single paths from sources to a target: a view on a trace. Input-dependent.

Nothing is computed from these paths: sums over all of them come from `effects.influence` in closed
form, and say how much of the whole the listed ones are.
"""

import heapq
from dataclasses import dataclass, replace
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.effects.flow import Flow, map_edges, pull
from attribution.effects.influence import Nodes, leaf_sources, linear_flow, rows_of
from attribution.nodes import Node
from attribution.trace import Trace

__all__ = ["Path", "TopPaths", "best_onward", "top_paths"]


@dataclass(frozen=True)
class Path:
    """One path and what it carries, in the target's units.

    Attributes:
        nodes: source first, then features, target last.
        value: `E[t, s_n] / a_n ... E[s_1, s_0]`, signed.
    """

    nodes: tuple[Node, ...]
    value: float


@dataclass(frozen=True)
class TopPaths:
    """The strongest paths to a target, strongest first, and all paths together.

    Attributes:
        paths: the listed ones.
        total: sum of the values of all paths from the sources; where these are the leaves, the
            target's value.
        total_size: sum of their magnitudes; it may be many times `|total|`.
    """

    paths: tuple[Path, ...]
    total: float
    total_size: float

    @property
    def covered(self) -> float:
        """Sum of the values of the listed paths."""
        return sum(path.value for path in self.paths)

    @property
    def covered_share(self) -> float:
        """Magnitude of the listed paths over that of all paths, in [0, 1]; 1 if there are none."""
        size = sum(abs(path.value) for path in self.paths)
        return size / self.total_size if self.total_size else 1.0


def top_paths(
    trace: Trace, target: int | str, *, sources: Nodes | None = None, k: int = 20
) -> TopPaths:
    """The `k` paths of the largest magnitude from `sources` to `target`, exactly.

    Best-first from the target back. The bound of an unfinished path is its own magnitude times the
    best continuation (`best_onward`); a bound that is always reached misses nothing, and no path
    outside the answer is walked to its end.

    Args:
        trace: with a row for every feature that paths shall pass.
        target: row of `trace.targets`, or id.
        sources: where paths begin, as rows of `trace.sources` or ids; None takes the leaves, so
            that all paths together are the target's value. A path may pass other sources on its
            way.
        k: how many.

    Returns:
        Fewer than `k` paths if there are no more that carry anything. Paths of equal magnitude
        come in no particular order.

    Raises:
        ValueError: if `k` is not positive, a node does not exist, or a feature's activation is not
            its pre-activation.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    (row,) = rows_of(trace.targets, [target])
    begin = leaf_sources(trace) if sources is None else rows_of(trace.sources, sources)
    flow = linear_flow(trace)
    found = _Search(trace, flow, begin, k).run(row)
    size = pull(_magnitudes(flow), [row])[0, begin].sum()
    return TopPaths(tuple(found), float(pull(flow, [row])[0, begin].sum()), float(size))


def best_onward(flow: Flow, begins: Float[Tensor, " source"]) -> Float[Tensor, " source"]:
    """The largest magnitude of a path from where paths begin to each source node.

        best[s] = max(begins[s], gain_s * max over r of |E[s, r]| best[r])

    Args:
        flow: edges and gains, by level.
        begins: 1 where a path may begin, else 0.
    """
    best = begins.clone()
    for level in flow.levels:
        arriving = best.new_zeros(len(level.columns))
        for block in level.edges.blocks:
            reached = (block.values.to(best).abs() * best[block.sources]).amax(1)
            arriving[block.targets] = arriving[block.targets].maximum(reached)
        onward = arriving * level.gain.to(best).abs()
        best[level.columns] = best[level.columns].maximum(onward)
    return best


@dataclass(frozen=True)
class _Steps:
    """Where a path at a node can go, best first: to a source column, or (-1) to its end."""

    columns: list[int]
    factors: list[float]
    bounds: list[float]


class _Search:
    """Best-first search; a heap entry is an unfinished path and the step it takes next."""

    def __init__(self, trace: Trace, flow: Flow, begin: list[int], k: int) -> None:
        self._trace, self._flow, self._k = trace, flow, k
        self._place = {
            column: (level, i)
            for level in flow.levels
            for i, column in enumerate(level.columns.tolist())
        }
        self._begins = trace.target_values.new_zeros(len(trace.sources), dtype=torch.float64)
        self._begins[begin] = 1.0
        self._best = best_onward(flow, self._begins)
        self._known: dict[int, _Steps] = {}

    def run(self, row: int) -> list[Path]:
        order = count()
        heap: list[tuple[float, int, tuple[int, ...], float, _Steps, int]] = []

        def consider(trail: tuple[int, ...], value: float, steps: _Steps, i: int) -> None:
            if i < len(steps.columns):
                bound = abs(value) * steps.bounds[i]
                heapq.heappush(heap, (-bound, next(order), trail, value, steps, i))

        found: list[Path] = []
        consider((), 1.0, self._steps_along(self._flow.edges.row(row).double()), 0)
        while heap and len(found) < self._k:
            _, _, trail, value, steps, i = heapq.heappop(heap)
            consider(trail, value, steps, i + 1)
            column = steps.columns[i]
            if column < 0:
                nodes = [self._trace.sources[c] for c in reversed(trail)]
                found.append(Path((*nodes, self._trace.targets[row]), value))
            else:
                onward = self._steps_from(column)
                consider((*trail, column), value * steps.factors[i], onward, 0)
        return found

    def _steps_from(self, column: int) -> _Steps:
        if column not in self._known:
            steps = _Steps([], [], [])
            if column in self._place:
                level, i = self._place[column]
                steps = self._steps_along(level.edges.row(i).double() * float(level.gain[i]))
            self._known[column] = steps if self._begins[column] == 0 else _with_end(steps)
        return self._known[column]

    def _steps_along(self, factors: Float[Tensor, " source"]) -> _Steps:
        """The `k` best steps back: no path of the answer takes a later one."""
        bounds, columns = (factors.abs() * self._best).topk(min(self._k, len(factors)))
        n = int((bounds > 0).sum())
        columns = columns[:n]
        return _Steps(columns.tolist(), factors[columns].tolist(), bounds[:n].tolist())


def _with_end(steps: _Steps) -> _Steps:
    """The same steps and the one that ends the path, in its place."""
    at = sum(bound > 1.0 for bound in steps.bounds)
    return _Steps(
        [*steps.columns[:at], -1, *steps.columns[at:]],
        [*steps.factors[:at], 1.0, *steps.factors[at:]],
        [*steps.bounds[:at], 1.0, *steps.bounds[at:]],
    )


def _magnitudes(flow: Flow) -> Flow:
    """The flow in which nothing cancels: magnitudes of edges and gains."""
    levels = (
        replace(level, gain=level.gain.abs(), edges=map_edges(level.edges, lambda v, _: v.abs()))
        for level in flow.levels
    )
    return Flow(map_edges(flow.edges, lambda v, _: v.abs()), tuple(levels))
