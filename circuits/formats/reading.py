"""Reading files that others wrote: nothing is executed, nothing outside the folder is touched, and
what does not fit is refused by name.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "check_finite",
    "check_shape",
    "flag",
    "inside",
    "npz_shapes",
    "read_json",
    "read_npz",
    "read_tensors",
    "shapes",
]


def inside(folder: Path, relative: str) -> Path:
    """`folder / relative`, which must not lead out of `folder`.

    A link from a snapshot of the hub's cache to the blobs of the same repository is no way out.

    Raises:
        ValueError: if it does, by `..`, an absolute path or a link.
    """
    path = folder / relative
    outer = Path(os.path.normpath(folder.absolute()))
    homes = [folder.resolve()]
    homes += [parent.parent / "blobs" for parent in homes[0].parents if parent.name == "snapshots"]
    written = Path(os.path.normpath(path.absolute())).is_relative_to(outer)
    if not written or not any(path.resolve().is_relative_to(home) for home in homes):
        raise ValueError(f"{folder} names the file {relative!r}, which lies outside it; refused")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`.

    Raises:
        ValueError: if it is missing, not JSON, or not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no config at {path}; copy or download it again") from None
    except (OSError, ValueError, RecursionError) as error:  # a ValueError also for huge numbers
        raise ValueError(f"{path} is not readable JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def flag(path: Path, record: Mapping[str, Any], key: str) -> bool:
    """A switch of a config, False where it is missing.

    Raises:
        ValueError: if it is neither true nor false.
    """
    found = record.get(key, False)
    if not isinstance(found, bool):
        raise ValueError(f"{path}: {key} must be true or false, got {found!r:.80}")
    return found


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header alone.

    Raises:
        ValueError: if it is missing, truncated or no safetensors file.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_tensors(
    path: Path, names: Iterable[str], *, rows: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Some tensors of a safetensors file, in its own dtype.

    Args:
        path: the file.
        names: which tensors; those the file lacks are left out.
        rows: for some of them, only these entries of the first axis, read without the others.

    Raises:
        ValueError: if it is missing, truncated or no safetensors file.
    """
    found: dict[str, Tensor] = {}
    with _opened(path) as file:
        there = set(file.keys())
        for name in names:
            if name not in there:
                continue
            tensor = file.get_tensor(name)  # mapped: what is not looked at is not read
            wanted = None if rows is None else rows.get(name)
            found[name] = tensor if wanted is None else _rows(path, name, tensor, wanted)
    return found


def _rows(path: Path, name: str, mapped: Tensor, rows: Sequence[int]) -> Tensor:
    """Entries of the first axis of a tensor in a sound file, by plain reads.

    Each would be a page fault or more of the mapped tensor, which costs up to a millisecond where
    memory is virtualised or the disk is far.
    """
    size = mapped[:1].nbytes
    buffer = bytearray(size * len(rows))
    if not buffer:
        return mapped.new_empty((len(rows), *mapped.shape[1:]))
    into = memoryview(buffer)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        first = 8 + length + json.loads(stream.read(length))[name]["data_offsets"][0]
        for place, row in enumerate(rows):
            stream.seek(first + range(mapped.shape[0])[row] * size)
            stream.readinto(into[place * size : (place + 1) * size])
    return torch.frombuffer(buffer, dtype=mapped.dtype).view(len(rows), *mapped.shape[1:])


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"no weights at {path}; copy or download them again")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from error


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in a NumPy archive, from their headers alone.

    Raises:
        ValueError: if it is missing, truncated, holds anything but arrays of numbers, or declares
            an array of another size than it holds.
    """
    import zipfile
    from math import prod

    if not path.is_file():
        raise ValueError(f"no weights at {path}; copy or download them again")
    found: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > 100 * path.stat().st_size:
                raise ValueError("it would unpack to over 100 times its size; weights do not")
            for member in archive.infolist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    header = np.lib.format.read_array_header_1_0
                    if version != (1, 0):
                        header = np.lib.format.read_array_header_2_0
                    shape, _, dtype = header(stream)
                    held = member.file_size - stream.tell()
                if dtype.kind not in "fiu" or held != prod(shape) * dtype.itemsize:
                    raise ValueError(f"{member.filename} has {held} bytes for {dtype} {shape}")
                found[member.filename.removesuffix(".npy")] = shape
    except Exception as error:  # damaged bytes make zipfile and NumPy raise anything
        raise ValueError(
            f"{path} is not a sound NumPy archive of numbers ({error}); download it again"
        ) from error
    return found


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a NumPy archive; pickled ones are refused, not opened.

    Raises:
        ValueError: if it is missing, truncated, or holds anything but arrays of numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise ValueError(f"no weights at {path}; copy or download them again") from None
    except Exception as error:  # damaged bytes make zipfile and NumPy raise anything
        raise ValueError(
            f"{path} is not a sound NumPy archive ({error}); download it again"
        ) from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} must hold numbers, got dtype {array.dtype}")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def check_shape(path: Path, name: str, got: Sequence[int], want: Sequence[int]) -> None:
    """Refuse a tensor of another shape than declared.

    Raises:
        ValueError: names the file, the tensor and both shapes.
    """
    if tuple(got) != tuple(want):
        raise ValueError(f"{path}: {name} must have shape {tuple(want)}, got {tuple(got)}")


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: names the file and the tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; the file is damaged")
