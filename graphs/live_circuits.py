"""Whole edge circuits on the live model, level by level: every feature in a run of its own.

Features that read the same sources at the same values share a run, and runs of all circuits that
end at one place are one batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.sites import Site
from graphs.circuit_graph import CircuitGraph
from graphs.frozen_graph import FrozenGraph
from graphs.live_edges import LiveEdges, Others, live_edges
from graphs.live_runs import HeldRows, LiveRuns
from graphs.scorer import CircuitRunner, Tally

__all__ = ["Job", "LiveCircuits", "needed_nodes"]

Job = tuple[int, int]
"""A circuit, and a node whose value in it is wanted."""


@dataclass(frozen=True, eq=False)
class LiveCircuits:
    """Runs edge circuits on the prompts of a `CircuitRunner`.

    Args:
        edges: which edges circuits are made of.
        runs: partial runs on the same prompts.
    """

    edges: LiveEdges
    runs: LiveRuns

    @classmethod
    def of_graph(
        cls,
        runner: CircuitRunner,
        graph: CircuitGraph | FrozenGraph,
        *,
        others: Others = "removed",
        max_rows: int = 256,
    ) -> "LiveCircuits":
        """Circuits of the edges of a graph (see `live_edges`)."""
        edges, _ = live_edges(runner, graph, others=others)
        return cls(edges, LiveRuns(runner, edges.nodes, max_rows))

    @property
    def tally(self) -> Tally:
        """What has been run so far."""
        return self.runs.tally

    def logits(self, kept: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit prompt d_vocab"]:
        """Last-position logits of several circuits, each a row of flags over the edges."""
        reads = [self.edges.reads(flags) for flags in kept]
        values = self.values(reads)
        output = self.edges.output
        rows = torch.stack([matrix[output] for matrix in reads])
        return self.runs.logits(HeldRows(rows, values, torch.arange(len(kept))))

    def values(
        self, reads: Sequence[Bool[Tensor, "node node"]]
    ) -> Float[Tensor, "circuit prompt node"]:
        """What features carry in each circuit, where they have a path to the output (others: 0)."""
        runner = self.runs.runner
        n_nodes, n_prompts = len(self.edges.nodes), len(runner.clean.tokens)
        values = torch.zeros(len(reads), n_prompts, n_nodes, dtype=runner.clean.logits.dtype)
        needed = [needed_nodes(self.edges, matrix) for matrix in reads]
        for site, nodes in self.levels:
            jobs = [(c, t) for c, wanted in enumerate(needed) for t in nodes if wanted[t]]
            if jobs:
                self.fill(values, site, jobs, torch.stack([reads[c][t] for c, t in jobs]))
        return values

    def fill(
        self,
        values: Float[Tensor, "circuit prompt node"],
        site: Site,
        jobs: Sequence[Job],
        reads: Bool[Tensor, "job node"],
        streams: tuple[int, Mapping[int, Tensor]] | None = None,
    ) -> None:
        """Put what features of one place carry into `values`, from those of the places below.

        Args:
            values: of all nodes in several circuits; written to.
            site: where the dictionary is placed.
            jobs: which features in which circuits.
            reads: the sources each reads at their values in the circuit.
            streams: a layer, and by node the stream that enters it in the node's run, to begin
                there.
        """
        rows, row = _distinct(jobs, reads)
        start = None
        if streams is not None:
            layer, entering = streams
            start = layer, torch.stack([entering[jobs[i][1]] for i in rows])
        circuit = torch.tensor([jobs[i][0] for i in rows])
        held = HeldRows(reads[rows], values, circuit, start)
        node = torch.tensor([target for _, target in jobs])
        found = self.runs.features(site, held, torch.tensor(row), node)
        for (circuit, target), activation in zip(jobs, found, strict=True):
            values[circuit, :, target] = activation

    @cached_property
    def levels(self) -> list[tuple[Site, list[int]]]:
        """Where dictionaries are placed, lowest first, and their features among the nodes."""
        rows: dict[tuple[str, int], list[int]] = {}
        for row, node in enumerate(self.edges.nodes):
            if node.kind == "feature":
                rows.setdefault((node.site, node.layer), []).append(row)
        found = [
            (write, rows[placement.site, write.layer])
            for write, placement in self.runs.runner.spliced.placements.items()
            if (placement.site, write.layer) in rows
        ]
        return sorted(found, key=lambda level: int(self.edges.moments[level[1][0]]))


def needed_nodes(edges: LiveEdges, reads: Bool[Tensor, "node node"]) -> Bool[Tensor, " node"]:
    """Which nodes have a path of kept edges to the output, itself included."""
    needed = torch.zeros(len(edges.nodes), dtype=torch.bool)
    needed[edges.output] = True
    for targets in _descending(edges):
        wanted = targets[needed[targets]]
        needed |= (reads[wanted] & edges.upstream[wanted]).any(0)
    return needed


def _descending(edges: LiveEdges) -> Iterator[Tensor]:
    """Targets moment by moment, the output first."""
    is_target = edges.upstream.any(1)
    for moment in edges.moments[is_target].unique().flip(0):
        yield (is_target & (edges.moments == moment)).nonzero().flatten()


def _distinct(jobs: Sequence[Job], reads: Bool[Tensor, "job node"]) -> tuple[list[int], list[int]]:
    """The first job of each distinct run, and for each job which of them it is."""
    seen: dict[tuple[int, bytes], int] = {}
    first, which = [], []
    for i, ((circuit, _), own) in enumerate(zip(jobs, reads, strict=True)):
        key = circuit, own.numpy().tobytes()
        if key not in seen:
            seen[key] = len(first)
            first.append(i)
        which.append(seen[key])
    return first, which
