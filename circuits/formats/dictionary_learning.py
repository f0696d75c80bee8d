"""Checkpoints of saprmarks/dictionary_learning: `ae.pt`, a state dict, beside `config.json`.

| dict_class | subtracted from x | features |
|---|---|---|
| AutoEncoder | `bias`, also added to the output | ReLU |
| AutoEncoderNew | nothing | ReLU |
| GatedAutoEncoder | `decoder_bias` | gate and magnitude, exactly a JumpReLU |
| AutoEncoderTopK | `b_dec` | TopK; its `threshold` is informational |
| BatchTopKSAE, MatryoshkaBatchTopKSAE | `b_dec` | JumpReLU, one `threshold` for all |
| JumpReluAutoEncoder | nothing | JumpReLU |

The annealing trainers use the first and the third. Thresholds cut what a ReLU let through, so a
negative one of JumpReLU is 0. Decoders are taken as they are, where the library's own loader of
`AutoEncoder` rescales them to norm 1 (and activations with them: the same output in other units).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from circuits.conventions import NATIVE
from circuits.dictionaries import Activation
from circuits.formats.building import (
    check_given_layer,
    check_layout,
    make_entry,
    select_features,
    sorted_entries,
    whole_number,
)
from circuits.formats.entry import Entry, Format, Given
from circuits.formats.folds import fold_gate
from circuits.formats.module_names import place_of_module
from circuits.formats.pickles import check_records, read_pickle, state_dict
from circuits.formats.reading import check_finite, read_json
from circuits.formats.subtracted import read_as_it_is

__all__ = ["FORMAT"]

_Axes = Mapping[str, tuple[str, ...]]
_LINEAR: _Axes = {"encoder.weight": ("F", "d"), "decoder.weight": ("d", "F")}
_PLAIN: _Axes = {"W_enc": ("d", "F"), "b_enc": ("F",), "W_dec": ("F", "d"), "b_dec": ("d",)}
_TOPK: _Axes = {**_LINEAR, "encoder.bias": ("F",), "b_dec": ("d",), "k": (), "threshold": ()}
_GATES: _Axes = {"r_mag": ("F",), "gate_bias": ("F",), "mag_bias": ("F",)}
_AXES: Mapping[str, _Axes] = {
    "AutoEncoder": {**_LINEAR, "encoder.bias": ("F",), "bias": ("d",)},
    "AutoEncoderNew": {**_LINEAR, "encoder.bias": ("F",), "decoder.bias": ("d",)},
    "GatedAutoEncoder": {**_LINEAR, **_GATES, "decoder_bias": ("d",)},
    "AutoEncoderTopK": _TOPK,
    "BatchTopKSAE": _TOPK,
    "MatryoshkaBatchTopKSAE": {**_PLAIN, "k": (), "threshold": (), "group_sizes": ("groups",)},
    "JumpReluAutoEncoder": {**_PLAIN, "threshold": ("F",)},
}
_DECODER_BIAS = ("bias", "decoder.bias", "decoder_bias", "b_dec")
_BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_READS = {"out": "out", "in": "in", "in_and_out": "both"}
_NAMED = re.compile(r"(resid_pre|resid|mlp|attn)(?:_post|_out)?(?:_?layer_?(\d{1,4}))?")
_MODULES = {"resid": "layers.{}", "mlp": "layers.{}.mlp", "attn": "layers.{}.attn"}


def _folders(path: Path) -> list[Path]:
    """Folders with an `ae.pt`, at most three below `path`."""
    if not path.is_dir():
        return [path.parent] if path.name == "ae.pt" else []
    found = [file for depth in range(4) for file in path.glob("*/" * depth + "ae.pt")]
    return sorted(file.parent for file in found)


def _recognises(path: Path) -> bool:
    try:
        return bool(_folders(path))
    except OSError:
        return False


def _open(path: Path, given: Given) -> list[Entry]:
    folders = _folders(path)
    if not folders:
        raise ValueError(f"{path} holds no ae.pt")
    check_given_layer(path, given, len(folders))
    places = {
        folder: _place(folder, read_json(folder / "config.json"), given) for folder in folders
    }
    entries = [
        _entry(folder, site, layer, given)
        for folder, (site, layer) in places.items()
        if given.layers is None or layer in given.layers
    ]
    return sorted_entries(path, entries)


def _part(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {name} must be an object, got {type(found).__name__}")
    return found


def _place(folder: Path, config: Mapping[str, Any], given: Given) -> tuple[str, int]:
    """Site and layer: from the caller, else `submodule_name`, else the names of the folders.

    Raises:
        ValueError: if none says it, they disagree, or no dictionary can sit there.
    """
    path = folder / "config.json"
    trainer, io = _part(path, config, "trainer"), _part(path, config, "buffer").get("io", "out")
    layer = trainer.get("layer")
    named = trainer.get("submodule_name")
    names = [named] if isinstance(named, str) else [part.name for part in (folder, *folder.parents)]
    found = next((f for name in names if (f := _place_of_name(name, layer, io))), None)
    site = given.site or (found and found[0])
    at = given.layer if given.layer is not None else found[1] if found else layer
    if site is None or not isinstance(at, int) or isinstance(at, bool) or at < 0:
        raise ValueError(
            f"{path}: submodule_name {named!r:.80}, layer {layer!r:.20} and io {io!r:.20} name no "
            "place where a dictionary can sit here (outputs of blocks, attention and MLPs; in and "
            "out of MLPs for transcoders); give `site` and `layer`"
        )
    if given.layer is None and found and isinstance(layer, int) and layer != at:
        raise ValueError(f"{path} says layer {layer}, but its submodule is {names[0]!r:.80}")
    return site, at


def _place_of_name(name: str, layer: Any, io: Any) -> tuple[str, int] | None:
    """The place of `resid_post_layer_8`, `mlp` (in `layer`) or a Hugging Face module."""
    reads = _READS.get(io) if isinstance(io, str) else None
    if reads is None:
        return None
    found = _NAMED.fullmatch(name)
    if found is None:
        return place_of_module(name, reads)
    kind, number = found[1], int(found[2]) if found[2] else layer
    if not isinstance(number, int):
        return None
    if kind == "resid_pre":
        return ("resid_pre", number) if reads == "out" else None
    return place_of_module(_MODULES[kind].format(number), reads)


def _entry(folder: Path, site: str, layer: int, given: Given) -> Entry:
    path, weights_at = folder / "config.json", folder / "ae.pt"
    trainer = _part(path, read_json(path), "trainer")
    sizes = {"d": whole_number(path, trainer, "activation_dim")}
    sizes["F"] = whole_number(path, trainer, "dict_size")
    held = state_dict(weights_at, read_pickle(weights_at, mapped=True))
    kind = _class(path, trainer, held)
    axes = _AXES[kind]
    if "group_sizes" in held:
        sizes["groups"] = held["group_sizes"].numel()
    want = {name: tuple(sizes[axis] for axis in axes[name]) for name in axes}
    check_layout(weights_at, {n: tuple(t.shape) for n, t in held.items()}, want, ("k", "threshold"))
    k = _k(path, trainer, held, sizes["F"]) if kind == "AutoEncoderTopK" else None
    subtracts = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    stated = NATIVE.model_copy(update={"subtracted": "b_dec" if subtracts else "nothing"})
    convention = given.convention or stated

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        if rows is None:
            check_records(weights_at)
        found = state_dict(weights_at, read_pickle(weights_at, mapped=rows is not None))
        by_row = [name for name in axes if axes[name][:1] == ("F",)]
        by_column = [name for name in axes if axes[name][1:] == ("F",)]
        part = select_features(found, rows, by_row=by_row, by_column=by_column)
        floats = {name: tensor.float() for name, tensor in part.items()}
        check_finite(weights_at, floats)
        weights = _converted(weights_at, kind, floats)
        return read_as_it_is(weights_at, weights, convention, {"b_dec": weights["b_dec"]})

    return make_entry(
        kind="transcoder" if site == "mlp" else "sae",
        site=site,
        layer=layer,
        sizes=(sizes["d"], sizes["d"], sizes["F"]),
        convention=convention,
        model=str(trainer.get("lm_name") or ""),
        path=weights_at,
        load=load,
        activation=_activation(kind),
        k=k,
    )


def _class(path: Path, trainer: Mapping[str, Any], held: Mapping[str, Tensor]) -> str:
    """The class of a state dict: by its keys, and by the config where two classes share them.

    Raises:
        ValueError: if the config names another class, or none has such tensors.
    """
    named = trainer.get("dict_class")
    optional = {"k", "threshold"}
    fitting = [
        kind for kind, axes in _AXES.items() if set(axes) - optional <= set(held) <= set(axes)
    ]
    # A trainer of `AutoEncoderNew` calls it `AutoEncoder` in its config; the keys tell.
    if fitting == ["AutoEncoderNew"] and named == "AutoEncoder":
        return "AutoEncoderNew"
    if named in fitting or (named is None and len(fitting) == 1):
        return named or fitting[0]
    raise ValueError(
        f"{path}: dict_class is {named!r:.80}, but the tensors {sorted(held)} are of "
        f"{' or '.join(fitting) or 'no class known here'}; want one of {', '.join(_AXES)}"
    )


def _activation(kind: str) -> Activation:
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        return "relu"
    return "topk" if kind == "AutoEncoderTopK" else "jumprelu"


def _k(path: Path, trainer: Mapping[str, Any], held: Mapping[str, Tensor], n_features: int) -> int:
    """How many features TopK keeps, the same in config and weights."""
    k = whole_number(path, trainer, "k")
    in_weights = int(held["k"]) if "k" in held else k
    if k != in_weights or k > n_features:
        raise ValueError(
            f"{path}: k must be at most the {n_features} features and the same in ae.pt, got {k} "
            f"and {in_weights}"
        )
    return k


def _converted(path: Path, kind: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one class in this package's layout, before anything subtracted is folded."""
    linear = "encoder.weight" in found
    W_enc = found["encoder.weight"].T if linear else found["W_enc"]
    weights = {"W_enc": W_enc, "W_dec": found["decoder.weight"].T if linear else found["W_dec"]}
    weights["b_dec"] = next(found[name] for name in _DECODER_BIAS if name in found)
    if kind == "GatedAutoEncoder":
        gate = fold_gate(W_enc, found["gate_bias"], found["mag_bias"], found["r_mag"])
        return weights | dict(zip(("W_enc", "b_enc", "threshold"), gate, strict=True))
    weights["b_enc"] = found["encoder.bias" if linear else "b_enc"]
    if kind in _BATCH:
        threshold = found.get("threshold")
        if threshold is None or threshold < 0:
            raise ValueError(
                f"{path} has no threshold yet (a batch's TopK learns it late in training), so how "
                "many features it keeps a token is unknown; want a later checkpoint"
            )
        weights["threshold"] = threshold.expand(weights["b_enc"].shape).clone()
    elif kind == "JumpReluAutoEncoder":
        weights["threshold"] = found["threshold"].clamp_min(0)
    return weights


FORMAT = Format(
    name="dictionary-learning",
    what="dictionary_learning: ae.pt and config.json, all trainers",
    recognises=_recognises,
    open=_open,
)
