"""Processes that train together, as torchrun starts them: each learns from its share of a batch.

Gradients are averaged by `all_reduce` as they are, not by DistributedDataParallel. They are written
by hand and all there at once, so that there is no backward pass to overlap with; and after its
first step DistributedDataParallel packs them anew, so that with three processes or more a resumed
run would add them in another order than one that never stopped.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["ALONE", "Processes", "check_device", "joined", "leads"]

_PATIENCE = timedelta(days=2)
"""How long the others wait while the first process samples text or measures fidelity."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. Alone, nothing is exchanged.

    Args:
        rank: number of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, n_tokens: int) -> slice:
        """Which tokens of a batch are this process's.

        Raises:
            ValueError: if they cannot be shared evenly.
        """
        if n_tokens % self.size:
            raise ValueError(
                f"batch_size {n_tokens} cannot be shared evenly by {self.size} processes; want a "
                f"multiple of {self.size}"
            )
        each = n_tokens // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over the processes, the same in all of them."""
        if self.size == 1:
            return value
        mean = value.clone()
        self.average([mean])
        return mean

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        dense = [tensor.contiguous() for tensor in tensors]
        _wait([dist.all_reduce(tensor, async_op=True) for tensor in dense])
        for tensor, total in zip(tensors, dense, strict=True):
            torch.div(total, self.size, out=tensor)

    def spread(self, pieces: Sequence[tuple[int, Tensor]]) -> None:
        """Give every process the value that each tensor has in the process named beside it."""
        if self.size == 1:
            return
        _wait(
            [
                dist.broadcast(tensor.view(-1).view(torch.uint8), src=owner, async_op=True)
                for owner, tensor in pieces
            ]
        )

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Processes()


def _wait(exchanges: Sequence[dist.Work | None]) -> None:
    for exchange in exchanges:
        assert exchange is not None, "this process is one of the group"
        exchange.wait()


def leads() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def check_device(kind: str) -> None:
    """Refuse `cuda` where there is none.

    Raises:
        ValueError: then.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is not there: torch finds no GPU; leave device out, or cpu")


@contextmanager
def joined(kind: str) -> Iterator[Processes]:
    """The processes that torchrun started this one with, or this one alone.

    Args:
        kind: `cpu` (they talk through gloo) or `cuda` (nccl; each takes the device of its number).
    """
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    check_device(kind)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Its functions have the group as a default argument. Imported later (as loading a model does)
    # they would hold it, and its threads, beyond `destroy_process_group` and abort at exit.
    import_module("torch.distributed.nn")
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
