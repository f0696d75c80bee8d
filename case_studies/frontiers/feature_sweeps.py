"""Families of feature circuits: two gradient scores, influence, activity, and live ACDC."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution import Node, attribute
from case_studies.frontiers.config import FrontierConfig
from case_studies.frontiers.sweeps import Progress, Sweep, metric_of, ranked_sweep, stacked
from case_studies.tasks.task import Task, TaskPrompt
from circuits import SplicedModel
from circuits.sites import Site
from graphs import (
    CircuitGraph,
    attribution_effects,
    average_graphs,
    build_graph,
    integrated_effects,
    node_influence,
    prune,
)
from graphs.faithfulness import kl_to_model
from graphs.proof import Trial
from graphs.scorer import CircuitRunner

__all__ = ["feature_sweeps", "mean_activity"]

_AT_ONCE = 4
"""Prompts whose gradients are taken in one batch, times the points of a path."""


def feature_sweeps(
    config: FrontierConfig,
    spliced: SplicedModel,
    task: Task,
    choosing: Sequence[TaskPrompt],
    trial: Trial,
    progress: Progress,
) -> list[Sweep]:
    """Every family over the units of `trial`, chosen on `choosing` alone.

    A unit that is idle on the choosing prompts has score 0: it comes last.
    """
    units = trial.units
    progress("features: gradients", 0.0)
    integrated = partial(integrated_effects, steps=config.steps)
    scores = {
        "integrated gradients": _mean_effects(integrated, spliced, task, choosing, units),
        "attribution": _mean_effects(attribution_effects, spliced, task, choosing, units),
    }
    runner = CircuitRunner.on_prompts(spliced, *stacked(choosing))
    scores["activity"] = mean_activity(runner, units)
    graphs, scores["influence"] = _graphs(config, task, choosing, runner, units, progress)
    ranked = [ranked_sweep(name, s, factor=config.size_factor) for name, s in scores.items()]
    return [*ranked, _acdc(config, runner, average_graphs(graphs), trial, progress)]


def _mean_effects(
    estimate: Callable[..., Float[Tensor, "prompt unit"]],
    spliced: SplicedModel,
    task: Task,
    prompts: Sequence[TaskPrompt],
    units: Sequence[Node],
) -> Float[Tensor, " unit"]:
    """Size of the mean effect over prompts, some of them at a time."""
    total = torch.zeros(len(units), dtype=torch.float64)
    for start in range(0, len(prompts), _AT_ONCE):
        part = prompts[start : start + _AT_ONCE]
        runner = CircuitRunner.on_prompts(spliced, *stacked(part))
        effects = estimate(spliced, runner.clean, runner.other, metric_of(task, part), units)
        total += effects.double().sum(0).cpu()
    return (total / len(prompts)).abs()


def mean_activity(runner: CircuitRunner, units: Sequence[Node]) -> Float[Tensor, " unit"]:
    """Length of what each unit writes, mean over the runner's prompts.

        activity[f] = mean a_f * |d_f|, of an error, MLP or token the mean length of its vector

    What a cross-layer feature writes to several layers is taken as one vector.
    """
    state, spliced = runner.clean, runner.spliced
    written: dict[tuple[str, Site], Tensor] = {
        ("token", Site("embed")): state.values[Site("embed")].norm(dim=-1).mean(0)
    }
    for site in spliced.held_mlps():
        written["sublayer", site] = state.values[site].norm(dim=-1).mean(0)
    for write, placement in spliced.placements.items():
        lengths = placement.dictionary.W_dec.flatten(1).norm(dim=1)
        written["feature", write] = state.activations[write].abs().mean(0) * lengths
        written["error", write] = state.errors[write].norm(dim=-1).mean(0)

    def of(node: Node) -> float:
        if node.kind == "token":
            return float(written["token", Site("embed")][node.pos])
        if node.kind == "sublayer":
            return float(written["sublayer", spliced.mlp_site(node.layer)][node.pos])
        found = written[node.kind, spliced.write_site(f"{node.site}.{node.layer}")]
        return float(found[node.pos, node.feature] if node.kind == "feature" else found[node.pos])

    return torch.tensor([of(node) for node in units], dtype=torch.float64)


def _graphs(
    config: FrontierConfig,
    task: Task,
    prompts: Sequence[TaskPrompt],
    runner: CircuitRunner,
    units: Sequence[Node],
    progress: Progress,
) -> tuple[list[CircuitGraph], Float[Tensor, " unit"]]:
    """One pruned graph a prompt for ACDC, and every unit's mean influence before pruning."""
    graphs: list[CircuitGraph] = []
    total: dict[str, float] = defaultdict(float)
    for number, prompt in enumerate(prompts):
        progress("features: graphs", number / len(prompts))
        graph = build_graph(attribute(runner.spliced, prompt.clean_tokens, task.target(prompt)))
        for node, share in zip(graph.nodes, node_influence(graph).tolist(), strict=True):
            total[node.id] += share / len(prompts)
        kept = prune(graph, node_threshold=config.node_threshold)
        fixed = kept.is_kind("position", "bias", "output")
        graphs.append(kept.select(runner.patchable(kept.nodes) | fixed))
    return graphs, torch.tensor([total[node.id] for node in units], dtype=torch.float64)


def _acdc(
    config: FrontierConfig,
    runner: CircuitRunner,
    graph: CircuitGraph,
    trial: Trial,
    progress: Progress,
) -> Sweep:
    """ACDC over the nodes of the mean graph, thresholds ascending, each from the last's circuit."""
    found = graph
    full = runner.full_logits
    worst = float(kl_to_model(full, runner.empty_logits).mean())
    circuits: dict[float, Tensor] = {}
    for number, share in enumerate(sorted(config.thresholds)):
        progress("features: ACDC", number / len(config.thresholds))
        nodes = list(found.nodes)

        def score(
            kept: Bool[Tensor, "circuit node"], nodes: list[Node] = nodes
        ) -> Float[Tensor, " circuit"]:
            return kl_to_model(full, runner.logits(nodes, kept)).mean(-1)

        found = prune(found, method="acdc", score=score, threshold=share * worst, batch=8)
        circuits[share], _ = trial.circuit(found.nodes, torch.ones(found.n_nodes).bool())
    return Sweep("ACDC", circuits)
