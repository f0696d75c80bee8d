"""Checkpoints of a training run: one file, replaced in one move."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from circuits.files import write_atomically
from circuits.training.learner import Learner

__all__ = ["CHECKPOINT_NAME", "read_checkpoint", "save_checkpoint"]

CHECKPOINT_NAME = "checkpoint.safetensors"
_VERSION = 2


def save_checkpoint(folder: Path, learners: Mapping[str, Learner], step: int) -> None:
    """Write the state after `step` steps of the learners, keyed `SITE.LAYER`."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, learner in learners.items():
        for name, tensor in learner.state().items():
            # safetensors refuses tensors that share memory, as the scales of an SAE do.
            shared = tensor.data_ptr() in seen
            seen.add(tensor.data_ptr())
            tensors[f"{key}/{name}"] = tensor.clone() if shared else tensor.contiguous()
    header = {"circuitloom": json.dumps({"version": _VERSION, "step": step})}
    write_atomically(
        folder / CHECKPOINT_NAME, lambda path: save_file(tensors, str(path), metadata=header)
    )


def read_checkpoint(
    folder: Path, device: torch.device | str
) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
    """Steps done and the learners' states, or None where there is no checkpoint.

    Raises:
        ValueError: if the file is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return None
    states: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("circuitloom", "{}"))
            for name in file.keys():  # noqa: SIM118
                key, _, rest = name.partition("/")
                # Tensors straight from the file may be unaligned, which changes the order of sums.
                states.setdefault(key, {})[rest] = file.get_tensor(name).clone().to(device)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from error
    if record.get("version") != _VERSION:
        raise ValueError(
            f"{path} has version {record.get('version')}, this reads {_VERSION}; delete it to "
            "start again"
        )
    return record["step"], states
