"""Dictionaries as files: one safetensors file each, its facts in the header.

A set of dictionaries is a folder of such files: `mlp.0.safetensors`, `resid_post.2.safetensors`.
"""

import errno
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from circuits.checksums import RECORD, different, sha256_of_record, sha256_of_tensors
from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import (
    SAE,
    Activation,
    CrossLayerTranscoder,
    Dictionary,
    Transcoder,
    check_cross_layer,
)
from circuits.files import write_atomically

__all__ = ["Record", "load_dictionary", "load_folder", "read_record", "save_dictionary"]

_VERSION = 2
_VERSIONS = (1, _VERSION)  # files of version 1 have no checksums
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")
_Kind = Literal["transcoder", "cross-layer transcoder", "sae"]
_INPUT: dict[_Kind, str] = {
    "transcoder": "normalised, with gain and bias",
    "cross-layer transcoder": "normalised, with gain and bias",
    "sae": "the activation itself",
}


class Record(BaseModel):
    """What a file says of its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    kind: _Kind
    site: str
    layer: int = Field(ge=0)
    model: str
    activation: Activation
    k: int | None
    input: str
    notes: dict[str, Any]
    convention: Convention = NATIVE
    sha256: dict[str, str] = Field(
        default_factory=dict, description="of every tensor's bytes, and of the rest of the record"
    )


def save_dictionary(
    dictionary: Dictionary,
    path: Path,
    *,
    layer: int,
    model: str,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write `dictionary` to `path`, all or nothing.

    Args:
        dictionary: what to save.
        path: where, ending in `.safetensors`; its folder must exist.
        layer: the block it belongs to.
        model: name of the model it was trained on.
        dtype: dtype of the weights in the file; thresholds stay float32.
        notes: anything worth keeping (training command, fidelity), as JSON.

    Raises:
        ValueError: if a tensor is not finite (in `dtype`), since it could not be loaded again.
        OSError: if the disk is full or `path` cannot be written; nothing is left behind.
    """
    kind = _kind_of(dictionary)
    record = Record(
        version=_VERSION,
        kind=kind,
        site=_site_of(dictionary),
        layer=layer,
        model=model,
        activation=dictionary.activation,
        k=dictionary.k,
        input=_INPUT[kind],
        notes=dict(notes or {}),
        convention=dictionary.convention,
    )
    tensors = {
        name: tensor.detach()
        .to("cpu", torch.float32 if name == "threshold" else dtype)
        .contiguous()
        for name in _TENSORS
        if (tensor := getattr(dictionary, name)) is not None
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{name} is not finite in {tensor.dtype}; nothing was written to {path}"
            )
    facts = record.model_dump(mode="json")
    facts["sha256"] = {RECORD: sha256_of_record(facts), **sha256_of_tensors(tensors)}
    header = {"circuitloom": json.dumps(facts, sort_keys=True)}
    write_atomically(path, lambda temporary: _save_tensors(tensors, temporary, header))


def _save_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Safetensors' `save_file`, with a full disk as the OSError that it is."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, str(path), metadata=header)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def _read(path: Path) -> tuple[Record, dict[str, Tensor]]:
    """Header record and tensors of one file."""
    from safetensors import safe_open

    record = read_record(path)
    with safe_open(str(path), framework="pt") as file:
        return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _record(path: Path, header: str) -> Record:
    """The header as a record of this version.

    Raises:
        ValueError: if it is of another version, or damaged.
    """
    try:
        facts = json.loads(header)
        version = facts["version"]
        if version not in _VERSIONS:
            raise ValueError(
                f"{path} has format version {version}, this reads {_VERSION} and older; upgrade"
            )
        record = Record.model_validate_json(header)
    except (ValidationError, json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged `circuitloom` record: {error}") from error
    if version > 1 and record.sha256.get(RECORD) != sha256_of_record(facts):
        raise ValueError(
            f"{path}: its record differs from its checksum; copy or download the file again"
        )
    return record


def read_record(path: Path) -> Record:
    """What a file says of its dictionary, without reading the weights.

    Raises:
        ValueError: if the file is missing, truncated, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get("circuitloom")
    except FileNotFoundError:
        raise ValueError(f"no dictionary at {path}; check the path") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from error
    if header is None:
        raise ValueError(
            f"{path} has no `circuitloom` record in its header, so its kind, layer and norm "
            "convention are unknown; write it with `save_dictionary`"
        )
    return _record(path, header)


def load_dictionary(path: Path) -> tuple[int, Dictionary]:
    """Read one dictionary as float32.

    Returns:
        The layer it belongs to, and the dictionary.

    Raises:
        ValueError: if the file is missing, truncated, of another version or kind, or holds
            tensors that do not fit together or are not finite.
    """
    record, tensors = _read(path)
    if record.input != _INPUT[record.kind]:
        raise ValueError(
            f"{path} is a {record.kind!r} that reads {record.input!r}; want {_INPUT[record.kind]!r}"
        )
    missing = {"W_enc", "W_dec", "b_enc", "b_dec"} - tensors.keys()
    if missing or tensors.keys() - set(_TENSORS):
        raise ValueError(f"{path} holds tensors {sorted(tensors)}; want {_TENSORS[:4]} at least")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; the file is damaged")
    if record.version > 1 and (changed := different(tensors, record.sha256)):
        raise ValueError(
            f"{path}: {', '.join(changed)} differs from its checksum; copy or download the file "
            "again"
        )
    facts: dict[str, Any] = {name: tensor.float() for name, tensor in tensors.items()}
    facts |= {"activation": record.activation, "k": record.k, "convention": record.convention}
    try:
        if record.kind == "sae":
            return record.layer, SAE(site=record.site, **facts)
        crossing = record.kind == "cross-layer transcoder"
        kind = CrossLayerTranscoder if crossing else Transcoder
        return record.layer, kind(**facts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _kind_of(dictionary: Dictionary) -> _Kind:
    if isinstance(dictionary, CrossLayerTranscoder):
        return "cross-layer transcoder"
    return "transcoder" if isinstance(dictionary, Transcoder) else "sae"


def _site_of(dictionary: Dictionary) -> str:
    return dictionary.site if isinstance(dictionary, SAE) else "mlp"


def load_folder(
    folder: Path, *, sites: Iterable[str] | None = None, layers: Iterable[int] | None = None
) -> dict[str, Dictionary]:
    """Read a folder of dictionaries.

    Args:
        folder: holds files called `SITE.LAYER.safetensors`.
        sites: which sites to read (`mlp` for transcoders); None reads all.
        layers: which layers to read; None reads all.

    Returns:
        `{"mlp.0": ..., "mlp.1": ...}` in the order of layers.

    Raises:
        ValueError: if the folder holds no such file, one cannot be read, or its cross-layer
            transcoders (those that are read) are not a whole.
    """
    wanted_sites = None if sites is None else set(sites)
    wanted_layers = None if layers is None else set(layers)
    found: dict[tuple[int, str], Path] = {}
    for path in sorted(folder.glob("*.*.safetensors")):
        site, _, layer = path.name.removesuffix(".safetensors").rpartition(".")
        if not layer.isdigit():
            continue
        if wanted_sites is not None and site not in wanted_sites:
            continue
        if wanted_layers is None or int(layer) in wanted_layers:
            found[int(layer), site] = path
    if not found:
        raise ValueError(
            f"{folder} holds no dictionary for sites {wanted_sites or 'any'} and layers "
            f"{wanted_layers or 'any'}; want files such as mlp.0.safetensors"
        )
    dictionaries: dict[str, Dictionary] = {}
    crossing: dict[int, CrossLayerTranscoder] = {}
    for (layer, site), path in sorted(found.items()):
        in_file, dictionary = load_dictionary(path)
        if (in_file, _site_of(dictionary)) != (layer, site):
            says = f"{_site_of(dictionary)}.{in_file}"
            raise ValueError(f"{path} says it holds {says}; rename the file or replace it")
        dictionaries[f"{site}.{layer}"] = dictionary
        if isinstance(dictionary, CrossLayerTranscoder):
            crossing[layer] = dictionary
    try:
        check_cross_layer(crossing)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return dictionaries
