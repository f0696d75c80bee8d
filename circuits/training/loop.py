"""The loop over optimiser steps: several runs learn from the same batches.

Nothing a run computes depends on the others beside it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.training.checkpoint import read_checkpoint, save_checkpoint
from circuits.training.config import DictionaryConfig
from circuits.training.cross_layer import learner_class
from circuits.training.display import Progress, Watcher
from circuits.training.learner import Learner
from circuits.training.places import kind_of
from circuits.training.processes import Processes
from circuits.training.step import Workspace

__all__ = ["Batch", "Run", "learn", "open_run"]

Pair = tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]
Batch = Callable[[str], Pair]
"""Name of a dictionary -> raw inputs and targets of one step; valid until asked for the next."""

_NEWS_EVERY = 10


@dataclass
class Run:
    """One configuration in training.

    Args:
        name: among the runs of this loop; empty for a single one.
        config: its settings.
        learners: by name of the dictionary.
        step: optimiser steps done.
        folder: where its checkpoint is kept; None for nowhere.
    """

    name: str
    config: DictionaryConfig
    learners: dict[str, Learner]
    step: int = 0
    folder: Path | None = None

    def full_name(self, key: str) -> str:
        """The dictionary's name among those of all runs."""
        return f"{self.name}/{key}" if self.name else key


def open_run(
    name: str,
    config: DictionaryConfig,
    keys: Mapping[str, int],
    first: Batch,
    *,
    folder: Path | None,
    device: torch.device,
    work: Workspace,
    processes: Processes,
) -> Run:
    """A run where its checkpoint left it, or at its first step.

    Args:
        keys: name of each dictionary -> the seed of its weights.
        first: gives many raw inputs and targets, to which dictionaries are scaled.
        work: buffers shared by all learners.
    """
    found = None if folder is None else read_checkpoint(folder, device)
    if found is not None:
        step, states = found
        learners = {
            key: learner_class(kind_of(key)).from_state(
                config, kind_of(key), states[key], work=work, processes=processes
            )
            for key in keys
        }
    else:
        step = 0
        learners = {
            key: learner_class(kind_of(key)).start(
                config, kind_of(key), *first(key), seed=seed, work=work, processes=processes
            )
            for key, seed in keys.items()
        }
    for learner in learners.values():
        learner.agree()
    return Run(name, config, learners, step, folder)


def learn(
    runs: Sequence[Run],
    batches: Callable[[int], Iterator[Batch]],
    *,
    last: int,
    checkpoint_every: int,
    watch: Watcher,
    saves: bool,
) -> None:
    """Take all runs to step `last`, beginning with the one that is furthest behind.

    Args:
        batches: number of a step -> the batches from there on.
        last: steps done at the end.
        checkpoint_every: steps between checkpoints; there is one at the end in any case.
        watch: called with news.
        saves: whether this process writes the checkpoints.

    Raises:
        ValueError: if a loss is not finite, or batches run out.
    """
    total = max(run.config.n_steps for run in runs)
    first = min(run.step for run in runs)
    numbers: dict[str, tuple[float, float]] = {}
    feed = batches(first)
    for step in range(first, last):
        batch = next(feed, None)
        if batch is None:
            raise ValueError(
                f"the batches ended after {step} of {last} steps; give more, or a smaller n_tokens"
            )
        behind = [run for run in runs if run.step == step]
        _learn_one(behind, batch, step, numbers)
        done = step + 1
        if saves and (done % checkpoint_every == 0 or done == last):
            for run in behind:
                if run.folder is not None:
                    save_checkpoint(run.folder, run.learners, done)
        if done % _NEWS_EVERY == 0 or done == last:
            watch(Progress("training (steps)", done, total, dict(numbers)))


def _learn_one(
    runs: Sequence[Run], batch: Batch, step: int, numbers: dict[str, tuple[float, float]]
) -> None:
    """One step of every learner of `runs`; a batch at a site is put together once for all."""
    for key in dict.fromkeys(key for run in runs for key in run.learners):
        x, y = batch(key)
        for run in (run for run in runs if key in run.learners):
            result = run.learners[key].learn(x, y, step)
            name = run.full_name(key)
            if not math.isfinite(result.loss):
                raise ValueError(
                    f"{name} diverged: its loss is {result.loss} at step {step}; want a smaller lr "
                    f"than {run.config.lr:g}, a clip_norm, or more bounded data"
                )
            numbers[name] = (result.loss, result.l0)
    for run in runs:
        run.step = step + 1
