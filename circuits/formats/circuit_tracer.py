"""circuit-tracer: a `config.yaml` beside one safetensors file a layer.

Per-layer transcoders are `layer_{i}.safetensors`, with encoders in rows; a cross-layer transcoder
is `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors`, slot j of layer i writing to layer i + j.
circuit-tracer loads models unprocessed (no gain folded, nothing centred), puts a BOS token in front
of a prompt that has none, and takes the features of the first position to be zero.
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
    sorted_entries,
)
from circuits.formats.circuit_tracer_write import CONFIG, KINDS, THRESHOLD, write
from circuits.formats.entry import Entry, Format, Given
from circuits.formats.hooks import transcoder_convention
from circuits.formats.reading import inside, shapes

__all__ = ["FORMAT", "read_yaml"]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from `path`: plain values only, no tag makes an object.

    Raises:
        ValueError: if it is missing, not YAML, asks for objects, or is no mapping.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no config at {path}; copy or download it again") from None
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not readable YAML ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a YAML mapping, got {type(found).__name__}")
    return found


def _recognises(path: Path) -> bool:
    try:
        return read_yaml(path / CONFIG).get("model_kind") in KINDS
    except ValueError:
        return False


def _open(path: Path, given: Given) -> list[Entry]:
    config = read_yaml(path / CONFIG)
    kind = config.get("model_kind")
    if kind not in KINDS:
        raise ValueError(f"{path / CONFIG}: model_kind must be one of {KINDS}, got {kind!r}")
    if given.site not in (None, "mlp"):
        raise ValueError(f"{path} holds transcoders of MLPs; `site` must be mlp, got {given.site}")
    crossing = kind == "cross_layer_transcoder"
    files = _files(path, config, "W_enc" if crossing else "layer", given)
    convention = given.convention or _convention(path / CONFIG, config)
    model = str(config.get("model_name") or "")
    make = _cross_layer if crossing else _per_layer
    entries = [make(layer, file, convention, model) for layer, file in sorted(files.items())]
    if crossing:
        _check_slots(path, entries)
    return sorted_entries(path, entries)


def _convention(path: Path, config: Mapping[str, Any]) -> Convention:
    hooks = [config.get(key) for key in ("feature_input_hook", "feature_output_hook")]
    try:
        between = transcoder_convention(str(hooks[0]), str(hooks[1]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return between.model_copy(update={"bos": "in front", "first_position": "left out"})


def _files(path: Path, config: Mapping[str, Any], stem: str, given: Given) -> dict[int, Path]:
    """Layer -> file: those of a list in the config, or by name; those of `given.layers` only."""
    listed = config.get("transcoders")
    if listed is None or stem == "W_enc":  # circuit-tracer ignores such a list then, too
        named = {
            int(match[1]): file
            for file in path.glob(f"{stem}_*.safetensors")
            if (match := re.fullmatch(rf"{stem}_(\d{{1,4}})\.safetensors", file.name))
        }
    else:
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise ValueError(f"{path / CONFIG}: transcoders must be a list of addresses")
        named = {layer: _listed(path, address) for layer, address in enumerate(listed)}
    check_given_layer(path, given, len(named))
    if given.layer is not None and named:
        (file,) = named.values()
        return {given.layer: file}
    wanted = given.layers if given.layers is not None else range(max(named, default=0) + 1)
    if missing := sorted(set(wanted) - named.keys()):
        first = ", ".join(f"{stem}_{layer}.safetensors" for layer in missing[:4])
        raise ValueError(
            f"{path} lacks {first}{' and more' if missing[4:] else ''}; download them, or say in "
            "`layers` which of the others to read"
        )
    return {layer: named[layer] for layer in wanted}


def _listed(path: Path, address: str) -> Path:
    """The file of an address such as `hf://owner/name/file.safetensors?revision=main`."""
    remote = re.fullmatch(r"hf://[^/]+/[^/]+/([^?]+)(\?.*)?", address)
    file = inside(path, remote[1] if remote else address)
    if file.suffix == ".safetensors" and file.name != "params.safetensors":
        return file
    raise ValueError(
        f"{path / CONFIG} lists {address}, which is a file of Gemma Scope; download that "
        "repository and open it in the format gemma-scope or gemma-scope-2"
    )


def _per_layer(layer: int, path: Path, convention: Convention, model: str) -> Entry:
    got = shapes(path)
    n_features, d_in = _two(path, "W_enc", got)
    d_out = _two(path, "W_dec", got)[1]
    want = {
        "W_enc": (n_features, d_in),
        "W_dec": (n_features, d_out),
        "b_enc": (n_features,),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
        THRESHOLD: (n_features,),
    }
    check_layout(path, got, want, optional=("W_skip", THRESHOLD))
    _no_more(path, got, want)

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        found = read_features(path, list(want), rows, by_row=("W_enc", "W_dec", "b_enc", THRESHOLD))
        renamed = {name.removeprefix("activation_function."): t for name, t in found.items()}
        turned = {name: renamed[name].T for name in ("W_enc", "W_skip") if name in renamed}
        return renamed | turned

    return make_entry(
        kind="transcoder",
        site="mlp",
        layer=layer,
        sizes=(d_in, d_out, n_features),
        convention=convention,
        model=model,
        path=path,
        load=load,
        activation="jumprelu" if THRESHOLD in got else "relu",
    )


def _cross_layer(layer: int, path: Path, convention: Convention, model: str) -> Entry:
    own = int(path.stem.rpartition("_")[2])
    decoders = path.with_name(f"W_dec_{own}.safetensors")
    encoder, decoder, threshold = f"W_enc_{own}", f"W_dec_{own}", f"threshold_{own}"
    got, writes = shapes(path), shapes(decoders)
    n_features, d_in = _two(path, encoder, got)
    if len(writes.get(decoder, ())) != 3:
        raise ValueError(f"{decoders} must hold {decoder} [feature, write, d_out], got {writes}")
    _, n_writes, d_out = writes[decoder]
    want = {
        encoder: (n_features, d_in),
        f"b_enc_{own}": (n_features,),
        f"b_dec_{own}": (d_out,),
        threshold: (n_features,),
    }
    check_layout(path, got, want, optional=(threshold,))
    _no_more(path, got, want)
    check_layout(decoders, writes, {decoder: (n_features, n_writes, d_out)})
    if n_writes < 1:
        raise ValueError(f"{decoders}: {decoder} has no slot; want one for its own layer at least")

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        by_row = (encoder, f"b_enc_{own}", threshold)
        found = read_features(path, list(want), rows, by_row=by_row)
        found |= read_features(decoders, [decoder], rows, by_row=(decoder,))
        weights = {name.removesuffix(f"_{own}"): tensor for name, tensor in found.items()}
        return weights | {"W_enc": weights["W_enc"].T}

    return make_entry(
        kind="cross-layer transcoder",
        site="mlp",
        layer=layer,
        sizes=(d_in, d_out, n_features),
        convention=convention,
        model=model,
        path=path,
        load=load,
        activation="jumprelu" if threshold in got else "relu",
        n_writes=n_writes,
    )


def _two(path: Path, name: str, got: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    shape = got.get(name, ())
    if len(shape) != 2:
        raise ValueError(f"{path} must hold {name} [feature, d_model], got {dict(got)}")
    return shape[0], shape[1]


def _no_more(path: Path, got: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """Refuse tensors that circuit-tracer does not know: what they would do is not known either."""
    if unknown := sorted(set(got) - set(want)):
        raise ValueError(f"{path} holds {', '.join(unknown)}, which circuit-tracer does not have")


def _check_slots(path: Path, entries: Sequence[Entry]) -> None:
    """Refuse cross-layer transcoders that do not all write up to the same layer."""
    lasts = {entry.layer + entry.n_writes - 1 for entry in entries}
    if len(lasts) > 1:
        raise ValueError(
            f"{path}: the slots of the W_dec files end at layers {sorted(lasts)}; want one slot a "
            "layer from the own one to the last"
        )


FORMAT = Format(
    name="circuit-tracer",
    what="circuit-tracer's per-layer and cross-layer transcoders: config.yaml and a file a layer",
    recognises=_recognises,
    open=_open,
    write=write,
)
