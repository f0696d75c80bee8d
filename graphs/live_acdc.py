"""ACDC over the edges of the live model: walk targets from the output back, drop edges one by one.

Conmy et al. 2023, on `LiveCircuits`. When the walk comes to a target, everything above it is
decided and everything below it is as it was at the start. So a removal changes what the target
carries, in one run of its own, and then the kept targets that it reaches, each in a run that begins
at the target's layer, whose streams below are the same for every removal.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.sites import Site
from graphs.live_circuits import Job, LiveCircuits, needed_nodes
from graphs.live_runs import HeldRows
from graphs.measures import kl_to_model
from graphs.prune_acdc import removable

__all__ = ["LogitScore", "acdc_live_edges", "live_edge_order", "mean_kl"]

LogitScore = Callable[[Float[Tensor, "circuit prompt d_vocab"]], Float[Tensor, " circuit"]]
"""Score of circuits by their last-position logits on every prompt; lower is better."""


def mean_kl(full: Float[Tensor, "prompt d_vocab"]) -> LogitScore:
    """KL(model || circuit) of the next token, mean over prompts, in nats."""
    return lambda logits: kl_to_model(full, logits).mean(-1)


def live_edge_order(circuits: LiveCircuits) -> list[int]:
    """Edges in the order of the walk, which is that of `graphs.acdc_edges.edge_order`."""
    edges = circuits.edges
    moments = edges.moments.tolist()
    ends = list(zip(edges.edge_target.tolist(), edges.edge_source.tolist(), strict=True))

    def key(edge: int) -> tuple[int, int, int, bool, int, int, int]:
        target, source = ends[edge]
        t, s = edges.nodes[target], edges.nodes[source]
        is_feature = s.kind == "feature"
        height = moments[source] if is_feature else 4 * s.layer + 3
        return (-moments[target], -t.pos, target, is_feature, -height, -s.pos, source)

    return sorted(range(edges.n_edges), key=key)


def acdc_live_edges(
    circuits: LiveCircuits,
    *,
    score: LogitScore,
    threshold: float,
    start: Bool[Tensor, " edge"] | None = None,
    batch: int = 16,
    progress: Callable[[float], None] = lambda _: None,
) -> Bool[Tensor, " edge"]:
    """The edges that stay: an edge goes if `score` worsens by less than `threshold` without it.

    Args:
        circuits: on the prompts that choose.
        score: a removal is judged against the circuit as it then is.
        threshold: in the units of the score.
        start: the circuit to begin with; None for all edges.
        batch: removals tried at a time. It changes the time, not the answer.
        progress: called with the share of edges decided.

    Raises:
        ValueError: if `threshold` is negative or `batch` not positive.
    """
    if threshold < 0 or batch < 1:
        raise ValueError(f"want threshold >= 0 and batch >= 1, got {threshold} and {batch}")
    edges = circuits.edges
    kept = torch.ones(edges.n_edges, dtype=torch.bool) if start is None else start.clone()
    order = torch.tensor([e for e in live_edge_order(circuits) if kept[e]], dtype=torch.long)
    targets, counts = edges.edge_target[order].unique_consecutive(return_counts=True)
    walk = _Walk(circuits, kept, score)
    n_done = 0
    for target, own in zip(targets.tolist(), order.split(counts.tolist()), strict=True):
        kept[own] = walk.decide(target, edges.edge_source[own], threshold, batch)
        n_done += len(own)
        progress(n_done / len(order))
    return kept


class _Walk:
    """The state of the search: what every target reads, and what every node carries."""

    def __init__(
        self, circuits: LiveCircuits, kept: Bool[Tensor, " edge"], score: LogitScore
    ) -> None:
        self.circuits, self.edges, self.score = circuits, circuits.edges, score
        runner = circuits.runs.runner
        self.reads = self.edges.reads(kept)
        self.values = circuits.values([self.reads])
        row = self.reads[self.edges.output][None]
        self.logits = circuits.runs.logits(HeldRows(row, self.values, torch.zeros(1).long()))
        self.differs = runner.patchable(self.edges.nodes)
        self.site = {node: site for site, nodes in circuits.levels for node in nodes}
        self.layer = runner.spliced.model.n_layers
        self.streams: dict[int, Tensor] = {}
        """By decided target: what enters block `layer` in its run."""

    def decide(
        self, target: int, sources: Int[Tensor, " source"], threshold: float, batch: int
    ) -> Bool[Tensor, " source"]:
        """Which of the sources a target goes on reading."""
        reached = self._reached(target)
        if not reached[self.edges.output]:
            # Nothing it does is read any more, so that no removal worsens the score.
            self.reads[target, sources] = threshold == 0
            return self.reads[target, sources]
        begin = ~self._inert(sources) if threshold > 0 else torch.ones_like(sources).bool()
        best = self.score(self.logits)

        def scores(masks: Bool[Tensor, "circuit source"]) -> Float[Tensor, " circuit"]:
            if torch.equal(masks, begin[None]):
                return best
            return self.score(self._with(target, sources, masks, reached)[1])

        order = begin.nonzero().flatten().tolist()
        kept = removable(order, begin, score=scores, threshold=threshold, batch=batch)
        if not torch.equal(kept, begin):
            self.values, self.logits = self._with(target, sources, kept[None], reached)
        self.reads[target, sources] = kept
        return kept

    def _reached(self, target: int) -> Bool[Tensor, " node"]:
        """Itself, and the nodes on kept ways from it to the output."""
        reached = torch.zeros(len(self.edges.nodes), dtype=torch.bool)
        reached[target] = True
        if target == self.edges.output:
            return reached
        needed = needed_nodes(self.edges, self.reads)
        for nodes in [*self._above(target), torch.tensor([self.edges.output])]:
            reached[nodes] = needed[nodes] & self._read(nodes, reached.nonzero().flatten()).any(1)
        return reached

    def _above(self, target: int) -> Iterator[Int[Tensor, " node"]]:
        """Features of each place above a target's own, lowest first."""
        sites = [site for site, _ in self.circuits.levels]
        for _, nodes in self.circuits.levels[sites.index(self.site[target]) + 1 :]:
            yield torch.tensor(nodes)

    def _read(
        self, nodes: Int[Tensor, " target"], sources: Int[Tensor, " source"]
    ) -> Bool[Tensor, "target source"]:
        """Whether nodes read sources."""
        at = nodes[:, None], sources
        return self.reads[at] & self.edges.upstream[at]

    def _inert(self, sources: Int[Tensor, " source"]) -> Bool[Tensor, " source"]:
        """Which sources carry in the circuit just what they do when their edges are removed."""
        same = ~self.differs[sources]
        runner = self.circuits.runs.runner
        for i, source in enumerate(sources.tolist()):
            node = self.edges.nodes[source]
            if node.kind == "sublayer":
                same[i] = False
            elif node.kind == "feature":
                at = self.site[source], (slice(None), node.pos, node.feature)
                in_use = runner.clean.activations[at[0]][at[1]] != 0
                differs = self.values[0, :, source] != runner.other.activations[at[0]][at[1]]
                same[i] = not (in_use & differs).any()
        return same

    def _with(
        self,
        target: int,
        sources: Int[Tensor, " source"],
        masks: Bool[Tensor, "circuit source"],
        reached: Bool[Tensor, " node"],
    ) -> tuple[Float[Tensor, "circuit prompt node"], Float[Tensor, "circuit prompt d_vocab"]]:
        """Values and logits of the circuits in which a target reads only some of its sources."""
        own = self.reads[target].repeat(len(masks), 1)
        own[:, sources] = masks
        output, circuits = self.edges.output, torch.arange(len(masks))
        values = self.values.repeat(len(masks), 1, 1)
        if target == output:
            return values, self.circuits.runs.logits(HeldRows(own, values, circuits))
        self.circuits.fill(values, self.site[target], [(c, target) for c in circuits.tolist()], own)
        streams = self._streams(target, reached)
        columns = reached.nonzero().flatten()
        for nodes in self._above(target):
            jobs = self._moved(values, nodes[reached[nodes]], columns)
            if jobs:
                reads = self.reads[[node for _, node in jobs]]
                self.circuits.fill(values, self.site[jobs[0][1]], jobs, reads, streams)
        jobs = self._moved(values, torch.tensor([output]), columns)
        logits = self.logits.repeat(len(masks), 1, 1)
        if jobs:
            moved = torch.tensor([circuit for circuit, _ in jobs])
            start = None
            if streams is not None:
                start = streams[0], streams[1][output].repeat(len(jobs), 1, 1, 1)
            rows = HeldRows(self.reads[output].repeat(len(jobs), 1), values, moved, start)
            logits[moved] = self.circuits.runs.logits(rows)
        return values, logits

    def _moved(
        self,
        values: Float[Tensor, "circuit prompt node"],
        nodes: Int[Tensor, " target"],
        columns: Int[Tensor, " source"],
    ) -> list[Job]:
        """Where one of the sources that a node reads carries something else than it now does."""
        moved = (values[..., columns] != self.values[..., columns]).any(1)
        hit = (moved[:, None] & self._read(nodes, columns)).any(-1)
        return [(c, int(nodes[i])) for c, i in hit.nonzero().tolist()]

    def _streams(
        self, target: int, reached: Bool[Tensor, " node"]
    ) -> tuple[int, dict[int, Tensor]] | None:
        """What enters the target's layer in the runs of the nodes that it reaches.

        Sources below the layer are as they were at the start, and what those nodes read is decided:
        it stays the same until the walk comes to another layer.
        """
        layer = self.site[target].layer
        if layer == 0 or not self.circuits.runs.can_start:
            return None
        if layer != self.layer:
            self.layer, self.streams = layer, {}
        missing = [n for n in reached.nonzero().flatten().tolist() if n not in self.streams]
        missing = [node for node in missing if node != target]
        if missing:
            which = torch.zeros(len(missing), dtype=torch.long)
            rows = HeldRows(self.reads[missing], self.values, which)
            entering = self.circuits.runs.arriving(Site("resid_pre", layer), rows)
            self.streams |= dict(zip(missing, entering, strict=True))
        return layer, self.streams
