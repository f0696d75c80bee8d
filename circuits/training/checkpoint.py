"""Checkpoints of a training run: one file, replaced in one move."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from circuits.files import write_atomically
from circuits.training.config import TrainingConfig
from circuits.training.learner import Learner

__all__ = ["CHECKPOINT_NAME", "load_checkpoint", "save_checkpoint"]

CHECKPOINT_NAME = "checkpoint.safetensors"
_VERSION = 1


def save_checkpoint(folder: Path, learners: Mapping[str, Learner], step: int) -> None:
    """Write the state after `step` steps of the learners, keyed `SITE.LAYER`."""
    from safetensors.torch import save_file

    tensors = {
        f"{key}/{name}": tensor.contiguous()
        for key, learner in learners.items()
        for name, tensor in learner.state().items()
    }
    # safetensors refuses tensors that share memory, as the scales of an SAE do.
    unshared = {name: tensor.clone() for name, tensor in tensors.items()}
    header = {"circuitloom": json.dumps({"version": _VERSION, "step": step})}
    write_atomically(
        folder / CHECKPOINT_NAME, lambda path: save_file(unshared, str(path), metadata=header)
    )


def load_checkpoint(folder: Path, config: TrainingConfig) -> tuple[int, dict[str, Learner]] | None:
    """Steps done and learners, or None where there is no checkpoint.

    Raises:
        ValueError: if the file is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("circuitloom", "{}"))
            # Tensors straight from the file may be unaligned, which changes the order of sums.
            names = list(file.keys())
            tensors: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from error
    if record.get("version") != _VERSION:
        raise ValueError(
            f"{path} has version {record.get('version')}, this reads {_VERSION}; delete it to "
            "start again"
        )
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, rest = name.partition("/")
        states.setdefault(key, {})[rest] = tensor
    learners = {
        key: Learner.from_state(config, key.rpartition(".")[0], state)
        for key, state in states.items()
    }
    return record["step"], learners
