"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`, or a tree of such folders.

Whatever SAELens does to activations at run time and can be done to the weights once is done here:
the subtracted `b_dec`, the input scale, the decoder norms of TopK, the two paths of a gated SAE.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from circuits.dictionaries import Activation
from circuits.formats.building import (
    check_given_layer,
    check_layout,
    make_entry,
    read_features,
    sorted_entries,
)
from circuits.formats.entry import Entry, Format, Given
from circuits.formats.folds import (
    fold_decoder_norm,
    fold_gate,
    fold_input_scale,
    fold_subtracted,
)
from circuits.formats.reading import read_json, shapes
from circuits.formats.saelens_config import Described, describe, where
from circuits.formats.saelens_write import write

__all__ = ["FORMAT"]

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_THRESHOLDS = ("threshold", "log_threshold")
_BY_ROW = ("W_dec", "b_enc", "b_gate", "b_mag", "r_mag", *_THRESHOLDS, "scaling_factor")


def _folders(path: Path) -> list[Path]:
    """`path`, or the folders below it, that hold a config and weights."""
    return [
        config.parent
        for config in sorted(path.rglob(_CONFIG))
        if (config.parent / _WEIGHTS).is_file()
    ]


def _recognises(path: Path) -> bool:
    folders = _folders(path)
    if not folders:
        return False
    try:
        config = read_json(folders[0] / _CONFIG)
    except ValueError:
        return False
    return {"d_in", "d_sae"} <= config.keys()


def _open(path: Path, given: Given) -> list[Entry]:
    folders = _folders(path)
    if not folders:
        raise ValueError(f"{path} has no {_CONFIG} beside a {_WEIGHTS}, nor has a folder in it")
    check_given_layer(path, given, len(folders))
    places = {folder: where(folder / _CONFIG, given) for folder in folders}
    entries = [
        _entry(folder, site, layer, given)
        for folder, (site, layer) in places.items()
        if given.layers is None or layer in given.layers
    ]
    return sorted_entries(path, entries)


def _entry(folder: Path, site: str, layer: int, given: Given) -> Entry:
    described = describe(folder / _CONFIG, given)
    path = folder / _WEIGHTS
    names = _check(path, described)
    name = described.architecture
    jumps = "jumprelu" in name or name == "gated"
    activation: Activation = "topk" if name == "topk" else "jumprelu" if jumps else "relu"

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        wanted = names if rows is None else [name for name in names if name != "W_skip"]
        tensors = read_features(path, wanted, rows, by_row=_BY_ROW, by_column=("W_enc",))
        factor = tensors.pop("scaling_factor", None)
        if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
            raise ValueError(
                f"{path} holds a scaling_factor of finetuning that SAELens no longer applies; "
                "decide whether it belongs to the decoder and fold it there"
            )
        return _folded(tensors, described, given.input_norm)

    return make_entry(
        kind="transcoder" if site == "mlp" else "sae",
        site=site,
        layer=layer,
        sizes=described.sizes,
        convention=described.convention,
        model=described.model,
        path=path,
        load=load,
        activation=activation,
        k=described.k,
    )


def _check(path: Path, described: Described) -> list[str]:
    """Names of the tensors to read, once the file is seen to have them in the right shapes."""
    d_in, d_out, n_features = described.sizes
    want = {"W_enc": (d_in, n_features), "W_dec": (n_features, d_out), "b_dec": (d_out,)}
    features = ("b_gate", "b_mag", "r_mag") if described.architecture == "gated" else ("b_enc",)
    got = shapes(path)
    if "jumprelu" in described.architecture:
        features += ("log_threshold",) if "log_threshold" in got else ("threshold",)
    want |= dict.fromkeys(features, (n_features,))
    if "skip" in described.architecture:
        want["W_skip"] = (d_out, d_in)
    check_layout(path, got, want | {"scaling_factor": (n_features,)}, optional=("scaling_factor",))
    return [*want, "scaling_factor"]


def _folded(
    tensors: dict[str, Tensor], described: Described, input_norm: float | None
) -> dict[str, Tensor]:
    """Tensors of a file in this package's layout, with everything done that SAELens does."""
    W_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "W_dec", "b_dec"))
    threshold = tensors.get("threshold")
    if "log_threshold" in tensors:
        threshold = tensors["log_threshold"].exp()
    if described.scaled:
        assert input_norm is not None
        W_enc, W_dec, b_dec = fold_input_scale(W_enc, W_dec, b_dec, input_norm)
    if described.architecture == "gated":
        gate = (tensors[name] for name in ("b_gate", "b_mag", "r_mag"))
        W_enc, b_enc, threshold = fold_gate(W_enc, *gate)
    else:
        b_enc = tensors["b_enc"]
    if described.rescaled:
        W_enc, b_enc, W_dec = fold_decoder_norm(W_enc, b_enc, W_dec)
    if described.subtracts:
        b_enc = fold_subtracted(W_enc, b_enc, b_dec)
    weights = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    if threshold is not None:  # its ReLU cuts what a negative threshold would let through
        weights["threshold"] = threshold.clamp_min(0)
    if "W_skip" in tensors:
        weights["W_skip"] = tensors["W_skip"].T
    return weights


FORMAT = Format(
    name="saelens",
    what="SAELens SAEs and transcoders, old and new: cfg.json and sae_weights.safetensors",
    recognises=_recognises,
    open=_open,
    write=write,
)
