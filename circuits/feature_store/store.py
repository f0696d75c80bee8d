"""Reading a feature store: opened without loading it, a feature in milliseconds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from torch import Tensor

from circuits.feature_store.fingerprints import file_sha256, fingerprint
from circuits.feature_store.layout import (
    DTYPES,
    MANIFEST_NAME,
    VERSION,
    Manifest,
    histogram_edges,
    shapes_of,
)
from circuits.feature_store.records import Context, Histogram, Partner, StoredFeature
from circuits.formats.reading import check_shape, inside, read_json
from circuits.spliced import SplicedModel
from circuits.training.data import TOKENS_NAME

__all__ = ["FeatureStore"]


class FeatureStore:
    """Every feature of every scanned dictionary, over one corpus; use `FeatureStore.open`.

    Files stay mapped while the store lives; only what is asked for is read.
    """

    def __init__(self, folder: Path, manifest: Manifest, files: Mapping[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._files = dict(files)
        self._rows = self._files.pop(TOKENS_NAME).get_slice("tokens")
        self._edges = tuple(histogram_edges().tolist())
        self._n_active: dict[str, Tensor] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "FeatureStore":
        """Open the store in `folder`; reads the manifest and the headers of files.

        Raises:
            ValueError: if there is none, the scan that makes it has not ended, or a file is
                missing, truncated or of other sizes than the manifest says.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        files = {TOKENS_NAME: _open_file(folder / TOKENS_NAME)}
        shape = (manifest.n_rows, manifest.corpus.context)
        _check_table(folder / TOKENS_NAME, files[TOKENS_NAME], "tokens", shape, torch.int32)
        for name in manifest.names:
            path = inside(folder, f"{name}.safetensors")
            files[name] = _open_file(path)
            n_features = manifest.dictionaries[name].n_features
            for table, shape in shapes_of(n_features, manifest.settings).items():
                _check_table(path, files[name], table, shape, DTYPES[table])
        return cls(folder, manifest, files)

    @property
    def names(self) -> list[str]:
        """The dictionaries, in the order in which they were given to the scan."""
        return list(self.manifest.names)

    @property
    def n_tokens(self) -> int:
        """Positions that count: all but the first of each row, BOS and padding."""
        return self.manifest.n_tokens

    def n_features(self, name: str) -> int:
        """How many features the dictionary `name` has."""
        self._check_name(name)
        return self.manifest.dictionaries[name].n_features

    def densities(self, name: str) -> Float[Tensor, " feature"]:
        """Share of positions where each feature is active, in float64."""
        return self._counts(name).double() / max(self.n_tokens, 1)

    def maxima(self, name: str) -> Float[Tensor, " feature"]:
        """Largest activation of each feature; 0 if never active."""
        self._check_name(name)
        return self._files[name].get_tensor("maximum").clone()

    def row(self, row: int) -> Int[Tensor, " context"]:
        """The token ids of one row of the corpus, padded with -1.

        Raises:
            ValueError: if there is no such row.
        """
        if not 0 <= row < self.manifest.n_rows:
            raise ValueError(f"the corpus has rows 0 to {self.manifest.n_rows - 1}, got {row}")
        return self._rows[row]

    def feature(self, name: str, index: int) -> StoredFeature:
        """All that is known of one feature.

        Raises:
            ValueError: if there is no such dictionary or feature.
        """
        n_features = self.n_features(name)
        if not 0 <= index < n_features:
            raise ValueError(f"{name} has features 0 to {n_features - 1}, got {index}")
        found = {table: self._files[name].get_slice(table)[index] for table in DTYPES}
        n_active = int(found["n_active"])
        return StoredFeature(
            name=name,
            index=index,
            density=n_active / max(self.n_tokens, 1),
            n_active=n_active,
            maximum=float(found["maximum"]),
            mean_active=float(found["sum"]) / max(n_active, 1),
            histogram=Histogram(self._edges, tuple(found["histogram"].tolist())),
            top=self._contexts(found["top_place"], found["top_values"]),
            samples=self._samples(found),
            partners=self._partners(found),
            n_counted=int(found["n_counted"]),
        )

    def verify(self) -> None:
        """Read every file whole and compare it with the manifest.

        Raises:
            ValueError: names the first file whose bytes have changed.
        """
        wanted = {TOKENS_NAME: self.manifest.tokens_sha256}
        for name, record in self.manifest.dictionaries.items():
            wanted[f"{name}.safetensors"] = record.sha256
        for file, sha256 in wanted.items():
            if file_sha256(self.folder / file) != sha256:
                raise ValueError(
                    f"{self.folder / file} has changed since the scan; copy it or scan again"
                )

    def check(self, spliced: SplicedModel) -> None:
        """Refuse dictionaries that are not those of the scan (some of them are enough).

        Raises:
            ValueError: names the one that was not scanned, or is another.
        """
        for placement in spliced.placements.values():
            name = placement.name
            self._check_name(name)
            found = fingerprint(placement.dictionary)
            if found != self.manifest.dictionaries[name].fingerprint:
                raise ValueError(
                    f"{self.folder} is a scan of another dictionary {name} than this one; give the "
                    "dictionaries that were scanned, or scan these into another folder"
                )

    def _check_name(self, name: str) -> None:
        if name not in self.manifest.dictionaries:
            raise ValueError(f"{self.folder} has no {name!r}; it has {', '.join(self.names)}")

    def _counts(self, name: str) -> Int[Tensor, " feature"]:
        self._check_name(name)
        if name not in self._n_active:
            self._n_active[name] = self._files[name].get_tensor("n_active").clone()
        return self._n_active[name]

    def _contexts(
        self, places: Int[Tensor, " k"], values: Float[Tensor, "k window"]
    ) -> tuple[Context, ...]:
        """The contexts in a table's row, without its empty places."""
        return tuple(
            self._context(place, window)
            for place, window in zip(places.tolist(), values.tolist(), strict=True)
            if place >= 0
        )

    def _context(self, place: int, window: list[float]) -> Context:
        row, pos = divmod(place, self.manifest.corpus.context)
        before, after = self.manifest.settings.before, self.manifest.settings.after
        first = max(pos - before, 0)
        ids = self.row(row)[first : pos + after + 1].tolist()
        ids = [i for i in ids if i >= 0]  # padding ends a row
        skipped = first - (pos - before)
        return Context(
            row=row,
            pos=pos,
            value=window[before],
            tokens=tuple(ids),
            values=tuple(window[skipped : skipped + len(ids)]),
            peak=pos - first,
        )

    def _samples(
        self, found: Mapping[str, Tensor]
    ) -> tuple[tuple[float, float, tuple[Context, ...]], ...]:
        if not found["n_active"]:
            return ()
        bands, per_band = self.manifest.settings.bands, self.manifest.settings.per_band
        top, maximum = int(found["octave"]), float(found["maximum"])
        samples = []
        for band in range(bands):
            low = 0.0 if band == bands - 1 else 2.0 ** (top - band)
            high = maximum if band == 0 else 2.0 ** (top - band + 1)
            part = slice(band * per_band, (band + 1) * per_band)
            contexts = self._contexts(found["sample_place"][part], found["sample_values"][part])
            ordered = sorted(contexts, key=lambda c: (-c.value, c.row, c.pos))
            samples.append((low, high, tuple(ordered)))
        return tuple(samples)

    def _partners(self, found: Mapping[str, Tensor]) -> tuple[Partner, ...]:
        n_active, n_counted = int(found["n_active"]), int(found["n_counted"])
        ids, counts = found["partner_id"].tolist(), found["partner_count"].tolist()
        partners = []
        for number, count in zip(ids, counts, strict=True):
            if number < 0:
                continue
            name, index = self._located(number)
            share = count / n_counted
            density = int(self._counts(name)[index]) / self.n_tokens
            together = round(share * n_active)
            partners.append(Partner(name, index, together, share, share / density))
        return tuple(partners)

    def _located(self, number: int) -> tuple[str, int]:
        """A feature counted over all dictionaries, as a dictionary and a number in it."""
        for name in self.manifest.names:
            n_features = self.manifest.dictionaries[name].n_features
            if number < n_features:
                return name, number
            number -= n_features
        raise ValueError(f"{self.folder} names a partner that is no feature; scan again")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"no finished feature store at {folder} (no {MANIFEST_NAME}); make one with "
            "`circuits scan`, or repeat its command to end an interrupted scan"
        )
    record = read_json(path)
    if record.get("version") != VERSION:
        raise ValueError(f"{path} has version {record.get('version')}, this reads {VERSION}")
    try:
        manifest = Manifest.model_validate_json(json.dumps(record))
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if sorted(manifest.names) != sorted(manifest.dictionaries):
        raise ValueError(f"{path} is damaged: its names are not those of its dictionaries")
    return manifest


def _open_file(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the whole folder, or scan again") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it, or scan again") from error


def _check_table(
    path: Path, file: Any, table: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Refuse a table that is missing or of another shape or dtype, from the header alone."""
    if table not in file.keys():  # noqa: SIM118
        raise ValueError(f"{path} has no table {table!r}; copy it, or scan again")
    part = file.get_slice(table)
    check_shape(path, table, part.get_shape(), shape)
    wanted = _SAFETENSORS_NAMES[dtype]
    if part.get_dtype() != wanted:
        raise ValueError(f"{path}: {table} must be {wanted}, got {part.get_dtype()}; scan again")


_SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}
