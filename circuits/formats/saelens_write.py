"""Dictionaries as SAELens folders, one each, as SAELens 6 loads them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.conventions import Convention
from circuits.dictionaries import SAE, CrossLayerTranscoder, Dictionary
from circuits.files import write_json
from circuits.formats.hooks import READS, WRITES
from circuits.formats.writing import check_writable, save_tensors

__all__ = ["write"]

_VERSION = "6.0.0"
"""The version whose layout of `cfg.json` this is."""
_INPUTS = {norm: hook for hook, norm in reversed(READS.items())}
_OUTPUTS = {side: hook for hook, side in WRITES.items()}


def write(dictionaries: dict[str, Dictionary], folder: Path, model: str) -> None:
    """Write each dictionary to a folder of its own, `SITE.LAYER`, in `folder`.

    The weights are written as they are, so what was subtracted from the input in training stays
    folded into `b_enc` and `apply_b_dec_to_input` is false.

    Args:
        dictionaries: `{"mlp.0": ...}`.
        folder: made if it is not there.
        model: name of the model they were trained on.

    Raises:
        ValueError: if SAELens has no class for one of them; nothing is written then.
        OSError: if the disk is full or the folder not writable.
    """
    configs = {name: _config(name, made, model) for name, made in dictionaries.items()}
    for name, dictionary in dictionaries.items():
        check_writable(name, dictionary)
    for name, dictionary in dictionaries.items():
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        save_tensors(_tensors(dictionary), own / "sae_weights.safetensors")
        write_json(own / "cfg.json", configs[name])


def _architecture(name: str, dictionary: Dictionary) -> str:
    """SAELens' name for it.

    Raises:
        ValueError: if it has none.
    """
    skips = dictionary.W_skip is not None
    if isinstance(dictionary, CrossLayerTranscoder):
        raise ValueError(
            f"{name} is a cross-layer transcoder, which SAELens has no class for; write it in the "
            "format circuit-tracer"
        )
    if dictionary.threshold is not None and (dictionary.threshold < 0).any():
        raise ValueError(
            f"{name} has a negative threshold, and SAELens cuts activations at 0; it cannot be "
            "written"
        )
    if isinstance(dictionary, SAE):
        if skips:
            raise ValueError(f"{name} is an SAE with a skip, which SAELens has no class for")
        return "standard" if dictionary.activation == "relu" else dictionary.activation
    if dictionary.activation == "topk":
        raise ValueError(f"{name} is a TopK transcoder, which SAELens has no class for")
    jumps = "jumprelu_" if dictionary.activation == "jumprelu" else ""
    return f"{jumps}{'skip_' if skips else ''}transcoder"


def _config(name: str, dictionary: Dictionary, model: str) -> dict[str, Any]:
    architecture = _architecture(name, dictionary)
    site, _, layer = name.rpartition(".")
    convention = dictionary.convention
    if isinstance(dictionary, SAE):
        hooks = {"hook_name": f"blocks.{layer}.hook_{site}"}
        sizes: dict[str, int] = {}
    else:
        hooks = {
            "hook_name": f"blocks.{layer}.{_INPUTS[convention.norm]}",
            "hook_name_out": f"blocks.{layer}.{_OUTPUTS[convention.output]}",
        }
        sizes = {"d_out": dictionary.d_out}
    topk = {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    return {
        "architecture": architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        **sizes,
        **(topk if architecture == "topk" else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _VERSION,
            "model_name": model,
            **hooks,
            **_training(convention),
        },
    }


def _training(convention: Convention) -> dict[str, Any]:
    """How it was trained, in SAELens' words; what is unknown is left out."""
    centred = {"center_writing_weights": True} if convention.centred else {}
    known: dict[str, Any] = {"model_from_pretrained_kwargs": centred}
    if convention.bos != "unknown":
        known["prepend_bos"] = convention.bos == "in front"
    if convention.first_position != "unknown":
        known["seqpos_slice"] = [None if convention.first_position == "read" else 1, None]
    return known


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    found = {
        "W_enc": dictionary.W_enc,
        "W_dec": dictionary.W_dec,
        "b_enc": dictionary.b_enc,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.activation == "jumprelu":
        assert dictionary.threshold is not None
        found["threshold"] = dictionary.threshold
    if dictionary.W_skip is not None:
        found["W_skip"] = dictionary.W_skip.T
    return {name: tensor.detach().to("cpu", torch.float32) for name, tensor in found.items()}
