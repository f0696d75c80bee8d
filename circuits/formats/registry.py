"""All formats, in the order in which they are tried on a path that names none."""

from pathlib import Path

from circuits.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    native,
    saelens,
    sparsify,
    transcoder_circuits,
)
from circuits.formats.entry import Entry, Format, Given

__all__ = ["FORMATS", "open_checkpoint"]

FORMATS: tuple[Format, ...] = tuple(
    module.FORMAT
    for module in (
        native,
        saelens,
        gemma_scope,
        gemma_scope_2,
        circuit_tracer,
        sparsify,
        dictionary_learning,
        transcoder_circuits,
    )
)


def open_checkpoint(
    path: Path, given: Given | None = None, format: str | None = None
) -> list[Entry]:
    """The dictionaries in a file or folder, in the format named or the first that recognises it.

    Raises:
        ValueError: if there is nothing at `path`, no such format, or none recognises it; or from
            the format, naming the file.
    """
    if not path.exists():
        raise ValueError(f"no dictionaries at {path}; check the path")
    by_name = {known.name: known for known in FORMATS}
    if format is not None and format not in by_name:
        raise ValueError(f"no format called {format!r}; want one of {', '.join(by_name)}")
    known = by_name.values() if format is None else [by_name[format]]
    for candidate in known:
        if format is not None or candidate.recognises(path):
            return candidate.open(path, given or Given())
    raise ValueError(
        f"{path} is of no format known here ({', '.join(by_name)}); name one with `format` if its "
        "files have unusual names"
    )
