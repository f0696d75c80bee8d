"""Writing a feature store: tables first, the manifest last, each file whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from circuits.feature_store.fingerprints import file_sha256
from circuits.feature_store.layout import (
    DTYPES,
    MANIFEST_NAME,
    VERSION,
    CorpusSettings,
    DictionaryRecord,
    Manifest,
    ScanSettings,
    shapes_of,
)
from circuits.files import write_atomically, write_json
from circuits.training.data import TOKENS_NAME

__all__ = ["write_manifest", "write_tables"]


def write_tables(
    folder: Path, name: str, tables: Mapping[str, Tensor], settings: ScanSettings
) -> None:
    """Write the tables of one dictionary.

    Raises:
        ValueError: if they are not those of `circuits.feature_store.layout`.
        OSError: if the disk is full.
    """
    from safetensors.torch import save_file

    n_features = len(tables["n_active"])
    wanted = {
        table: (shape, DTYPES[table]) for table, shape in shapes_of(n_features, settings).items()
    }
    found = {table: (tuple(value.shape), value.dtype) for table, value in tables.items()}
    if found != wanted:
        wrong = sorted(t for t in {*wanted, *found} if wanted.get(t) != found.get(t))
        raise ValueError(f"tables of {name} must have shapes and dtypes {wanted}, wrong: {wrong}")
    whole = {table: value.contiguous() for table, value in tables.items()}
    write_atomically(folder / f"{name}.safetensors", lambda path: save_file(whole, str(path)))


def write_manifest(
    folder: Path,
    *,
    model: str,
    dictionaries: Mapping[str, tuple[int, str]],
    corpus: CorpusSettings,
    settings: ScanSettings,
    n_rows: int,
    n_tokens: int,
    n_coactivation_tokens: int,
) -> None:
    """Declare the tables and tokens in `folder` a store.

    Args:
        dictionaries: number of features and fingerprint of each, in order.
    """
    records = {
        name: DictionaryRecord(
            n_features=n_features,
            fingerprint=fingerprint,
            sha256=file_sha256(folder / f"{name}.safetensors"),
        )
        for name, (n_features, fingerprint) in dictionaries.items()
    }
    manifest = Manifest(
        version=VERSION,
        model=model,
        dictionaries=records,
        names=tuple(dictionaries),
        corpus=corpus,
        settings=settings,
        n_rows=n_rows,
        n_tokens=n_tokens,
        n_coactivation_tokens=n_coactivation_tokens,
        tokens_sha256=file_sha256(folder / TOKENS_NAME),
    )
    write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))
