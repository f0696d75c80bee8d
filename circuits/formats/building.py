"""From the tensors of a file to a dictionary, whole or a few features of it.

What every format here shares: tensors are read as float32, checked, and put into this package's
layout, `W_enc` [d_in, feature] and `W_dec` [feature, d_out]; where some features are asked for, all
of it is done to their entries alone.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from circuits.conventions import Convention
from circuits.dictionaries import SAE, Activation, CrossLayerTranscoder, Dictionary, Transcoder
from circuits.formats.entry import Entry, FeatureRows, Given, Kind
from circuits.formats.reading import check_finite, check_shape, read_tensors

__all__ = [
    "Load",
    "check_given_layer",
    "check_layout",
    "make_entry",
    "open_layers",
    "read_features",
    "select_features",
    "sorted_entries",
    "whole_number",
]

Load = Callable[[Sequence[int] | None], dict[str, Tensor]]
"""Reads a dictionary in this package's layout: all features, or those of some indices."""


def whole_number(path: Path, record: Mapping[str, Any], key: str) -> int:
    """A positive whole number of a config.

    Raises:
        ValueError: if it is missing or anything else.
    """
    found = record.get(key)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ValueError(f"{path}: {key} must be a positive whole number, got {found!r}")
    return found


def check_given_layer(path: Path, given: Given, found: int) -> None:
    """Refuse a layer given for a checkpoint of several dictionaries.

    Raises:
        ValueError: if `given.layer` is there and `found` is not 1.
    """
    if given.layer is not None and found > 1:
        raise ValueError(
            f"`layer` is {given.layer}, but {path} holds {found} dictionaries; give the path of one"
        )


def check_layout(
    path: Path,
    got: Mapping[str, tuple[int, ...]],
    want: Mapping[str, tuple[int, ...]],
    optional: Collection[str] = (),
) -> None:
    """Refuse a file that lacks a tensor or holds one of another shape.

    Args:
        path: the file, for the message.
        got: shapes of the tensors in it.
        want: shapes that go together.
        optional: those that need not be there.

    Raises:
        ValueError: names the file and the tensors.
    """
    missing = sorted(set(want) - set(got) - set(optional))
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(got))}")
    for name, shape in want.items():
        if name in got:
            check_shape(path, name, got[name], shape)


def select_features(
    tensors: Mapping[str, Tensor],
    rows: Sequence[int] | None,
    *,
    by_row: Collection[str],
    by_column: Collection[str],
) -> dict[str, Tensor]:
    """The entries of some features: of axis 0 or 1 for the tensors named, else all."""
    if rows is None:
        return dict(tensors)
    index = list(rows)
    return {
        name: tensor[index] if name in by_row else tensor[:, index] if name in by_column else tensor
        for name, tensor in tensors.items()
    }


def read_features(
    path: Path,
    names: Collection[str],
    rows: Sequence[int] | None,
    *,
    by_row: Collection[str],
    by_column: Collection[str] = (),
) -> dict[str, Tensor]:
    """Tensors of a safetensors file as float32, of some features or of all.

    What is float32 in the file and read whole is not copied. Of tensors that have one row a feature
    only the rows asked for are read.

    Args:
        path: the file.
        names: which tensors; those the file lacks are left out.
        rows: which features; None for all.
        by_row: tensors with one entry a feature along axis 0.
        by_column: those with one along axis 1.

    Raises:
        ValueError: if the file cannot be read, or holds NaN or infinity.
    """
    parts = None if rows is None else {name: rows for name in by_row}
    found = read_tensors(path, names, rows=parts)
    if rows is not None:
        found = select_features(found, rows, by_row=(), by_column=by_column)
    floats = {name: tensor.float() for name, tensor in found.items()}
    check_finite(path, floats)
    return floats


def make_entry(
    *,
    kind: Kind,
    site: str,
    layer: int,
    sizes: tuple[int, int, int],
    convention: Convention,
    model: str,
    path: Path,
    load: Load,
    activation: Activation,
    k: int | None = None,
    n_writes: int = 1,
) -> Entry:
    """The entry of one dictionary.

    Args:
        kind: what it is.
        site: `mlp` for a transcoder, else where the SAE sits.
        layer: the block it belongs to.
        sizes: d_in, d_out and the number of features.
        convention: what it expects and writes.
        model: the model as the files name it.
        path: its file, for messages.
        load: reads it, in this package's layout.
        activation: of the dictionary.
        k: of TopK.
        n_writes: to how many layers it writes.
    """
    d_in, d_out, n_features = sizes

    def read() -> Dictionary:
        weights = load(None)
        try:
            if kind == "sae":
                return SAE(site=site, activation=activation, k=k, convention=convention, **weights)
            made = CrossLayerTranscoder if kind == "cross-layer transcoder" else Transcoder
            return made(activation=activation, k=k, convention=convention, **weights)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def read_rows(rows: Sequence[int]) -> FeatureRows:
        for row in rows:
            if not 0 <= row < n_features:
                raise ValueError(f"{path} has features 0 to {n_features - 1}, got {row}")
        weights = load(rows)
        return FeatureRows(
            encoder=weights["W_enc"].T,
            decoder=weights["W_dec"],
            b_enc=weights["b_enc"],
            threshold=weights.get("threshold"),
        )

    return Entry(
        name=f"{site}.{layer}",
        kind=kind,
        d_in=d_in,
        d_out=d_out,
        n_features=n_features,
        convention=convention,
        model=model,
        path=path,
        read=read,
        read_rows=read_rows,
        n_writes=n_writes,
    )


def open_layers(
    path: Path,
    files: Sequence[Path],
    given: Given,
    layer_of: Callable[[Path, Given], int],
    entry: Callable[[Path, int, Given], Entry],
) -> list[Entry]:
    """The entries of a checkpoint with a file a dictionary, of the layers that are wanted.

    Args:
        path: the checkpoint, for messages.
        files: its files, at least one.
        given: what the caller says of it.
        layer_of: the layer of a file.
        entry: makes the entry of a file and its layer; not called for other layers.

    Raises:
        ValueError: if a layer is given for several files, or two are of the same place.
    """
    check_given_layer(path, given, len(files))
    layers = {file: layer_of(file, given) for file in files}
    entries = [
        entry(file, layer, given)
        for file, layer in layers.items()
        if given.layers is None or layer in given.layers
    ]
    return sorted_entries(path, entries)


def sorted_entries(path: Path, entries: Sequence[Entry]) -> list[Entry]:
    """The entries in the order of layers, one for each place.

    Raises:
        ValueError: if several dictionaries are of the same place.
    """
    places: dict[tuple[int, str], Entry] = {}
    for entry in entries:
        first = places.setdefault((entry.layer, entry.site), entry)
        if first is not entry:
            raise ValueError(
                f"{path} holds several dictionaries for {entry.name}: {first.path} and "
                f"{entry.path}; name one of the two"
            )
    return [entry for _, entry in sorted(places.items())]
