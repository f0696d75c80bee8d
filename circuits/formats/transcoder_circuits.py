"""Checkpoints of "Transcoders find interpretable LLM feature circuits" (Dunefsky et al. 2024).

Two layouts, both of models as TransformerLens processes them (writing weights centred). The paper's
trainer wrote `*sparse_autoencoder_*.pt`: a pickled config, `W_enc` [d, F], `b_enc`, `W_dec` [F, D],
`b_dec` [d], subtracted from the input, and for transcoders `b_dec_out` [D], added to the output
(for SAEs `b_dec` is both); its rows of text begin with BOS. The authors' later folders hold
`sae.json` and `sae.safetensors` (and `sae_info.json`), and subtract nothing.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from circuits.conventions import Convention
from circuits.formats.building import (
    check_given_layer,
    check_layout,
    make_entry,
    read_features,
    select_features,
    sorted_entries,
    whole_number,
)
from circuits.formats.entry import Entry, Format, Given
from circuits.formats.hooks import sae_site, split_hook, transcoder_convention
from circuits.formats.pickles import (
    StandIn,
    check_records,
    pickle_globals,
    read_pickle,
    state_dict,
)
from circuits.formats.reading import check_finite, flag, inside, read_json, shapes
from circuits.formats.subtracted import read_as_it_is

__all__ = ["FORMAT"]

_CONFIG = "sae_training.config.LanguageModelSAERunnerConfig"
_SPARSITY = "_log_feature_sparsity.pt"
_BY_ROW, _BY_COLUMN = ("W_dec", "b_enc"), ("W_enc",)
_TRAINED: dict[str, Any] = {"centred": True, "bos": "in front", "first_position": "read"}


def _pickles(path: Path) -> list[Path]:
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    return [file for file in files if file.suffix == ".pt" and not file.name.endswith(_SPARSITY)]


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    candidates = (path, *sorted(path.iterdir()))
    return [folder for folder in candidates if (folder / "sae.json").is_file()]


def _recognises(path: Path) -> bool:
    try:
        if _folders(path):
            return True
        files = _pickles(path)
        return bool(files) and _CONFIG in pickle_globals(files[0])
    except (ValueError, OSError):
        return False


def _open(path: Path, given: Given) -> list[Entry]:
    folders, files = _folders(path), _pickles(path)
    if not folders and not files:
        raise ValueError(f"{path} holds neither `*sparse_autoencoder_*.pt` nor sae.json")
    check_given_layer(path, given, len(folders) + len(files))
    entries = [_from_folder(folder, given) for folder in folders]
    entries += [_from_pickle(file, given) for file in files]
    wanted = [entry for entry in entries if given.layers is None or entry.layer in given.layers]
    return sorted_entries(path, wanted)


def _from_pickle(path: Path, given: Given) -> Entry:
    """The dictionary of a `.pt`."""
    config, found = _contents(path, mapped=True)
    transcodes = flag(path, config, "is_transcoder")
    d_in, n_features = whole_number(path, config, "d_in"), whole_number(path, config, "d_sae")
    wider = transcodes and config.get("d_out") is not None
    d_out = whole_number(path, config, "d_out") if wider else d_in
    added, own = ("b_dec_out", "own vector") if transcodes else ("b_dec", "b_dec")
    want = {**_layout(d_in, d_out, n_features), "b_dec": (d_in,), added: (d_out,)}
    check_layout(path, {name: tuple(t.shape) for name, t in state_dict(path, found).items()}, want)
    site, layer, stated = _of_hooks(path, config, transcodes, given)
    convention = given.convention or stated

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        if rows is None:
            check_records(path)
        held = state_dict(path, _contents(path, mapped=rows is not None)[1])
        part = select_features(held, rows, by_row=_BY_ROW, by_column=_BY_COLUMN)
        floats = {name: part[name].float() for name in want}
        check_finite(path, floats)
        weights = {name: floats[name] for name in ("W_enc", "b_enc", "W_dec")}
        weights["b_dec"] = floats[added]
        return read_as_it_is(path, weights, convention, {own: floats["b_dec"]})

    return make_entry(
        kind="transcoder" if transcodes else "sae",
        site=site,
        layer=layer,
        sizes=(d_in, d_out, n_features),
        convention=convention,
        model=str(config.get("model_name") or ""),
        path=path,
        load=load,
        activation="relu",
    )


def _layout(d_in: int, d_out: int, n_features: int) -> dict[str, tuple[int, ...]]:
    return {
        "W_enc": (d_in, n_features),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
    }


def _contents(path: Path, *, mapped: bool) -> tuple[dict[str, Any], Any]:
    """Config and state dict of a `.pt`."""
    found = read_pickle(path, [_CONFIG], mapped=mapped)
    if not isinstance(found, dict) or not {"cfg", "state_dict"} <= found.keys():
        raise ValueError(f"{path} must hold `cfg` and `state_dict`, got {type(found).__name__}")
    config = found["cfg"]
    if not isinstance(config, StandIn):
        raise ValueError(f"{path}: cfg must be a {_CONFIG}, got {type(config).__name__}")
    return vars(config), found["state_dict"]


def _of_hooks(
    path: Path, config: Mapping[str, Any], transcodes: bool, given: Given
) -> tuple[str, int, Convention]:
    """Site, layer and convention, from the hook points of the config."""
    try:
        layer, reads = split_hook(str(config.get("hook_point")))
        if not transcodes:
            stated = Convention(subtracted="b_dec", **_TRAINED)
            return given.site or sae_site(reads), _layer(layer, given), stated
        target, writes = split_hook(str(config.get("out_hook_point")))
        stated = transcoder_convention(reads, writes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if target != layer:
        raise ValueError(f"{path} reads layer {layer} and writes layer {target}; want one layer")
    stated = stated.model_copy(update={"subtracted": "own vector", **_TRAINED})
    return "mlp", _layer(layer, given), stated


def _layer(layer: int, given: Given) -> int:
    return layer if given.layer is None else given.layer


def _from_folder(folder: Path, given: Given) -> Entry:
    """The dictionary of a folder with `sae.json`."""
    path = folder / "sae.json"
    config = read_json(path)
    if config.get("act_fn", "relu") != "relu":
        raise ValueError(
            f"{path}: act_fn must be 'relu', got {config['act_fn']!r:.80}, which lets negative "
            "values through in this format"
        )
    d_in, n_features = (whole_number(path, config, key) for key in ("d_in", "num_features"))
    d_out = d_in if config.get("d_out") is None else whole_number(path, config, "d_out")
    weights_at = inside(folder, str(config.get("tensors_filename") or "sae.safetensors"))
    want = _layout(d_in, d_out, n_features)
    check_layout(weights_at, shapes(weights_at), want)
    layer, model = _of_info(folder)
    layer = layer if given.layer is None else given.layer
    if layer is None:
        raise ValueError(f"{folder} does not say its layer (no sae_info.json); give `layer`")
    stated = Convention(norm="bare", output="after post-norm", **_TRAINED)
    convention = given.convention or stated

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        found = read_features(weights_at, list(want), rows, by_row=_BY_ROW, by_column=_BY_COLUMN)
        return read_as_it_is(weights_at, found, convention, {"b_dec": found["b_dec"]})

    return make_entry(
        kind="transcoder",
        site="mlp",
        layer=layer,
        sizes=(d_in, d_out, n_features),
        convention=convention,
        model=model,
        path=weights_at,
        load=load,
        activation="relu",
    )


def _of_info(folder: Path) -> tuple[int | None, str]:
    """Layer and model of a folder, from `sae_info.json`, else the layer from its name (`-tc8`)."""
    path = folder / "sae_info.json"
    if not path.is_file():
        named = re.search(r"-tc(\d{1,4})$", folder.resolve().name)
        return (int(named[1]) if named else None), ""
    info = read_json(path)
    ends = [info.get("input_layer"), info.get("output_layer")]
    places = [
        (end.get("sublayer"), end.get("layer")) if isinstance(end, dict) else None for end in ends
    ]
    layer = places[0][1] if places[0] else None
    if places != [("mlp_in", layer), ("mlp_out", layer)] or not isinstance(layer, int):
        raise ValueError(
            f"{path} must describe a transcoder from mlp_in to mlp_out of one layer, got "
            f"{ends!r:.200}"
        )
    model = info.get("model_path")
    return layer, model if isinstance(model, str) else ""


FORMAT = Format(
    name="transcoder-circuits",
    what="the transcoder paper's .pt files, and its authors' later folders with sae.json",
    recognises=_recognises,
    open=_open,
)
