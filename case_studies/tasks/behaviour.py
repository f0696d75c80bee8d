"""Does the model do the task at all? Its metric and success rate, with intervals over prompts."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from case_studies.tasks.task import Split, Task, TaskPrompt
from circuits.subject import SubjectModel

__all__ = [
    "Behaviour",
    "GroupBehaviour",
    "bootstrap_interval",
    "final_logits",
    "measure_behaviour",
]

_N_RESAMPLES = 2000


class GroupBehaviour(BaseModel):
    """The prompts of one group: one order of names, or one form of numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_prompts: int
    metric: float = Field(description="mean of the task's metric")
    success_rate: float


class Behaviour(BaseModel):
    """What a model does on a task; intervals are 95% bootstrap intervals over prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    task: str
    split: Split = Field(description="which words and years the prompts were drawn from")
    n_prompts: int
    seed: int
    metric_name: str
    metric: float = Field(description="mean of the task's metric on clean prompts")
    metric_interval: tuple[float, float]
    success_rate: float
    success_interval: tuple[float, float]
    corrupted_metric: float = Field(
        description="mean metric on corrupted prompts, with the clean prompts' answers"
    )
    groups: dict[str, GroupBehaviour]
    further: dict[str, float] = Field(description="means of the task's further metrics")


def final_logits(
    model: SubjectModel, rows: Sequence[Int[Tensor, " _"]], *, max_bytes: int = 32 * 2**20
) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last position of each prompt, in order; equal lengths run together, unpadded.

    Args:
        model: the subject model.
        rows: token ids, of any lengths.
        max_bytes: memory for the logits of one batch, all positions.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_length[len(row)].append(i)
    found: dict[int, Tensor] = {}
    for n_pos, members in by_length.items():
        size = max(1, max_bytes // (n_pos * model.d_vocab * model.dtype.itemsize))
        for at in range(0, len(members), size):
            chunk = members[at : at + size]
            with torch.no_grad():
                logits, _ = model.run(torch.stack([rows[i] for i in chunk]))
            found.update(zip(chunk, logits[:, -1], strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


def bootstrap_interval(
    values: Float[np.ndarray, " prompt"], *, seed: int, n_resamples: int = _N_RESAMPLES
) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of the mean over resampled prompts.

    Example:
        >>> bootstrap_interval(np.ones(5), seed=0)
        (1.0, 1.0)
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(n_resamples, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def measure_behaviour(
    model: SubjectModel, task: Task, n: int, seed: int, split: Split = "held_out"
) -> Behaviour:
    """Put `n` prompts of `task` to the model.

    Raises:
        ValueError: if the task cannot be asked of this model's tokenizer.
    """
    prompts = task.prompts(model, n, seed=seed, split=split)
    logits = final_logits(model, [p.clean_tokens for p in prompts])
    corrupted = final_logits(model, [p.corrupted_tokens for p in prompts])
    metric = task.metric(logits, prompts).double().cpu().numpy()
    success = task.succeeds(logits, prompts).double().cpu().numpy()
    further = task.further_metrics(logits, prompts)
    return Behaviour(
        model=model.name,
        task=task.name,
        split=split,
        n_prompts=n,
        seed=seed,
        metric_name=task.metric_name,
        metric=float(metric.mean()),
        metric_interval=bootstrap_interval(metric, seed=seed),
        success_rate=float(success.mean()),
        success_interval=bootstrap_interval(success, seed=seed),
        corrupted_metric=float(task.metric(corrupted, prompts).mean()),
        groups=_by_group(prompts, metric, success),
        further={name: float(values.mean()) for name, values in further.items()},
    )


def _by_group(
    prompts: Sequence[TaskPrompt], metric: np.ndarray, success: np.ndarray
) -> dict[str, GroupBehaviour]:
    groups = {}
    for group in sorted({p.group for p in prompts}):
        members = [i for i, p in enumerate(prompts) if p.group == group]
        groups[group] = GroupBehaviour(
            n_prompts=len(members),
            metric=float(metric[members].mean()),
            success_rate=float(success[members].mean()),
        )
    return groups
