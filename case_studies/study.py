"""A study: behaviour, splice, circuit and proof of one task on one model, written to a folder."""

import json
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attribution import Node, attribute
from case_studies.study_config import StudyConfig
from case_studies.study_proof import Progress, prove_circuit
from case_studies.tasks.behaviour import Behaviour, measure_behaviour
from case_studies.tasks.task import Task, TaskPrompt
from circuits import SplicedModel
from graphs import CircuitGraph, Proof, ProofTable, average_graphs, build_graph, prune
from graphs.measures import kl_to_model
from graphs.scorer import CircuitRunner

__all__ = ["GroupResult", "SplicedMetric", "StudyResult", "run_study"]


class GroupResult(BaseModel):
    """The circuit of one group of aligned prompts, and its proof on others of the group."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    group: str
    example: str = Field(description="one of the prompts that chose the circuit")
    graph: CircuitGraph = Field(exclude=True, repr=False)
    table: ProofTable = Field(description="the proof and its controls")
    n_nodes: int
    n_edges: int
    nodes_by_kind: dict[str, int]
    conservation_error: float = Field(description="largest relative gap over all rows traced")

    @property
    def proof(self) -> Proof:
        """The proof of the circuit itself."""
        return self.table.circuit


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
    graphs, found, conservation = _trace(config, task, choosing, runner, progress)
    progress("pruning (ACDC)", 0.0)
    mean_graph = average_graphs(graphs)
    nodes = list(mean_graph.nodes)

    def score(kept: Bool[Tensor, "circuit node"]) -> Float[Tensor, " circuit"]:
        return kl_to_model(runner.full_logits, runner.logits(nodes, kept)).mean(-1)

    worst = float(kl_to_model(runner.full_logits, runner.empty_logits).mean())
    threshold = config.threshold * worst
    graph = prune(mean_graph, method="acdc", score=score, threshold=threshold, batch=8)
    roles = json.dumps(choosing[0].roles, sort_keys=True)
    graph = _drop_idle(graph).with_notes(group=group, roles=roles)
    in_circuit = {node.id for node in graph.nodes}
    table = prove_circuit(
        config.choices,
        spliced,
        task,
        choosing=choosing,
        proving=proving,
        nodes=found,
        kept=torch.tensor([node.id in in_circuit for node in found]),
        n_random=config.n_random,
        n_knockouts=config.n_knockouts,
        n_contexts=config.n_contexts,
        seed=config.seed,
        progress=progress,
    )
    kinds = [node.kind for node in graph.nodes]
    return GroupResult(
        group=group,
        example=choosing[0].clean,
        graph=graph,
        table=table,
        n_nodes=graph.n_nodes,
        n_edges=graph.n_edges,
        nodes_by_kind={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        conservation_error=conservation,
    )


def _trace(
    config: StudyConfig,
    task: Task,
    prompts: Sequence[TaskPrompt],
    runner: CircuitRunner,
    progress: Progress,
) -> tuple[list[CircuitGraph], list[Node], float]:
    """One influence-pruned graph a prompt, every node seen on any, and the worst conservation."""
    graphs, found, worst = [], {}, 0.0
    for i, prompt in enumerate(prompts):
        trace = attribute(runner.spliced, prompt.clean_tokens, task.target(prompt))
        worst = max(worst, trace.conservation_error())
        found |= {node.id: node for node in trace.sources}
        graph = prune(build_graph(trace), node_threshold=config.node_threshold, edge_threshold=0.98)
        graphs.append(_patchable(graph, runner))
        progress("attribution", (i + 1) / len(prompts))
    return graphs, list(found.values()), worst


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
