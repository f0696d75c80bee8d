"""How long the parts of a training run take on this machine: a few real ones, timed."""

import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site
from circuits.subject import SubjectModel
from circuits.training.buffer import activations
from circuits.training.config import DictionaryConfig
from circuits.training.cross_layer import learner_class
from circuits.training.sampling import sample_rows
from circuits.training.step import Workspace
from circuits.training.text import bos_token

__all__ = ["seconds_of", "seconds_to_read", "seconds_to_sample", "step_of"]

_ROWS, _POSITIONS = 256, 16
_TIMES = 3


def seconds_of(act: Callable[[], object], device: torch.device) -> float:
    """The shortest of three runs of `act`, after one that is not counted."""
    taken = []
    for _ in range(_TIMES + 1):
        _settle(device)
        start = time.perf_counter()
        act()
        _settle(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_to_read(
    model: SubjectModel, rows: Int[Tensor, "row context"], sites: Sequence[Site]
) -> tuple[float, float]:
    """A row's share of a pass that ends at the last of `sites`, and of a whole one."""
    bos, on_device = bos_token(model), rows.to(model.device)
    partial = seconds_of(
        lambda: activations(model, rows, sites, bos=bos, batch_rows=len(rows)), model.device
    )
    whole = seconds_of(lambda: model.run(on_device), model.device)
    return partial / len(rows), whole / len(rows)


def seconds_to_sample(model: SubjectModel, n_rows: int, context: int) -> float:
    """Sampling `n_rows` of text: from the first positions of as many rows as go side by side."""
    rows, positions = min(_ROWS, n_rows), min(_POSITIONS, context)
    bos = bos_token(model)
    once = seconds_of(
        lambda: list(sample_rows(model, rows, positions, bos=bos, seed=0)), model.device
    )
    return once * (n_rows / rows) * (context - 1) / (positions - 1)


def step_of(
    config: DictionaryConfig,
    kind: str,
    x: Float[Tensor, "token ..."],
    y: Float[Tensor, "token ..."],
    work: Workspace,
) -> tuple[int, float]:
    """Trained numbers of a dictionary, and seconds of one of its first steps.

    Args:
        kind: of its site.
        x: some raw inputs, used over and over if they are fewer than a batch.
        y: the targets.
        work: buffers.
    """
    learner = learner_class(kind).start(config, kind, x, y, seed=config.seed, work=work)
    index = torch.arange(config.batch_size, device=x.device) % len(x)
    numbers = iter(range(config.n_steps + _TIMES + 1))

    def step() -> None:
        learner.learn(x.index_select(0, index), y.index_select(0, index), next(numbers))

    taken = seconds_of(step, x.device)
    return sum(tensor.numel() for tensor in learner.parameters.values()), taken
