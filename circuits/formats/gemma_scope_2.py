"""Gemma Scope 2: JumpReLU SAEs, (skip) transcoders and cross-layer transcoders of Gemma 3.

`layer_20_width_16k_l0_small/params.safetensors` with a `config.json` beside it, or a folder of such
folders; a cross-layer set is one folder with one safetensors file a layer. Transcoders read
`pre_feedforward_layernorm.output` (gain included) and write `post_feedforward_layernorm.output`,
after the post-norm. Of a cross-layer decoder [F, n_layers, d_out] the slots from its own layer to
the last are kept, the last layer's among them; those below must be empty.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from circuits.conventions import NATIVE
from circuits.formats.building import (
    check_layout,
    make_entry,
    open_layers,
    read_features,
)
from circuits.formats.entry import Entry, Format, Given, Kind
from circuits.formats.reading import read_json, shapes
from circuits.sites import DICTIONARY_SITES

__all__ = ["FORMAT"]

_CONFIG = "config.json"
_SKIP = "affine_skip_connection"
_READS = {"output": "resid_post", "post_feedforward_layernorm.output": "mlp_out"}
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", _SKIP: "W_skip"}
_BY_ROW = ("w_dec", "b_enc", "threshold")
_INPUT, _OUTPUT = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"
_IN_FRONT = NATIVE.model_copy(update={"bos": "in front"})


def _files(path: Path) -> list[Path]:
    """The weights at `path`: one file, or those below it, of a folder each or of a layer each."""
    if path.is_file():
        return [path] if path.suffix == ".safetensors" else []
    folders = sorted(path.rglob("params.safetensors"))
    return folders or sorted(path.rglob("*layer_*.safetensors"))


def _recognises(path: Path) -> bool:
    files = _files(path)
    try:
        return bool(files) and {"w_enc", "w_dec"} <= shapes(files[0]).keys()
    except ValueError:
        return False


def _open(path: Path, given: Given) -> list[Entry]:
    files = _files(path)
    if not files:
        raise ValueError(f"{path} holds no params.safetensors and no file a layer")
    return open_layers(path, files, given, _layer, _entry)


def _layer(path: Path, given: Given) -> int:
    if given.layer is not None:
        return given.layer
    own = path.parent.absolute().name if path.name == "params.safetensors" else path.stem
    found = re.search(r"layer_(\d{1,4})(?!\d)", own)
    if found is None:
        raise ValueError(f"{path} has no layer_N in its name or that of its folder; give `layer`")
    return int(found[1])


def _entry(path: Path, layer: int, given: Given) -> Entry:
    got = shapes(path)
    if len(got.get("w_enc", ())) != 2 or len(got.get("w_dec", ())) not in (2, 3):
        raise ValueError(
            f"{path} must hold w_enc [d_in, F] and w_dec [F, d_out] or [F, n_layers, d_out], got "
            f"{got}"
        )
    crossing = len(got["w_dec"]) == 3
    config = _config(path, needed=not crossing and given.site is None)
    site = _site(path, config, layer, crossing, given)
    transcodes = site == "mlp"
    (d_in, n_features), n_layers, d_out = got["w_enc"], got["w_dec"][1], got["w_dec"][-1]
    want = {
        "w_enc": (d_in, n_features),
        "w_dec": (n_features, *got["w_dec"][1:]),
        "b_enc": (n_features,),
        "b_dec": (d_out,),
        "threshold": (n_features,),
        _SKIP: (d_in, d_out),
    }
    skips = bool(config.get("affine_connection", _SKIP in got))
    check_layout(path, got, want, optional=() if skips else (_SKIP,))
    _check_config(path, config, got, layer, crossing)

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        found = read_features(path, list(want), rows, by_row=_BY_ROW, by_column=("w_enc",))
        weights = {_NAMES.get(name, name): tensor for name, tensor in found.items()}
        if crossing:
            weights["W_dec"] = _own_slots(path, weights["W_dec"], layer)
        # a = relu(z) where z exceeds the threshold: a negative one lets nothing more through
        return weights | {"threshold": weights["threshold"].clamp_min(0)}

    kind: Kind = "sae"
    if transcodes:
        kind = "cross-layer transcoder" if crossing else "transcoder"
    between = _IN_FRONT.model_copy(update={"output": "after post-norm"})
    return make_entry(
        kind=kind,
        site=site,
        layer=layer,
        sizes=(d_in, d_out, n_features),
        convention=given.convention or (between if transcodes else _IN_FRONT),
        model=str(config.get("model_name") or ""),
        path=path,
        load=load,
        activation="jumprelu",
        n_writes=n_layers - layer if crossing else 1,
    )


def _config(path: Path, *, needed: bool) -> dict[str, Any]:
    """The config beside the weights; nothing where there is none and it need not be."""
    config = path.with_name(_CONFIG)
    return read_json(config) if needed or config.is_file() else {}


def _own_slots(path: Path, w_dec: Tensor, layer: int) -> Tensor:
    """The slots from the own layer to the last."""
    if w_dec[:, :layer].any():
        raise ValueError(
            f"{path}: w_dec of layer {layer} writes to layers below it; want zeros there"
        )
    return w_dec[:, layer:]


def _place(hook: Any) -> tuple[int | None, str]:
    """Layer and place of a hook such as `model.layers.20.output`."""
    found = re.fullmatch(r"(?:[\w.]+\.)?layers\.(\d{1,4})\.([\w.]+)", str(hook))
    return (int(found[1]), found[2]) if found else (None, str(hook))


def _site(path: Path, config: Mapping[str, Any], layer: int, crossing: bool, given: Given) -> str:
    """Where it sits, as given or by the config.

    Raises:
        ValueError: if neither says, or no dictionary can sit there.
    """
    hook_layer, place = _place(config.get("hf_hook_point_in"))
    if place == "self_attn.o_proj.input":
        raise ValueError(
            f"{path} is an attention SAE of Gemma Scope 2, which reads the heads' outputs before "
            "W_O (n_heads * d_head wide); here attention SAEs read attn_out"
        )
    if given.site is not None:
        wanted = ("mlp",) if crossing else ("mlp", *DICTIONARY_SITES)
        if given.site not in wanted:
            raise ValueError(f"{path}: `site` must be one of {wanted}, got {given.site!r}")
        return given.site
    if crossing and "hf_hook_point_in" not in config:
        return "mlp"
    if hook_layer not in (layer, None) and not crossing and given.layer is None:
        raise ValueError(
            f"{path.with_name(_CONFIG)} is of layer {hook_layer}, but the folder is called layer "
            f"{layer}; give `layer`"
        )
    if place == _INPUT:
        writes = _place(config.get("hf_hook_point_out"))[1]
        if writes != _OUTPUT:
            raise ValueError(f"{path}: a transcoder must write {_OUTPUT}, got {writes!r}")
        return "mlp"
    if place not in _READS or crossing:
        raise ValueError(
            f"{path.with_name(_CONFIG)}: hf_hook_point_in must end in one of "
            f"{[_INPUT, *_READS]}, got {place!r}; give `site` if you know what it reads"
        )
    return _READS[place]


def _check_config(
    path: Path,
    config: Mapping[str, Any],
    got: Mapping[str, tuple[int, ...]],
    layer: int,
    crossing: bool,
) -> None:
    """Refuse a config that contradicts the weights, and layers beyond the decoder's."""
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise ValueError(f"{path}: architecture must be jump_relu, got {architecture!r}")
    width = config.get("width", got["b_enc"][0])
    if width != got["b_enc"][0]:
        raise ValueError(f"{path} has {got['b_enc'][0]} features, but its config says {width!r}")
    if _SKIP in got and config.get("affine_connection") is False:
        raise ValueError(f"{path} holds {_SKIP}, but its config says it has none")
    if crossing and layer >= got["w_dec"][1]:
        raise ValueError(
            f"{path}: w_dec has slots for layers 0 to {got['w_dec'][1] - 1}, got layer {layer}"
        )


FORMAT = Format(
    name="gemma-scope-2",
    what="Gemma Scope 2 SAEs, transcoders and cross-layer transcoders: params.safetensors",
    recognises=_recognises,
    open=_open,
)
