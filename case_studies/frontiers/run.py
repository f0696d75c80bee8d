"""Frontiers of a task: every family of every kind of units, on prompts that chose none of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from case_studies.frontiers.config import FrontierConfig
from case_studies.frontiers.feature_sweeps import feature_sweeps
from case_studies.frontiers.plain_sweeps import plain_acdc, plain_sweeps
from case_studies.frontiers.sweeps import (
    Progress,
    Sweep,
    metric_of,
    numbered,
    random_sweep,
    stacked,
)
from case_studies.tasks.task import Task, TaskPrompt
from circuits import SplicedModel
from graphs.frontier import Frontier, frontier, random_frontier
from graphs.proof import ProofChoices, Trial, check_disjoint
from graphs.units import UnitKind, UnitTrial

__all__ = ["CHOICES", "FrontierResult", "GroupFrontiers", "run_frontiers"]

CHOICES = ProofChoices(value="corrupted", errors="as chosen")
"""Of feature circuits; those of neurons and heads differ in the component alone."""

_COMPONENTS = {
    "features": "features, errors, tokens",
    "neurons": "neurons, tokens",
    "heads": "heads, MLPs, tokens",
}


class GroupFrontiers(BaseModel):
    """The families of one group of aligned prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    example: str = Field(description="one of the prompts that chose")
    n_discovery: int = Field(description="prompts that chose")
    metric_model: float = Field(description="mean metric of the model on the prompts that prove")
    metric_empty: float = Field(description="mean metric with every unit patched")
    frontiers: tuple[Frontier, ...]


class FrontierResult(BaseModel):
    """What `frontier.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    task: str
    model: str
    dictionaries: str
    metric_name: str
    groups: tuple[GroupFrontiers, ...]


def run_frontiers(
    config: FrontierConfig, spliced: SplicedModel, task: Task, progress: Progress = lambda *_: None
) -> FrontierResult:
    """Choose on some prompts of each group of aligned ones, measure on others of the group.

    Raises:
        ValueError: if there are too few prompts, or the corruption does not change the metric.
    """
    groups = [_group(config, spliced, task, g, progress) for g in task.groups(spliced.model)]
    return FrontierResult(
        task=config.task,
        model=config.model,
        dictionaries=config.dictionaries,
        metric_name=task.metric_name,
        groups=tuple(groups),
    )


def _group(
    config: FrontierConfig, spliced: SplicedModel, task: Task, group: str, progress: Progress
) -> GroupFrontiers:
    n = config.n_discovery + config.n_proof
    prompts = task.prompts(spliced.model, n, seed=config.seed + 1, aligned_group=group)
    choosing, proving = prompts[: config.n_discovery], prompts[config.n_discovery :]
    check_disjoint(stacked(choosing)[0], stacked(proving)[0])
    features = _features(config, spliced, task, choosing, proving, progress)
    plain = [
        family
        for kind in ("neurons", "heads")
        for family in _plain(config, spliced, task, kind, choosing, proving, progress)
    ]
    clean, corrupted = stacked(proving)
    ends = [_metric(spliced, task, tokens, proving) for tokens in (clean, corrupted)]
    return GroupFrontiers(
        group=group,
        example=choosing[0].clean,
        n_discovery=config.n_discovery,
        metric_model=ends[0],
        metric_empty=ends[1],
        frontiers=(*features, *plain),
    )


def _metric(
    spliced: SplicedModel,
    task: Task,
    tokens: Int[Tensor, "prompt pos"],
    prompts: Sequence[TaskPrompt],
) -> float:
    with torch.no_grad():
        return float(task.metric(spliced.model.run(tokens)[0][:, -1], prompts).double().mean())


def _features(
    config: FrontierConfig,
    spliced: SplicedModel,
    task: Task,
    choosing: Sequence[TaskPrompt],
    proving: Sequence[TaskPrompt],
    progress: Progress,
) -> list[Frontier]:
    metric, limit = metric_of(task, proving), config.memory_mib * 2**20
    trial = Trial.on_prompts(CHOICES, spliced, *stacked(proving), metric, max_bytes=limit)
    sweeps = feature_sweeps(config, spliced, task, choosing, trial, progress)
    place = numbered([(node.kind, node.site, node.layer) for node in trial.units])
    tokens = torch.tensor([node.kind == "token" for node in trial.units])
    return _measured(config, trial, "features", sweeps, place, tokens, progress)


def _plain(
    config: FrontierConfig,
    spliced: SplicedModel,
    task: Task,
    kind: UnitKind,
    choosing: Sequence[TaskPrompt],
    proving: Sequence[TaskPrompt],
    progress: Progress,
) -> list[Frontier]:
    limit = config.memory_mib * 2**20
    chooser, trial = (
        UnitTrial.on_prompts(
            kind, spliced.model, *stacked(rows), metric_of(task, rows), max_bytes=limit
        )
        for rows in (choosing, proving)
    )
    sweeps = plain_sweeps(config, chooser, trial.units, progress, kind)
    if kind == "heads":  # of neurons there are too many to try one by one
        sweeps.append(plain_acdc(config, chooser, trial.units, progress, kind))
    place = numbered([unit.site for unit in trial.units])
    tokens = torch.tensor([unit.part == "token" for unit in trial.units])
    return _measured(config, trial, kind, sweeps, place, tokens, progress)


def _measured(
    config: FrontierConfig,
    trial: Trial | UnitTrial,
    kind: str,
    sweeps: Sequence[Sweep],
    place: Int[Tensor, " unit"],
    tokens: Bool[Tensor, " unit"],
    progress: Progress,
) -> list[Frontier]:
    """Every sweep, and random circuits of the sizes of the first, its tokens kept."""
    unit, choices = _COMPONENTS[kind], _other_choices()
    found = []
    for number, sweep in enumerate(sweeps):
        progress(f"{kind}: measuring", number / (len(sweeps) + 1))
        found.append(
            frontier(
                trial.measure,
                trial.model_metric,
                sweep.circuits,
                family=f"{kind}, {sweep.method}",
                unit=unit,
                choices=choices,
                seed=config.seed,
            )
        )
    progress(f"{kind}: random circuits", len(sweeps) / (len(sweeps) + 1))
    draws = random_sweep(sweeps[0], place, tokens, n=config.n_random, seed=config.seed)
    random = random_frontier(
        trial.measure,
        trial.model_metric,
        draws,
        family=f"{kind}, random",
        unit=unit,
        choices=choices,
    )
    return [*found, random]


def _other_choices() -> str:
    """The choices that all families share."""
    return (
        f"unit {CHOICES.unit}; component as named; value {CHOICES.value}; positions "
        f"{CHOICES.positions}; direction {CHOICES.direction}; set {CHOICES.ablated}"
    )
