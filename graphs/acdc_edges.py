"""ACDC over edges in graph space: walk targets from the output back, drop edges without harm.

Conmy et al. 2023 on the frozen model (`FrozenGraph`). When the walk comes to a target, everything
above it is decided and everything below it is as it was at the start, so a removal only shifts
that target's value, and only what is kept above it has to be computed again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.frozen_graph import FrozenGraph
from graphs.prune_acdc import removable

__all__ = ["OutputScore", "acdc_edges", "edge_order", "output_gap", "output_kl"]

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
    """Edges in the order of the walk: targets output first; of one target, late sources first.

    Targets go by level and position, descending. Sources of one target likewise, but errors and
    unreplaced sublayers before features: of redundant edges the one tried first dies, and the one
    that stays should come from a node that can be read.
    """
    levels = graph.levels.tolist()
    ends = list(zip(graph.edge_target.tolist(), graph.edge_source.tolist(), strict=True))

    def key(edge: int) -> tuple[int, int, int, bool, int, int, int]:
        target, source = ends[edge]
        t, s = graph.nodes[target], graph.nodes[source]
        is_feature = s.kind == "feature"
        height = levels[source] if is_feature else 4 * s.layer + 3
        return (-levels[target], -t.pos, target, is_feature, -height, -s.pos, source)

    return sorted(range(graph.n_edges), key=key)


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
    everything = torch.ones(graph.n_edges, dtype=torch.bool)
    walk = _Walk(graph, everything.clone() if start is None else start.clone())
    free = walk.kept & (everything if candidates is None else candidates)
    order = [edge for edge in edge_order(graph) if free[edge]]
    for target, edges in _by_target(graph, order):
        walk.decide(target, edges, score, threshold, batch)
    return walk.kept


def _by_target(graph: FrozenGraph, order: list[int]) -> list[tuple[int, list[int]]]:
    """Runs of edges into one target."""
    runs: list[tuple[int, list[int]]] = []
    for edge in order:
        target = int(graph.edge_target[edge])
        if not runs or runs[-1][0] != target:
            runs.append((target, []))
        runs[-1][1].append(edge)
    return runs


@dataclass(frozen=True)
class _Step:
    """Kept edges into nodes of one level above a target, as places among the nodes reached."""

    source: np.ndarray
    target: np.ndarray
    starts: np.ndarray
    slope: np.ndarray
    node: np.ndarray


class _Walk:
    """The state of the search: which edges are kept, and where every node stands.

    `shift` is by how much each node's value differs from the clean one in the current circuit,
    `change` by how much its activation does.
    """

    def __init__(self, graph: FrozenGraph, kept: Bool[Tensor, " edge"]) -> None:
        self.graph, self.kept = graph, kept
        self._slopes = graph.slopes.numpy()
        self._removed = (graph.patched - graph.clean).double().numpy()
        self._source = graph.edge_source.numpy()
        _, activation = graph.run(kept[None])
        n_prompts, n_nodes = graph.value.shape
        self.change = np.zeros((n_prompts, n_nodes))
        self.change[:] = (activation[0] - graph.activation).numpy()
        self._into: dict[int, np.ndarray] = {}
        order = np.argsort(graph.edge_target.numpy(), kind="stable")
        targets, starts = np.unique(graph.edge_target.numpy()[order], return_index=True)
        for target, edges in zip(targets.tolist(), np.split(order, starts[1:]), strict=True):
            self._into[target] = edges
        self.shift = np.zeros((n_prompts, n_nodes))
        for target, edges in self._into.items():
            self.shift[:, target] = self._shift(edges, self.kept.numpy()[None, edges])[0]
        self._out: dict[int, list[int]] = {}
        self._is_feature = np.array([node.kind == "feature" for node in graph.nodes])
        self._levels = graph.levels.numpy()
        self._outputs = graph.outputs.numpy()

    def decide(
        self, target: int, edges: list[int], score: OutputScore, threshold: float, batch: int
    ) -> None:
        """Drop what can go of the edges into one target, and register what stays."""
        own = self._into[target]
        place = {edge: i for i, edge in enumerate(own.tolist())}
        local = self.kept[torch.from_numpy(own)]
        is_output = target in self._outputs
        if not is_output and target not in self._out:
            # Nothing it does is read any more, so that no removal worsens the score.
            local[[place[edge] for edge in edges]] = threshold == 0
        else:
            steps, reached = self._above(target)

            def scores(masks: Bool[Tensor, "circuit edge"]) -> Float[Tensor, " circuit"]:
                shift = self._shift(own, masks.numpy())
                outputs, _ = self._outputs_of(target, shift, steps, reached)
                return score(torch.from_numpy(outputs))

            order = [place[edge] for edge in edges]
            local = removable(order, local, score=scores, threshold=threshold, batch=batch)
            self._settle(target, own, local, steps, reached)
        self.kept[torch.from_numpy(own)] = local
        self._register(target, own[local.numpy()])

    def _shift(self, edges: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """[circuit, prompt] of one target, for circuits that are flags over its edges."""
        flow = self.change[:, self._source[edges]] * self._slopes[:, edges]
        return np.where(kept[:, None], flow, self._removed[:, edges]).sum(-1)

    def _register(self, target: int, edges: np.ndarray) -> None:
        """Note which nodes still feed something, and by which edges."""
        for edge in edges.tolist():
            if self._is_feature[self._source[edge]]:
                self._out.setdefault(int(self._source[edge]), []).append(edge)

    def _above(self, target: int) -> tuple[list[_Step], np.ndarray]:
        """The kept edges over which a change of `target` spreads, level by level, and the nodes it
        reaches (itself first).
        """
        found: set[int] = set()
        waiting, seen = [target], {target}
        while waiting:
            for edge in self._out.get(waiting.pop(), ()):
                found.add(edge)
                node = int(self.graph.edge_target[edge])
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        seen.discard(target)
        reached = np.array([target, *sorted(seen, key=lambda node: (self._levels[node], node))])
        at = {node: i for i, node in enumerate(reached.tolist())}
        edges = np.array(sorted(found), dtype=np.int64)
        ends = self.graph.edge_target.numpy()[edges]
        order = np.lexsort((ends, self._levels[ends]))
        edges, ends = edges[order], ends[order]
        bounds = np.flatnonzero(np.diff(self._levels[ends])) + 1
        steps = []
        for part in np.split(edges, bounds) if len(edges) else []:
            nodes, starts = np.unique(self.graph.edge_target.numpy()[part], return_index=True)
            sources = np.array([at[node] for node in self._source[part].tolist()])
            places = np.array([at[node] for node in nodes.tolist()])
            steps.append(_Step(sources, places, starts, self._slopes[:, part], nodes))
        return steps, reached

    def _outputs_of(
        self, target: int, shift: np.ndarray, steps: list[_Step], reached: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs [circuit, prompt, output] as `target` shifts, and the changes of all it reaches,
        against the current circuit.
        """
        moved = np.zeros((*shift.shape, len(reached)))
        here = np.array([target])
        moved[..., 0] = self.graph.react(here, shift[..., None])[..., 0] - self.change[:, target]
        for step in steps:
            flow = moved[..., step.source] * step.slope
            new = self.shift[:, step.node] + np.add.reduceat(flow, step.starts, -1)
            moved[..., step.target] = self.graph.react(step.node, new) - self.change[:, step.node]
        value = self.graph.value.double().numpy()[:, self._outputs] + self.change[:, self._outputs]
        outputs = np.repeat(value[None], len(shift), 0)
        for i, output in enumerate(self._outputs.tolist()):
            (where,) = np.nonzero(reached == output)
            if len(where):
                outputs[..., i] += moved[..., where[0]]
        return outputs, moved

    def _settle(
        self,
        target: int,
        own: np.ndarray,
        kept: Bool[Tensor, " edge"],
        steps: list[_Step],
        reached: np.ndarray,
    ) -> None:
        """Make the chosen circuit the current one."""
        shift = self._shift(own, kept.numpy()[None])
        _, moved = self._outputs_of(target, shift, steps, reached)
        for step in steps:
            flow = moved[0][:, step.source] * step.slope
            self.shift[:, step.node] += np.add.reduceat(flow, step.starts, -1)
        self.shift[:, target] = shift[0]
        self.change[:, reached] += moved[0]
