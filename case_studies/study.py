"""A study: behaviour, splice, circuit and proof of one task on one model, written to a folder."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attribution import Node, attribute
from case_studies.tasks.behaviour import Behaviour, measure_behaviour
from case_studies.tasks.task import Task, TaskPrompt
from circuits import SplicedModel
from circuits.plausibility import CHECK
from circuits.precision import fast_float32
from graphs import CircuitGraph, average_graphs, build_graph, prune
from graphs.controls import random_circuits, tokens_only
from graphs.faithfulness import Faithfulness, faithfulness, kl_to_model
from graphs.scorer import CircuitRunner

__all__ = ["GroupResult", "StudyConfig", "StudyResult", "run_study"]

Progress = Callable[[str, float], None]
"""Called with what is going on and the share of it that is done."""


class StudyConfig(BaseModel):
    """Everything needed to repeat a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["greater-than", "ioi"] = Field(description="which behaviour")
    model: str = Field(default="tiny", description="subject model: a name or a path")
    dictionaries: str = Field(
        default="tiny", description="a published set, or a file or folder of dictionaries"
    )
    check: bool = Field(default=True, description=CHECK)
    frames: Literal["plain", "story"] = Field(
        default="plain", description="ioi: everyday sentences, or those of a children's story"
    )
    n_behaviour: int = Field(default=200, ge=2, description="prompts that measure the behaviour")
    n_discovery: int = Field(
        default=24, ge=1, description="aligned prompts that choose the circuit"
    )
    n_proof: int = Field(default=64, ge=2, description="other aligned prompts that prove it")
    n_random: int = Field(
        default=20, ge=1, description="random circuits of the same size per layer"
    )
    node_threshold: float = Field(
        default=0.9, description="influence kept a prompt before ACDC, share"
    )
    threshold: float = Field(
        default=0.0005,
        ge=0,
        description="ACDC: smallest harm that keeps a node, as a share of KL(model, all patched)",
    )
    seed: int = Field(default=0, description="seed of prompts, random circuits and bootstrap")


class GroupResult(BaseModel):
    """The circuit of one group of aligned prompts, and its proof on others of the group."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    group: str
    example: str = Field(description="one of the prompts that chose the circuit")
    graph: CircuitGraph = Field(exclude=True, repr=False)
    circuit: Faithfulness = Field(description="the circuit on the prompts that prove")
    found_nodes: Faithfulness = Field(description="every node active on the choosing prompts")
    tokens_only: Faithfulness = Field(description="the circuit without features and errors")
    random_faithfulness: list[float] = Field(description="random circuits, one number each")
    random_metric: list[float] = Field(description="their mean metrics")
    n_nodes: int
    n_edges: int
    nodes_by_kind: dict[str, int]
    conservation_error: float = Field(description="largest relative gap over all rows traced")


class SplicedMetric(BaseModel):
    """The task with every dictionary's reconstruction in place of what it replaces."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: float
    success_rate: float
    n_prompts: int


class StudyResult(BaseModel):
    """What `metrics.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    behaviour: Behaviour
    spliced: SplicedMetric
    groups: list[GroupResult]


def run_study(
    config: StudyConfig, spliced: SplicedModel, task: Task, progress: Progress = lambda *_: None
) -> StudyResult:
    """Measure the behaviour, find one circuit a group of aligned prompts, and prove each.

    The prompts that prove are never among those that chose.
    """
    with fast_float32(spliced.model.device):
        return _run_study(config, spliced, task, progress)


def _run_study(
    config: StudyConfig, spliced: SplicedModel, task: Task, progress: Progress
) -> StudyResult:
    progress("behaviour", 0.0)
    behaviour = measure_behaviour(spliced.model, task, n=config.n_behaviour, seed=config.seed)
    replaced = _spliced_metric(spliced, task, config)
    groups = [
        _study_group(config, spliced, task, group, progress) for group in task.groups(spliced.model)
    ]
    return StudyResult(behaviour=behaviour, spliced=replaced, groups=groups)


def _spliced_metric(spliced: SplicedModel, task: Task, config: StudyConfig) -> SplicedMetric:
    """Run the behaviour's prompts in mode `replace`."""
    prompts = task.prompts(spliced.model, config.n_behaviour, seed=config.seed)
    metrics, wins = [], []
    for prompt in prompts:
        with torch.no_grad():
            logits = spliced.run(prompt.clean_tokens[None], "replace").logits[:, -1]
        metrics.append(float(task.metric(logits, [prompt])[0]))
        wins.append(bool(task.succeeds(logits, [prompt])[0]))
    n = len(prompts)
    return SplicedMetric(metric=sum(metrics) / n, success_rate=sum(wins) / n, n_prompts=n)


def _study_group(
    config: StudyConfig, spliced: SplicedModel, task: Task, group: str, progress: Progress
) -> GroupResult:
    prompts = task.prompts(
        spliced.model,
        config.n_discovery + config.n_proof,
        seed=config.seed + 1,
        aligned_group=group,
    )
    choosing, proving = prompts[: config.n_discovery], prompts[config.n_discovery :]
    runner = _runner(spliced, choosing)
    graphs, universe, conservation = _trace(config, task, choosing, runner, progress)
    progress("pruning (ACDC)", 0.0)
    mean_graph = average_graphs(graphs)
    nodes = list(mean_graph.nodes)

    def score(kept: Bool[Tensor, "circuit node"]) -> Float[Tensor, " circuit"]:
        return kl_to_model(runner.full_logits, runner.logits(nodes, kept)).mean(-1)

    worst = float(kl_to_model(runner.full_logits, runner.empty_logits).mean())
    threshold = config.threshold * worst
    graph = prune(mean_graph, method="acdc", score=score, threshold=threshold, batch=8)
    graph = _drop_idle(graph)
    progress("proof", 0.0)
    return _prove(config, spliced, task, group, choosing[0], proving, graph, universe, conservation)


def _trace(
    config: StudyConfig,
    task: Task,
    prompts: Sequence[TaskPrompt],
    runner: CircuitRunner,
    progress: Progress,
) -> tuple[list[CircuitGraph], list[Node], float]:
    """One influence-pruned graph a prompt, every node seen on any, and the worst conservation."""
    graphs, universe, worst = [], {}, 0.0
    for i, prompt in enumerate(prompts):
        trace = attribute(runner.spliced, prompt.clean_tokens, task.target(prompt))
        worst = max(worst, trace.conservation_error())
        universe |= {node.id: node for node in trace.sources}
        graph = prune(build_graph(trace), node_threshold=config.node_threshold, edge_threshold=0.98)
        graphs.append(_patchable(graph, runner))
        progress("attribution", (i + 1) / len(prompts))
    return graphs, list(universe.values()), worst


def _patchable(graph: CircuitGraph, runner: CircuitRunner) -> CircuitGraph:
    """Without the nodes that patching cannot change; ACDC would drop them one by one."""
    can_change = runner.patchable(graph.nodes)
    fixed = graph.is_kind("position", "bias", "output")
    return graph.select(can_change | fixed)


def _drop_idle(graph: CircuitGraph) -> CircuitGraph:
    """Without the positions and biases that feed nothing that is left."""
    feeding = {graph.nodes[row].id for row in graph.edge_source.tolist()}
    return graph.subgraph(
        node.id
        for node in graph.nodes
        if node.kind not in ("position", "bias") or node.id in feeding
    )


def _runner(spliced: SplicedModel, prompts: Sequence[TaskPrompt]) -> CircuitRunner:
    clean = torch.stack([prompt.clean_tokens for prompt in prompts])
    corrupted = torch.stack([prompt.corrupted_tokens for prompt in prompts])
    return CircuitRunner.on_prompts(spliced, clean, corrupted)


def _prove(
    config: StudyConfig,
    spliced: SplicedModel,
    task: Task,
    group: str,
    example: TaskPrompt,
    proving: Sequence[TaskPrompt],
    graph: CircuitGraph,
    universe: list[Node],
    conservation: float,
) -> GroupResult:
    """Faithfulness of the circuit and of its controls on prompts that did not choose it."""
    runner = _runner(spliced, proving)
    in_circuit = {node.id for node in graph.nodes}
    kept = torch.tensor([node.id in in_circuit for node in universe])

    def metric(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        return task.metric(logits, proving)

    def measure(flags: Bool[Tensor, " node"]) -> Faithfulness:
        return faithfulness(runner, universe, metric, kept=flags, seed=config.seed)

    randoms = [
        measure(flags)
        for flags in random_circuits(universe, kept, n=config.n_random, seed=config.seed)
    ]
    kinds = [node.kind for node in graph.nodes]
    return GroupResult(
        group=group,
        example=example.clean,
        graph=graph,
        circuit=measure(kept),
        found_nodes=measure(torch.ones_like(kept)),
        tokens_only=measure(tokens_only(universe, kept)),
        random_faithfulness=[r.faithfulness for r in randoms],
        random_metric=[r.metric_circuit for r in randoms],
        n_nodes=graph.n_nodes,
        n_edges=graph.n_edges,
        nodes_by_kind={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        conservation_error=conservation,
    )
