"""ACDC over edges in graph space: walk targets from the output back, drop edges without harm.

Conmy et al. 2023 on the frozen model (`FrozenGraph`). When the walk comes to a target, everything
above it is decided and everything below it is as it was at the start, so a removal only shifts
that target's value, and the outputs follow from it alone (`graphs.output_response`).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphs.frozen_graph import FrozenGraph
from graphs.output_response import OutputResponse, Standing, Step, reachable

__all__ = ["OutputScore", "acdc_edges", "edge_order", "output_gap", "output_kl", "walk_order"]

OutputScore = Callable[[Float[Tensor, "circuit prompt output"]], Float[Tensor, " circuit"]]
"""Score of circuits by what their outputs are on every prompt; lower is better."""


def output_gap(full: Float[Tensor, "prompt output"]) -> OutputScore:
    """Mean distance from the outputs that the whole graph has, in their units (logits)."""
    return lambda outputs: (outputs - full).abs().mean((1, 2))


def output_kl(full: Float[Tensor, "prompt output"]) -> OutputScore:
    """Mean KL divergence from the whole graph, over the tokens whose logits are the outputs."""
    target = full.log_softmax(-1)
    return lambda outputs: (target.exp() * (target - outputs.log_softmax(-1))).sum(-1).mean(-1)


def edge_order(graph: FrozenGraph) -> list[int]:
    """`walk_order` as a list."""
    return walk_order(graph).tolist()


def walk_order(graph: FrozenGraph) -> Int[Tensor, " edge"]:
    """Edges in the order of the walk: targets output first; of one target, late sources first.

    Targets go by level and position, descending. Sources of one target likewise, but errors and
    unreplaced sublayers before features: of redundant edges the one tried first dies, and the one
    that stays should come from a node that can be read.
    """
    n, nodes = len(graph.nodes), graph.nodes
    row, pos = np.arange(n), np.array([node.pos for node in nodes])
    is_feature = np.array([node.kind == "feature" for node in nodes])
    level = graph.levels.numpy()
    height = np.where(is_feature, level, [4 * node.layer + 3 for node in nodes])
    as_target, as_source = np.empty(n, np.int64), np.empty(n, np.int64)
    as_target[np.lexsort((row, -pos, -level))] = row
    as_source[np.lexsort((row, -pos, -height, is_feature))] = row
    key = as_target[graph.edge_target.numpy()] * n + as_source[graph.edge_source.numpy()]
    return torch.from_numpy(np.argsort(key, kind="stable"))


def acdc_edges(
    graph: FrozenGraph,
    *,
    score: OutputScore,
    threshold: float,
    candidates: Bool[Tensor, " edge"] | None = None,
    start: Bool[Tensor, " edge"] | None = None,
    batch: int = 64,
) -> Bool[Tensor, " edge"]:
    """The edges that stay: an edge goes if `score` worsens by less than `threshold` without it.

    A decision costs a multiplication an output, and one pass over the kept edges above its target
    whenever the removals turn some feature up there on or off: 7 microseconds on average in a graph
    of 5 million edges (`benchmarks.pruning_scale`). Memory over the graph: 60 bytes an edge, and 30
    for each prompt.

    Args:
        graph: of one or several prompts.
        score: of the outputs; a removal is judged against the circuit as it then is.
        threshold: in the units of the score.
        candidates: which edges may go; None for all.
        start: the circuit to begin with; None for the whole graph.
        batch: removals tried in one run. It changes the time, not the answer.

    Raises:
        ValueError: if `threshold` is negative or `batch` not positive.
    """
    if threshold < 0 or batch < 1:
        raise ValueError(f"want threshold >= 0 and batch >= 1, got {threshold} and {batch}")
    kept = torch.ones(graph.n_edges, dtype=torch.bool) if start is None else start.clone()
    free = (kept if candidates is None else kept & candidates).numpy().copy()
    walk = _Walk(graph, kept)
    order = walk_order(graph).numpy()
    targets = graph.edge_target.numpy()[order]
    levels = graph.levels.numpy()[targets]
    for edges in _runs(order, levels):
        walk.climb(int(graph.levels[graph.edge_target[edges[0]]]))
        for own in _runs(edges, graph.edge_target.numpy()[edges]):
            walk.decide(own, free[own], score, threshold, batch)
        walk.register(edges)
    return walk.kept


def _runs(items: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Stretches of items with the same label."""
    return np.split(items, np.flatnonzero(np.diff(labels)) + 1) if len(items) else []


def _removals(
    shift: np.ndarray,
    gain: np.ndarray,
    scores: Callable[[np.ndarray], np.ndarray],
    threshold: float,
    batch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The sequential algorithm on the edges into one target, guessing which of them go.

    A batch holds what is tried edge after edge if the guess is right. It tells of every edge
    whether it goes if all before it were guessed right, so that it is sure up to the first wrong
    guess, and a better guess after it.

    Args:
        shift: of the target's value in the current circuit, [prompt].
        gain: by how much it shifts once an edge is removed, [prompt, edge].
        scores: of circuits by the target's shift, [circuit, prompt].
        threshold: what a removal must stay under.
        batch: edges in one call of `scores`.

    Returns:
        Which edges go, and the target's shift without them.
    """
    (best,) = scores(shift[None])
    goes, at = np.ones(gain.shape[1], bool), 0
    while at < len(goes):
        here, guess = gain[:, at : at + batch], goes[at : at + batch]
        before = np.cumsum(np.column_stack([shift, np.where(guess, here, 0.0)]), 1)[:, :-1]
        tried = before + here
        values = scores(tried.T)
        latest = np.maximum.accumulate(np.where(guess, np.arange(1, len(guess) + 1), 0))
        current = np.append(best, values)[np.append(0, latest[:-1])]
        found = values - current < threshold
        last = int(np.append((found != guess)[:-1], True).argmax())
        shift = tried[:, last] if found[last] else before[:, last]
        best = values[last] if found[last] else current[last]
        guess[:] = found
        at += last + 1
    return goes, shift


class _Walk:
    """The state of the search: which edges are kept, and where every node stands."""

    def __init__(self, graph: FrozenGraph, kept: Bool[Tensor, " edge"]) -> None:
        self.graph, self.kept = graph, kept
        shift, change = graph.stand(kept[None])
        self._standing = Standing(shift[0], change[0])
        self._is_read = np.array([node.kind == "output" for node in graph.nodes])
        self._is_feature = np.array([node.kind == "feature" for node in graph.nodes])
        self._steps: list[Step] = []
        self._above: list[Step] = []

    def climb(self, level: int) -> None:
        """Come to the targets of a level: what they may reach is all that is decided."""
        is_above = self.graph.levels.numpy() >= level
        self._above = [step.where(is_above[step.source]) for step in reversed(self._steps)]

    def decide(
        self, own: np.ndarray, is_free: np.ndarray, score: OutputScore, threshold: float, batch: int
    ) -> None:
        """Drop what can go of the edges into one target, those that are free, in their order."""
        target = int(self.graph.edge_target[own[0]])
        if not self._is_read[target]:
            # Nothing it does is read any more, so that no removal worsens the score.
            self.kept[own[is_free]] = threshold == 0
            return
        reach = reachable(self._above, target, len(self.graph.nodes))
        response = OutputResponse(self.graph, self._standing, reach)
        if_kept, if_removed = self.graph.flows(own, self._standing.change)
        shift = np.where(self.kept.numpy()[own], if_kept, if_removed).sum(-1)
        gain = (if_removed - if_kept)[:, is_free]

        def scores(shifts: np.ndarray) -> np.ndarray:
            return score(torch.from_numpy(response.outputs(shifts))).numpy()

        goes, shift = _removals(shift, gain, scores, threshold, batch)
        self.kept[own[is_free]] = torch.from_numpy(~goes)
        response.settle(shift)

    def register(self, edges: np.ndarray) -> None:
        """Note which nodes still feed something, and by which of the edges of one level."""
        source, target = (
            ends.numpy()[edges] for ends in (self.graph.edge_source, self.graph.edge_target)
        )
        stays = self.kept.numpy()[edges] & self._is_feature[source] & self._is_read[target]
        source, target, edges = source[stays], target[stays], edges[stays]
        self._is_read[source] = True
        self._steps.append(Step(source, target, self.graph.slopes.numpy()[:, edges]))
