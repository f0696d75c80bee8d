"""Transcoders as a folder that circuit-tracer loads: per-layer (with skips) or cross-layer."""

import re
from pathlib import Path

import torch
from torch import Tensor

from circuits.dictionaries import CrossLayerTranscoder, Dictionary, Transcoder, check_cross_layer
from circuits.files import write_text
from circuits.formats.hooks import READS, WRITES
from circuits.formats.writing import check_writable, save_tensors

__all__ = ["CONFIG", "KINDS", "THRESHOLD", "write"]

CONFIG = "config.yaml"
KINDS = ("transcoder_set", "cross_layer_transcoder")
THRESHOLD = "activation_function.threshold"


def write(dictionaries: dict[str, Dictionary], folder: Path, model: str) -> None:
    """Write a set of transcoders and its `config.yaml`, the config last.

    Args:
        dictionaries: `{"mlp.0": ...}`, one for every layer of the model from 0.
        folder: made if it is not there.
        model: name of the model, as transformer-lens or the hub knows it.

    Raises:
        ValueError: if circuit-tracer cannot hold the set; nothing is written then.
        OSError: if the disk is full or the folder not writable.
    """
    import yaml

    made = _checked(dictionaries)
    first = made[0]
    crossing = isinstance(first, CrossLayerTranscoder)
    files: dict[str, dict[str, Tensor]] = {}
    for layer, transcoder in enumerate(made):
        if crossing:
            files |= _cross_layer_files(layer, transcoder)
        else:
            files[f"layer_{layer}.safetensors"] = _per_layer_file(transcoder)
    _check_folder(folder, set(files))
    convention = first.convention
    config = {
        "model_name": model,
        "model_kind": KINDS[crossing],
        "feature_input_hook": next(h for h, norm in READS.items() if norm == convention.norm),
        "feature_output_hook": next(h for h, on in WRITES.items() if on == convention.output),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_tensors(tensors, folder / name)
    write_text(folder / CONFIG, yaml.safe_dump(config, sort_keys=True))


def _checked(dictionaries: dict[str, Dictionary]) -> list[Transcoder]:
    """The transcoders in the order of layers, if circuit-tracer can hold them.

    Raises:
        ValueError: if it cannot, with the reason.
    """
    found: dict[int, Transcoder] = {}
    for name, dictionary in dictionaries.items():
        if not isinstance(dictionary, Transcoder):
            raise ValueError(f"{name} is an SAE; circuit-tracer holds transcoders of MLPs only")
        check_writable(name, dictionary)
        if dictionary.activation == "topk":
            raise ValueError(f"{name} is TopK; circuit-tracer's files hold ReLU and JumpReLU only")
        if dictionary.convention.centred:
            raise ValueError(
                f"{name} was trained on centred activations; circuit-tracer runs the model "
                "uncentred and cannot be told"
            )
        if dictionary.d_in != dictionary.d_out:
            raise ValueError(
                f"{name} reads {dictionary.d_in} and writes {dictionary.d_out} wide; "
                "circuit-tracer has one d_model for both"
            )
        found[int(name.rpartition(".")[2])] = dictionary
    if sorted(found) != list(range(len(dictionaries))) or not found:
        raise ValueError(
            "circuit-tracer wants a transcoder for each layer of the model from 0 without a hole, "
            f"got {', '.join(sorted(dictionaries)) or 'none'}"
        )
    made = [found[layer] for layer in range(len(found))]
    _check_alike(made)
    return made


def _check_alike(made: list[Transcoder]) -> None:
    """Refuse a set that is not alike in what circuit-tracer holds once for all layers."""
    crossing = isinstance(made[0], CrossLayerTranscoder)
    alike = {
        "kinds": {type(t).__name__ for t in made},
        "numbers of features": {t.n_features for t in made},
        "widths": {t.d_in for t in made},
        "inputs and outputs": {(t.convention.norm, t.convention.output) for t in made},
        "skips": {t.W_skip is not None for t in made},
    }
    if crossing:
        alike["activations"] = {t.activation for t in made}
    for what, values in alike.items():
        if len(values) > 1:
            raise ValueError(
                f"circuit-tracer wants the same {what} in every layer, got {sorted(values)}"
            )
    if crossing and made[0].W_skip is not None:
        raise ValueError("circuit-tracer's files of cross-layer transcoders cannot hold a skip")
    check_cross_layer({i: t for i, t in enumerate(made) if isinstance(t, CrossLayerTranscoder)})


def _check_folder(folder: Path, names: set[str]) -> None:
    """Refuse a folder with files of another set, which circuit-tracer would count as layers."""
    pattern = re.compile(r"(layer|W_enc|W_dec)_.*\.safetensors")
    there = {path.name for path in folder.glob("*.safetensors") if pattern.match(path.name)}
    if there - names:
        raise ValueError(
            f"{folder} already holds {', '.join(sorted(there - names))} of another set; give an "
            "empty folder"
        )


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _per_layer_file(transcoder: Transcoder) -> dict[str, Tensor]:
    """Encoders in rows; the skip is applied as `x W_skip^T`."""
    tensors = {
        "W_enc": transcoder.W_enc.T,
        "W_dec": transcoder.W_dec,
        "b_enc": transcoder.b_enc,
        "b_dec": transcoder.b_dec,
    }
    if transcoder.activation == "jumprelu":
        assert transcoder.threshold is not None
        tensors[THRESHOLD] = transcoder.threshold
    if transcoder.W_skip is not None:
        tensors["W_skip"] = transcoder.W_skip.T
    return {name: _stored(tensor) for name, tensor in tensors.items()}


def _cross_layer_files(layer: int, transcoder: Transcoder) -> dict[str, dict[str, Tensor]]:
    encoder = {
        f"W_enc_{layer}": transcoder.W_enc.T,
        f"b_enc_{layer}": transcoder.b_enc,
        f"b_dec_{layer}": transcoder.b_dec,
    }
    if transcoder.activation == "jumprelu":
        assert transcoder.threshold is not None
        encoder[f"threshold_{layer}"] = transcoder.threshold
    return {
        f"W_enc_{layer}.safetensors": {name: _stored(t) for name, t in encoder.items()},
        f"W_dec_{layer}.safetensors": {f"W_dec_{layer}": _stored(transcoder.W_dec)},
    }
