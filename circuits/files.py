"""Writing files whole or not at all: no full disk, kill or error leaves half of one behind."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_atomically", "write_json", "write_text"]


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk, then move it into place.

    Args:
        path: the file to make or replace; its folder must exist.
        write: makes the file it is given.

    Raises:
        OSError: if the disk is full, or the folder is missing or not writable. The error names
            `path`, a file already there is untouched, and no temporary file stays behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        cause = error.strerror or str(error)
        reason = f"could not write the file ({cause}); check the folder and free space"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, all or nothing."""
    write_atomically(path, lambda file: _write(file, text))


def write_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write `record` to `path` as JSON with sorted keys, all or nothing."""
    write_text(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _write(file: Path, text: str) -> None:
    with file.open("x", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
