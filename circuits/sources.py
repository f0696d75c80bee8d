"""From a name or a path to dictionaries of any format, and back to files."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from circuits.conventions import Convention
from circuits.dictionaries import Dictionary
from circuits.dictionary_set import DictionarySet
from circuits.formats.entry import Entry, Given
from circuits.formats.registry import FORMATS, open_checkpoint
from circuits.hub import fetch, fetch_folder
from circuits.loading import tiny_folder
from circuits.releases import Release, releases

__all__ = ["load_dictionaries", "save_dictionaries"]


def load_dictionaries(
    source: str | Path,
    *,
    sites: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    format: str | None = None,
    site: str | None = None,
    layer: int | None = None,
    convention: Convention | None = None,
    input_norm: float | None = None,
) -> DictionarySet:
    """Dictionaries for `SplicedModel`, of any format known here, read when they are used.

    Args:
        source: `tiny`, a published set (`circuits models` lists them; what is not in the hub's
            cache is downloaded), `hf:OWNER/NAME` or `hf:OWNER/NAME/FOLDER` for any other repository
            of the hub, or a file or folder of a known format.
        sites: `mlp` for transcoders, `resid_post` and so on for SAEs; None takes the transcoders
            where the source has any, and all SAEs where it has none.
        layers: which layers (of a published set only these are downloaded); None for all.
        format: name of the checkpoint format; None tells it by the names of the files.
        site: where the dictionaries of a file sit that does not say it.
        layer: of a single dictionary whose file does not say it.
        convention: taken instead of what the files say of their inputs.
        input_norm: mean L2 norm of the inputs in training, for files whose input scale was not
            folded into the weights.

    Raises:
        ValueError: if nothing fits, a file is damaged or cannot be had, or its dictionary cannot be
            expressed here.
    """
    wanted = None if layers is None else frozenset(layers)
    given = Given(
        site=site, layer=layer, convention=convention, input_norm=input_norm, layers=wanted
    )
    entries = _open_source(str(source), given, format)
    kept = _chosen(entries, None if sites is None else set(sites), wanted)
    if not kept:
        there = ", ".join(entry.name for entry in entries) or "none at all"
        raise ValueError(
            f"{source} holds no dictionary for sites {sites or 'any'} and layers "
            f"{sorted(wanted) if wanted else 'any'}; it holds {there}"
        )
    return DictionarySet(kept)


def _chosen(
    entries: Sequence[Entry], sites: set[str] | None, layers: frozenset[int] | None
) -> list[Entry]:
    """Those of the wanted sites and layers; with no site wanted, transcoders go before SAEs."""
    if sites is None:
        sites = {entry.site for entry in entries}
        sites = {"mlp"} if "mlp" in sites else sites
    return [e for e in entries if e.site in sites and (layers is None or e.layer in layers)]


def _open_source(source: str, given: Given, format: str | None) -> list[Entry]:
    """What a name or a path holds."""
    if source == "tiny":
        return open_checkpoint(tiny_folder() / "dictionaries", given, format)
    if source in releases():
        return _open_release(releases()[source], given)
    if source.startswith("hf:"):
        parts = source.removeprefix("hf:").split("/")
        if len(parts) < 2:
            raise ValueError(f"want hf:OWNER/NAME or hf:OWNER/NAME/FOLDER, got {source!r}")
        folder = fetch_folder("/".join(parts[:2]), "/".join(parts[2:]))
        return open_checkpoint(folder, given, format)
    if not Path(source).exists():
        near = difflib.get_close_matches(source, releases(), n=3, cutoff=0.5)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"no dictionaries called {source!r}: want `tiny`, a published set (`circuits models`), "
            "hf:OWNER/NAME, or a file or folder such as `circuits train` and other trainers "
            f"write{meant}"
        )
    return open_checkpoint(Path(source), given, format)


def _open_release(release: Release, given: Given) -> list[Entry]:
    """A published set: its files of the wanted layers, fetched where they are not in the cache."""
    places = {
        place: path
        for place, path in release.paths.items()
        if given.layers is None or int(place.rpartition(".")[2]) in given.layers
    }
    if not places:
        raise ValueError(
            f"{release.name} has the dictionaries {', '.join(release.paths)}, none of them in "
            f"layers {sorted(given.layers or ())}"
        )
    files = [name for place in places for name in release.files(place)]
    folder = fetch(release.repository, list(dict.fromkeys(files)))
    given = replace(given, convention=given.convention or release.convention)
    if release.format == "circuit-tracer":  # one checkpoint of many layers
        layers = frozenset(int(place.rpartition(".")[2]) for place in places)
        return open_checkpoint(folder, replace(given, layers=layers), release.format)
    entries: list[Entry] = []
    for place, path in places.items():
        site, _, layer = place.rpartition(".")
        own = replace(
            given,
            site=given.site or site,
            layer=int(layer),
            input_norm=given.input_norm or release.input_norms.get(place),
        )
        entries += open_checkpoint(folder / path, own, release.format)
    return entries


def save_dictionaries(
    dictionaries: Mapping[str, Dictionary], folder: str | Path, *, format: str, model: str
) -> None:
    """Write dictionaries to a folder in the format of another program, or in our own.

    Args:
        dictionaries: `{"mlp.0": ...}`.
        folder: made if it is not there.
        format: `circuitloom`, `saelens` or `circuit-tracer`.
        model: name of the model they were trained on, as that program knows it.

    Raises:
        ValueError: if there is nothing to write, no such format, or it cannot hold one of them (a
            TopK transcoder, a layer that is left out...); nothing is written then.
        OSError: if the disk is full or the folder cannot be written.
    """
    writers = {known.name: known.write for known in FORMATS if known.write is not None}
    if format not in writers:
        raise ValueError(f"cannot write the format {format!r}; want one of {', '.join(writers)}")
    if not dictionaries:
        raise ValueError("there are no dictionaries to write; give at least one")
    writers[format](dict(dictionaries), Path(folder), model)
