"""Where an interrupted scan goes on: one file, replaced in one move."""

import json
from pathlib import Path

from torch import Tensor

from circuits.files import write_atomically

__all__ = ["PROGRESS_NAME", "read_progress", "save_progress"]

PROGRESS_NAME = "progress.safetensors"
_VERSION = 1


def save_progress(folder: Path, tensors: dict[str, Tensor], rows_done: int) -> None:
    """Write what was collected from the first `rows_done` rows."""
    from safetensors.torch import save_file

    header = {"circuitloom": json.dumps({"version": _VERSION, "rows_done": rows_done})}
    write_atomically(
        folder / PROGRESS_NAME, lambda path: save_file(tensors, str(path), metadata=header)
    )


def read_progress(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Rows done and what was collected, or None where nothing was saved.

    Raises:
        ValueError: if the file is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / PROGRESS_NAME
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("circuitloom", "{}"))
            # Tensors straight from the file may be unaligned.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from error
    if record.get("version") != _VERSION:
        raise ValueError(
            f"{path} has version {record.get('version')}, this reads {_VERSION}; delete it to "
            "start again"
        )
    return record["rows_done"], tensors
