"""The check on load, once for every set of files and model: what fitted is remembered."""

import hashlib
import json
import warnings
from pathlib import Path

from circuits.dictionary_set import DictionarySet
from circuits.files import write_json
from circuits.loading import cache_folder, tiny_folder
from circuits.plausibility.checking import check_plausible
from circuits.plausibility.verdicts import UNCHECKED
from circuits.subject import SubjectModel

__all__ = ["try_out"]


def try_out(model: SubjectModel, dictionaries: DictionarySet) -> None:
    """Try dictionaries on a model, unless these very files were found to fit it before.

    What fitted is noted in the cache folder, by names, sizes and dates of the files. Those of
    `tiny` are not tried: they come with it, and with tests that do. Neither are the upper layers of
    a cross-layer transcoder without those below, since they reconstruct nothing by themselves.

    Raises:
        ImplausibleDictionaryError: if one does not fit.
    """
    wanted = {name: entry for name, entry in dictionaries.entries.items() if _is_new(entry.path)}
    crossing = [e.layer for e in wanted.values() if e.kind == "cross-layer transcoder"]
    if crossing and min(crossing) > 0:
        wanted = {n: e for n, e in wanted.items() if e.kind != "cross-layer transcoder"}
    if not wanted:
        return
    if model.tokenizer is None:
        warnings.warn(f"{model.name!r} has no tokenizer: {UNCHECKED}", stacklevel=3)
        return
    tried = DictionarySet(wanted.values())
    note = cache_folder() / "checked" / f"{_key(model, tried)}.json"
    if note.exists():
        return
    fits = [fit.model_dump(mode="json") for fit in check_plausible(model, tried)]
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"model": model.name, "fits": fits})


def _is_new(path: Path) -> bool:
    return not path.resolve().is_relative_to(tiny_folder().resolve())


def _key(model: SubjectModel, dictionaries: DictionarySet) -> str:
    """What tells model and files from others: names, sizes, dates, one number of the weights."""
    facts = [model.name, model.n_layers, str(model.dtype), model.prepend_bos]
    weights = float(model.W_E.double().abs().sum()), float(model.W_U.double().abs().sum())
    files = [
        (name, str(entry.path.resolve()), _stamps(entry.path), entry.convention.model_dump())
        for name, entry in dictionaries.entries.items()
    ]
    text = json.dumps([facts, weights, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamps(path: Path) -> list[tuple[int, int]]:
    """Size and date of a file, or of the files in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = (file.stat() for file in files if file.is_file())
    return [(stat.st_size, stat.st_mtime_ns) for stat in found]
