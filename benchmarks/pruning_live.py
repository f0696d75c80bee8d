"""Feature-edge ACDC of a task on one model, in graph space and live, judged by the live model.

Both begin with the same edges: those of the mean influence-pruned graph of the choosing prompts.
Faithfulness and KL (as a share of that with everything patched) are the edge circuit's, on prompts
that did not choose. Graph space is run at the threshold that gives about the live circuit's size,
and judges removals by the distance from the outputs of the edges it begins with: those of the whole
model, which the start falls short of, would reward removals that make up for what it lacks.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution import attribute
from attribution.targets import Readout, Target
from case_studies.tasks.task import Task, TaskPrompt
from circuits import SplicedModel
from circuits.spliced import FrozenState
from graphs import CircuitGraph, average_graphs, build_graph, freeze_graph, prune
from graphs.acdc_edges import acdc_edges, output_gap
from graphs.faithfulness import normalised
from graphs.frozen_graph import FrozenGraph
from graphs.live_acdc import acdc_live_edges, mean_kl
from graphs.live_circuits import LiveCircuits
from graphs.live_edges import live_edges
from graphs.live_runs import LiveRuns
from graphs.measures import kl_to_model
from graphs.scorer import CircuitRunner, is_candidate

__all__ = ["Setting", "compare", "prepare"]

Record = dict[str, float]
Flags = Bool[Tensor, " edge"]


@dataclass(frozen=True, eq=False)
class Setting:
    """Prompts that choose and prompts that prove, and one graph of edges for both algorithms."""

    frozen: FrozenGraph
    start: Flags
    """The edges to begin with, of nodes that a patch can change."""
    free: Flags
    """The edges of the frozen graph out of such nodes."""
    choosing: LiveCircuits
    place: Int[Tensor, " edge"]
    """Which edge of `choosing` an edge of the frozen graph is."""
    proving: LiveCircuits
    proof_place: Int[Tensor, " edge"]
    metric: Callable[[Float[Tensor, "prompt d_vocab"]], Float[Tensor, " prompt"]]


@dataclass(frozen=True)
class _OfPrompt:
    """Every prompt's own target: right answers differ between prompts."""

    targets: Mapping[tuple[int, ...], Target]

    def readouts(self, spliced: SplicedModel, state: FrozenState) -> list[Readout]:
        return self.targets[tuple(state.tokens[0].tolist())].readouts(spliced, state)


def prepare(
    spliced: SplicedModel, task: Task, *, n_choosing: int, n_proof: int, node_threshold: float
) -> Setting:
    """Draw prompts and freeze their graph."""
    group = task.groups(spliced.model)[0]
    prompts = task.prompts(spliced.model, n_choosing + n_proof, seed=1, aligned_group=group)
    choosing, proof = prompts[:n_choosing], prompts[n_choosing:]
    runner, prover = _runner(spliced, choosing), _runner(spliced, proof)
    targets = [task.target(prompt) for prompt in choosing]
    own = {tuple(p.clean_tokens.tolist()): t for p, t in zip(choosing, targets, strict=True)}
    target: Any = _OfPrompt(own)  # a target in all but name
    frozen = freeze_graph(spliced, runner.clean, runner.other, target)
    graph = average_graphs(
        [
            prune(
                build_graph(attribute(spliced, prompt.clean_tokens, target)),
                "influence",
                node_threshold=node_threshold,
                edge_threshold=0.98,
            )
            for prompt, target in zip(choosing, targets, strict=True)
        ]
    )
    free = torch.tensor([is_candidate(node) for node in frozen.nodes])[frozen.edge_source]
    edges, place = live_edges(runner, frozen, others="removed")
    proof_edges, proof_place = live_edges(prover, frozen, others="removed")
    return Setting(
        frozen,
        _among(graph, frozen) & free,
        free,
        LiveCircuits(edges, LiveRuns(runner, edges.nodes)),
        place,
        LiveCircuits(proof_edges, LiveRuns(prover, proof_edges.nodes)),
        proof_place,
        lambda logits: task.metric(logits, proof),
    )


def compare(setting: Setting, thresholds: tuple[float, ...]) -> Iterator[Record]:
    """One record a threshold of the live algorithm, a share of the KL with everything patched."""
    runner = setting.choosing.runs.runner
    worst = float(kl_to_model(runner.full_logits, runner.empty_logits).mean())
    start = _placed(setting.start, setting.place, setting.choosing.edges.n_edges)
    for threshold in thresholds:
        calls, rows = setting.choosing.tally.calls, setting.choosing.tally.rows
        began = time.process_time()
        kept = acdc_live_edges(
            setting.choosing, score=mean_kl(runner.full_logits), threshold=threshold * worst,
            start=start,
        )  # fmt: skip
        seconds = time.process_time() - began
        there = (setting.place >= 0) & setting.start
        live = there & kept[setting.place.clamp_min(0)]
        same_size, graph_seconds = _graph_space(setting, int(live.sum()))
        mine, theirs = _measured(setting, live), _measured(setting, same_size)
        yield {
            "threshold": threshold,
            "start_edges": int(setting.start.sum()),
            "live_edges": int(live.sum()),
            "live_seconds": seconds,
            "live_model_calls": setting.choosing.tally.calls - calls,
            "live_model_rows": setting.choosing.tally.rows - rows,
            "live_faithfulness": mine[0],
            "live_kl_share": mine[1],
            "graph_edges": int(same_size.sum()),
            "graph_seconds": graph_seconds,
            "graph_model_calls": 0,
            "graph_faithfulness": theirs[0],
            "graph_kl_share": theirs[1],
            "shared_edges": int((live & same_size).sum()),
        }


def _graph_space(setting: Setting, size: int) -> tuple[Flags, float]:
    """The circuit nearest to a size (thresholds halved twelve times), and a search's mean time."""
    frozen, free = setting.frozen, setting.free
    begin = setting.start | ~free
    score = output_gap(frozen.run(begin[None])[0][0])
    worst = float(score(frozen.run(~free[None])[0])[0])
    low, high, found = 1e-7, 1.0, setting.start
    began, n_steps = time.process_time(), 12
    for _ in range(n_steps):
        middle = (low * high) ** 0.5
        kept = free & acdc_edges(
            frozen,
            score=score,
            threshold=middle * worst,
            candidates=free,
            start=begin,
        )
        if abs(int(kept.sum()) - size) < abs(int(found.sum()) - size):
            found = kept
        low, high = (middle, high) if int(kept.sum()) > size else (low, middle)
    return found, (time.process_time() - began) / n_steps


def _measured(setting: Setting, kept: Flags) -> tuple[float, float]:
    """Faithfulness, and KL as a share of the empty circuit's, on the prompts that prove."""
    circuits, runner = setting.proving, setting.proving.runs.runner
    flags = _placed(kept, setting.proof_place, circuits.edges.n_edges)
    logits, full, empty = circuits.logits(flags[None])[0], runner.full_logits, runner.empty_logits
    share = kl_to_model(full, logits).mean() / kl_to_model(full, empty).mean()
    return normalised(*(setting.metric(x) for x in (logits, full, empty))), float(share)


def _placed(kept: Flags, place: Int[Tensor, " edge"], n: int) -> Bool[Tensor, " live_edge"]:
    """Flags of a frozen graph's edges as flags of the live ones."""
    flags = torch.zeros(n, dtype=torch.bool)
    flags[place[kept & (place >= 0)]] = True
    return flags


def _among(graph: CircuitGraph, frozen: FrozenGraph) -> Flags:
    """Which edges of the frozen graph a circuit graph has."""
    row = torch.tensor([frozen.nodes.row(node.id) for node in graph.nodes])
    n = len(frozen.nodes)
    keys = row[graph.edge_target] * n + row[graph.edge_source]
    return torch.isin(frozen.edge_target * n + frozen.edge_source, keys)


def _runner(spliced: SplicedModel, prompts: list[TaskPrompt]) -> CircuitRunner:
    clean = torch.stack([prompt.clean_tokens for prompt in prompts])
    corrupted = torch.stack([prompt.corrupted_tokens for prompt in prompts])
    return CircuitRunner.on_prompts(spliced, clean, corrupted)
