"""Sound checkpoints of every format, to be damaged, and pickles that would run code."""

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from circuits.checkpoints import save_dictionary
from circuits.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    native,
    saelens,
    sparsify,
    transcoder_circuits,
)
from circuits.formats.entry import Format, Given
from tests import models

FIXTURES = Path(__file__).parent.parent / "fixtures"
CONFIG_CLASS = "sae_training.config.LanguageModelSAERunnerConfig"


@dataclass(frozen=True)
class Target:
    """A checkpoint to attack.

    Args:
        format: its format.
        source: folder under `tests/fixtures`; empty for our own.
        weights: its weights, or one file of them.
        config: its config, if it has one that is a file of its own.
    """

    format: Format
    source: str
    weights: str
    config: str | None = None


_GEMMA = "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_87"
_PAPER = "final_sparse_autoencoder_gpt2-small_blocks.0.ln2.hook_normalized_12.pt"
_SECOND = "gemma_scope/transcoder_all/layer_7_width_16k_l0_small_affine"
TARGETS = {
    "dictionary-learning": Target(
        dictionary_learning.FORMAT, "dictionary_learning/topk", "ae.pt", "config.json"
    ),
    "transcoder-circuits": Target(transcoder_circuits.FORMAT, "transcoder_circuits", _PAPER),
    "sparsify": Target(
        sparsify.FORMAT, "sparsify/transcoders/h.1.mlp", "sae.safetensors", "cfg.json"
    ),
    "saelens": Target(
        saelens.FORMAT, "saelens/jumprelu_skip_transcoder", "sae_weights.safetensors", "cfg.json"
    ),
    "gemma-scope": Target(gemma_scope.FORMAT, f"gemma_scope/{_GEMMA}", "params.npz"),
    "gemma-scope-2": Target(gemma_scope_2.FORMAT, _SECOND, "params.safetensors", "config.json"),
    "circuit-tracer": Target(
        circuit_tracer.FORMAT, "circuit_tracer/plt_skip", "layer_1.safetensors", "config.yaml"
    ),
    "circuit-tracer-clt": Target(
        circuit_tracer.FORMAT, "circuit_tracer/clt", "W_enc_1.safetensors", "config.yaml"
    ),
    "circuitloom": Target(native.FORMAT, "", "mlp.0.safetensors"),
}
PICKLED = [name for name, target in TARGETS.items() if target.weights.endswith(".pt")]
SAFETENSORS = [name for name, t in TARGETS.items() if t.weights.endswith(".safetensors")]
JSON = [name for name, t in TARGETS.items() if t.config and t.config.endswith(".json")]


def place(name: str, tmp_path: Path) -> Path:
    """A sound checkpoint in a folder of its own."""
    target = TARGETS[name]
    folder = tmp_path / (target.source or "ours")
    if target.source:
        shutil.copytree(FIXTURES / target.source, folder)
        return folder
    folder.mkdir()
    save_dictionary(models.transcoder("relu"), folder / target.weights, layer=0, model="toy")
    return folder


def read_all(name: str, folder: Path) -> list[torch.Tensor]:
    """Open it, and read everything in it both ways."""
    found = []
    for entry in TARGETS[name].format.open(folder, Given()):
        dictionary = entry.read()
        rows = entry.read_rows([0])
        found += [dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, rows.encoder]
    return found


def refused(name: str, folder: Path, message: str) -> None:
    """That it cannot be read, for a reason that says where and what."""
    with pytest.raises(ValueError, match=message):
        read_all(name, folder)


def outcome(name: str, folder: Path) -> tuple[list[torch.Tensor], str]:
    """What is read, or no tensors and the message of the error."""
    try:
        return read_all(name, folder), ""
    except ValueError as error:
        return [], str(error)


# --- tensors of a file ---------------------------------------------------------------------------


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    if path.suffix == ".pt":
        found = torch.load(path, weights_only=False)
        return dict(found.get("state_dict", found))
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the tensors of a file and leave what else it says."""
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".pt":
        found = torch.load(path, weights_only=False)
        whole = {**found, "state_dict": tensors} if "state_dict" in found else tensors
        torch.save(whole, path)
    else:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
        save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata=metadata)


def names_of_tensors(name: str) -> list[str]:
    """Of the floating-point tensors in the file of a target."""
    target = TARGETS[name]
    if not target.source:
        return ["W_enc", "W_dec", "b_enc", "b_dec"]
    found = tensors_of(FIXTURES / target.source / target.weights)
    return sorted(name for name, tensor in found.items() if tensor.is_floating_point())


# --- pickles -------------------------------------------------------------------------------------


class RunnerConfig:
    """Pickled under the name of the paper's config."""


def stand_for_the_papers_package() -> None:
    """So that these tests can write the paper's files; reading them needs nothing of the kind."""
    module = ModuleType("sae_training.config")
    module.LanguageModelSAERunnerConfig = RunnerConfig  # type: ignore[attr-defined]
    RunnerConfig.__module__, RunnerConfig.__qualname__ = CONFIG_CLASS.rsplit(".", 1)
    sys.modules["sae_training"] = ModuleType("sae_training")
    sys.modules["sae_training.config"] = module


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Built:
    """An object whose pickle sets a state on what a function makes."""

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], state: Any
    ) -> None:
        self.parts = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def payloads(sentinel: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose pickles would make `sentinel`, and what must be named when they are refused."""
    touch = f"open({str(sentinel)!r}, 'w')"
    return {
        "os.system": (Call(os.system, f"touch {sentinel}"), f"{os.name}.system"),
        "eval": (Call(eval, touch), "builtin.*eval"),
        "exec": (Call(exec, touch), "builtin.*exec"),
        "open": (Call(open, str(sentinel), "w"), "io.open"),
        "os.mkdir": (Call(os.mkdir, str(sentinel)), f"{os.name}.mkdir"),
        "getattr": (Call(getattr, "x", "upper"), "builtin.*getattr"),
        "torch.hub": (Call(torch.hub.load, "owner/name", "entry"), "torch.hub.load"),
        "torch.load": (Call(torch.load, str(sentinel)), "torch.serialization.load"),
        "pickle.loads": (Call(pickle.loads, b"."), "pickle.loads"),
        "shutil.rmtree": (Call(shutil.rmtree, str(sentinel.parent)), "shutil.rmtree"),
        "a state that is called": (
            Built(torch.nn.Module, (), {"_forward_hooks": Call(os.system, f"touch {sentinel}")}),
            "torch.nn.modules.module.Module",
        ),
        "a function of torch that calls others": (
            Call(torch._tensor._rebuild_from_type_v2, os.system, str, (f"touch {sentinel}",), {}),
            "torch._tensor._rebuild_from_type_v2",
        ),
    }
