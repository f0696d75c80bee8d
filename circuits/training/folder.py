"""The folder of a run: it belongs to one set of settings, and a kill leaves nothing half done."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits.files import write_json

__all__ = ["claim"]

_VERSION = 2
_UNFINISHED = ".*.tmp"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `config.json`, or check that the folder's run has these settings.

    Files that a killed run was writing are removed.

    Raises:
        ValueError: if the folder holds a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    record = {"version": _VERSION, **settings}
    if path.exists():
        _check_same(folder, _read(path), record)
    else:
        write_json(path, record)
    for unfinished in folder.glob(_UNFINISHED):
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); use another folder") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings of a training run; use another folder")
    return found


def _check_same(folder: Path, found: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(record))
    differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if differing:
        what = ", ".join(f"{k} {found.get(k)!r} not {wanted.get(k)!r}" for k in differing)
        raise ValueError(f"{folder} holds a run with other settings ({what}); use another folder")
