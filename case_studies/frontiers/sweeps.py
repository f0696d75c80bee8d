"""From scores to the circuits of a family, as flags over the units of the prompts that prove."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from case_studies.tasks.task import Task, TaskPrompt
from graphs.faithfulness import Metric
from graphs.frontier import geometric_sizes, top_ranked
from graphs.units import random_alike

__all__ = ["Progress", "Sweep", "metric_of", "numbered", "random_sweep", "ranked_sweep", "stacked"]

Progress = Callable[[str, float], None]
"""Called with what is going on and the share of it that is done."""


@dataclass(frozen=True)
class Sweep:
    """The circuits of one method over one kind of units, chosen without the prompts that prove."""

    method: str
    circuits: Mapping[float, Bool[Tensor, " unit"]]


def ranked_sweep(method: str, score: Float[Tensor, " unit"], *, factor: float) -> Sweep:
    """The best-scored units, at sizes that grow by `factor`."""
    return Sweep(method, top_ranked(score, geometric_sizes(len(score), factor=factor)))


def random_sweep(
    like: Sweep, place: Int[Tensor, " unit"], stay: Bool[Tensor, " unit"], *, n: int, seed: int
) -> dict[float, Bool[Tensor, "draw unit"]]:
    """Random circuits with as many units of every place as each of a sweep; see `random_alike`."""
    return {
        threshold: random_alike(kept, place, stay, n=n, seed=seed + number)
        for number, (threshold, kept) in enumerate(like.circuits.items())
    }


def numbered(places: Sequence[Hashable]) -> Int[Tensor, " unit"]:
    """Equal places as equal numbers, in the order of their first occurrence.

    Example:
        >>> numbered(["b", "a", "b"])
        tensor([0, 1, 0])
    """
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(place, len(numbers)) for place in places])


def stacked(
    prompts: Sequence[TaskPrompt],
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
    """Clean and corrupted tokens of aligned prompts."""
    clean = torch.stack([prompt.clean_tokens for prompt in prompts])
    return clean, torch.stack([prompt.corrupted_tokens for prompt in prompts])


def metric_of(task: Task, prompts: Sequence[TaskPrompt]) -> Metric:
    """The task's metric on these prompts in their order, once or, in batches of several runs
    (`integrated_effects`), as often as the logits hold them.
    """

    def metric(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
        return task.metric(logits, list(prompts) * (len(logits) // len(prompts)))

    return metric
