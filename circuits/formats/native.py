"""This package's own folders: one safetensors file a dictionary, `SITE.LAYER.safetensors`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from circuits.checkpoints import load_dictionary, read_record, save_dictionary
from circuits.dictionaries import Dictionary
from circuits.formats.entry import Entry, FeatureRows, Format, Given
from circuits.formats.reading import shapes

__all__ = ["FORMAT"]


def _found(path: Path) -> dict[str, Path]:
    """SITE.LAYER -> file, for every file with such a name."""
    files = sorted(path.glob("*.*.safetensors")) if path.is_dir() else [path]
    named = {file.name.removesuffix(".safetensors"): file for file in files}
    return {name: file for name, file in named.items() if name.rpartition(".")[2].isdigit()}


def _recognises(path: Path) -> bool:
    return bool(_found(path))


def _open(path: Path, given: Given) -> list[Entry]:
    layers = given.layers
    return [
        _entry(name, file, given)
        for name, file in _found(path).items()
        if layers is None or int(name.rpartition(".")[2]) in layers
    ]


def _entry(name: str, path: Path, given: Given) -> Entry:
    record, held = read_record(path), shapes(path)
    site = "mlp" if record.kind != "sae" else record.site
    if f"{site}.{record.layer}" != name:
        says = f"{site}.{record.layer}"
        raise ValueError(f"{path} says it holds {says}; rename the file or replace it")
    if len(held.get("W_enc", ())) != 2 or len(held.get("W_dec", ())) not in (2, 3):
        raise ValueError(f"{path} must hold W_enc [d_in, feature] and W_dec, got {held}")
    d_in, n_features = held["W_enc"]

    convention = given.convention or record.convention

    def read() -> Dictionary:
        return replace(load_dictionary(path)[1], convention=convention)

    def read_rows(features: Sequence[int]) -> FeatureRows:
        whole, chosen = read(), list(features)
        threshold = whole.threshold
        return FeatureRows(
            whole.W_enc.T[chosen],
            whole.W_dec[chosen],
            whole.b_enc[chosen],
            None if threshold is None else threshold[chosen],
        )

    return Entry(
        name=name,
        kind=record.kind,
        d_in=d_in,
        d_out=held["W_dec"][-1],
        n_features=n_features,
        convention=convention,
        model=record.model,
        path=path,
        read=read,
        read_rows=read_rows,
        n_writes=held["W_dec"][1] if record.kind == "cross-layer transcoder" else 1,
    )


def _write(dictionaries: Mapping[str, Dictionary], folder: Path, model: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, dictionary in dictionaries.items():
        path = folder / f"{name}.safetensors"
        save_dictionary(dictionary, path, layer=int(name.rpartition(".")[2]), model=model)


FORMAT = Format(
    name="circuitloom",
    what="folders of `circuits train`: SITE.LAYER.safetensors",
    recognises=_recognises,
    open=_open,
    write=_write,
)
