"""Checkpoints of EleutherAI's sparsify: a folder a module, `cfg.json` and `sae.safetensors`.

    a = TopK(ReLU(x encoder.weight^T + encoder.bias)),  y = a W_dec + b_dec (+ x W_skip^T)

`encoder.weight` and `W_dec` are [F, d]. SAEs subtract `b_dec` from x, and so did transcoders until
the version in which `transcode` moved from the run's `config.json` into `cfg.json` (12 February
2025, commit f02711e, "fix decoder bias on transcoders"); newer ones subtract nothing. Modules are
Hugging Face's: an MLP's input is normalised with gain and bias, its output is before any post-norm.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from circuits.conventions import NATIVE
from circuits.formats.building import (
    check_given_layer,
    check_layout,
    make_entry,
    read_features,
    sorted_entries,
    whole_number,
)
from circuits.formats.entry import Entry, Format, Given
from circuits.formats.module_names import place_of_module
from circuits.formats.reading import flag, read_json, shapes
from circuits.formats.subtracted import read_as_it_is

__all__ = ["FORMAT"]

_BY_ROW = ("encoder.weight", "encoder.bias", "W_dec")


def _is_one(folder: Path) -> bool:
    return (folder / "cfg.json").is_file() and (folder / "sae.safetensors").exists()


def _folders(path: Path) -> list[Path]:
    """Folders of dictionaries: `path`, those in it, or (one a seed) those in these."""
    if not path.is_dir():
        return []
    if _is_one(path):
        return [path]
    within = sorted(folder for folder in path.iterdir() if folder.is_dir())
    seeds = [seed for folder in within for seed in sorted(folder.glob("seed*"))]
    return [folder for folder in (*within, *seeds) if _is_one(folder)]


def _recognises(path: Path) -> bool:
    try:
        return bool(_folders(path))
    except OSError:
        return False


def _open(path: Path, given: Given) -> list[Entry]:
    folders = _folders(path)
    if not folders:
        raise ValueError(f"{path} holds no folder with cfg.json and sae.safetensors")
    check_given_layer(path, given, len(folders))
    entries = [
        _entry(folder, place, given)
        for folder in folders
        if (place := _place(folder, given)) and _wanted(place[1], given)
    ]
    return sorted_entries(path, entries)


def _wanted(layer: int, given: Given) -> bool:
    return given.layers is None or layer in given.layers


def _run(folder: Path) -> dict[str, Any]:
    """The run's `config.json`, beside or above the folder of a module."""
    for above in (folder.parent, folder.parent.parent):
        if (above / "config.json").is_file():
            return read_json(above / "config.json")
    return {}


def _transcodes(folder: Path, config: Mapping[str, Any], given: Given) -> bool:
    """Whether it goes from a module's input to its output.

    Without a word in `cfg.json` (the old layout), the run's config says it; a skip is only ever a
    transcoder's.
    """
    path = folder / "cfg.json"
    if "transcode" in config:
        return flag(path, config, "transcode")
    old = flag(folder.parent / "config.json", _run(folder), "transcode")
    return old or flag(path, config, "skip_connection") or given.site == "mlp"


def _place(folder: Path, given: Given) -> tuple[str, int]:
    """Site and layer, from the caller or else the folder's name.

    Raises:
        ValueError: if the name is of no module that a dictionary can sit at.
    """
    config = read_json(folder / "cfg.json")
    resolved = folder.resolve()
    name = resolved.parent.name if resolved.name.startswith("seed") else resolved.name
    found = place_of_module(name, "both" if _transcodes(folder, config, given) else "out")
    site = given.site or (found and found[0])
    layer = found[1] if found and given.layer is None else given.layer
    if site is None or layer is None:
        raise ValueError(
            f"{folder} is named after {name!r}, no place where a dictionary can sit here (blocks, "
            "attention and MLP outputs; transcoders of MLPs); give `site` and `layer`"
        )
    return site, layer


def _entry(folder: Path, place: tuple[str, int], given: Given) -> Entry:
    path, weights_at = folder / "cfg.json", folder / "sae.safetensors"
    config = read_json(path)
    d, k, n_features = _sizes(path, config)
    want = {
        "encoder.weight": (n_features, d),
        "encoder.bias": (n_features,),
        "W_dec": (n_features, d),
        "b_dec": (d,),
    }
    if flag(path, config, "skip_connection"):
        want["W_skip"] = (d, d)
    check_layout(weights_at, shapes(weights_at), want)
    subtracts = not flag(path, config, "transcode")
    stated = NATIVE.model_copy(update={"subtracted": "b_dec" if subtracts else "nothing"})
    convention = given.convention or stated

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        found = read_features(weights_at, list(want), rows, by_row=_BY_ROW)
        weights = {
            "W_enc": found["encoder.weight"].T,
            "b_enc": found["encoder.bias"],
            "W_dec": found["W_dec"],
            "b_dec": found["b_dec"],
        }
        if "W_skip" in found:
            weights["W_skip"] = found["W_skip"].T
        return read_as_it_is(weights_at, weights, convention, {"b_dec": weights["b_dec"]})

    return make_entry(
        kind="transcoder" if place[0] == "mlp" else "sae",
        site=place[0],
        layer=place[1],
        sizes=(d, d, n_features),
        convention=convention,
        model=str(_run(folder).get("model") or ""),
        path=weights_at,
        load=load,
        activation="topk",
        k=k,
    )


def _sizes(path: Path, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Width, k and number of features.

    Raises:
        ValueError: if one is missing or out of range, or the activation is not TopK.
    """
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise ValueError(
            f"{path}: activation must be 'topk', got {activation!r:.80}; groupmax takes the "
            "largest of every group, which no activation here does"
        )
    if flag(path, config, "signed"):
        raise ValueError(f"{path}: signed features keep negative values, which none here does")
    d, k = whole_number(path, config, "d_in"), whole_number(path, config, "k")
    if config.get("num_latents"):
        n_features = whole_number(path, config, "num_latents")
    else:
        n_features = d * whole_number(path, config, "expansion_factor")
    if k > n_features:
        raise ValueError(f"{path}: k must be at most the {n_features} features, got {k}")
    return d, k, n_features


FORMAT = Format(
    name="sparsify",
    what="EleutherAI sparsify: folders named after modules, cfg.json and sae.safetensors",
    recognises=_recognises,
    open=_open,
)
