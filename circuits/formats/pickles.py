"""PyTorch files that hold a pickle: opened so that tensors come out and nothing is executed.

Three walls, each enough by itself: the archive must be a plain, uncompressed zip no smaller than
what it declares; its pickle may name nothing but tensors, numbers, ordered dicts and the stand-ins
asked for (read off its opcodes, without running them); and what is then run is PyTorch's own
`weights_only` unpickler.
"""

import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["StandIn", "check_records", "pickle_globals", "read_pickle", "state_dict"]

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32")
_HARMLESS = frozenset(
    [
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "collections.OrderedDict",
        "torch.device",
        "torch.Size",
        *(f"torch.{kind}Storage" for kind in _STORAGES),
        *(f"torch.{dtype}" for dtype in _DTYPES),
    ]
)
_INDIRECT = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID")
_FOLDER = 0x10  # set on a record, PyTorch takes it for a folder and its data from anywhere
_LARGEST_PICKLE = 16 * 2**20


class StandIn:
    """An object of a class that is not there: its attributes can be read, none of it runs."""


def pickle_globals(path: Path) -> set[str]:
    """Names of the classes and functions that the pickle of a PyTorch file asks for.

    Reads opcodes; nothing is executed.

    Raises:
        ValueError: if it is no plain PyTorch archive.
    """
    with _archive(path) as archive:
        return set(_globals(path, _pickle_of(path, archive)))


def check_records(path: Path) -> None:
    """Compare every record of a PyTorch file with its checksum.

    Raises:
        ValueError: names the record that differs.
    """
    with _archive(path) as archive:
        try:
            damaged = archive.testzip()
        except Exception as error:  # damaged bytes make zipfile raise anything
            raise _unsound(path, error) from error
    if damaged is not None:
        raise ValueError(f"{path}: {damaged} differs from its checksum; download the file again")


def read_pickle(path: Path, stand_ins: Sequence[str] = (), *, mapped: bool = False) -> Any:
    """What a PyTorch file holds: tensors on the CPU in containers, numbers, strings, stand-ins.

    Args:
        path: written by `torch.save` in its zip format.
        stand_ins: full names of classes whose objects become `StandIn`s.
        mapped: leave tensors in the file until they are touched.

    Raises:
        ValueError: if it is missing or damaged, asks for anything else (named), or declares
            tensors larger than itself.
    """
    with _archive(path) as archive:
        named = set(_globals(path, _pickle_of(path, archive)))
        held = sum(r.file_size for r in archive.infolist() if "/data/" in r.filename)
    refused = sorted(named - _HARMLESS - set(stand_ins))
    if refused:
        raise ValueError(
            f"{path} asks to run {', '.join(refused)}; only tensors are read from pickles, nothing "
            "was executed. Save its tensors as safetensors if you trust it"
        )
    registered = [(StandIn, name) for name in stand_ins]
    try:
        with torch.serialization.safe_globals(registered):  # type: ignore[arg-type]
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # an unpickler that is fed garbage raises anything
        raise _unsound(path, error) from error
    _check_tensors(path, found, held)
    return found


def state_dict(path: Path, found: Any) -> dict[str, Tensor]:
    """Tensors by name, as `read_pickle` found them.

    Raises:
        ValueError: if it is anything else.
    """
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path} must hold tensors by name (a state dict), got {_what(found)}")
    return {str(name): tensor.detach() for name, tensor in found.items()}


def _what(found: Any) -> str:
    if not isinstance(found, dict):
        return type(found).__name__
    return ", ".join(f"{name}: {type(value).__name__}" for name, value in found.items())[:200]


def _unsound(path: Path, error: Exception) -> ValueError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ValueError(f"{path} is not a sound PyTorch file ({line}); download it again")


def _archive(path: Path) -> zipfile.ZipFile:
    """The zip archive, plain: nothing compressed, nothing twice, no code, nothing overlapping."""
    if not path.is_file():
        raise ValueError(f"no weights at {path}; copy or download them again")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged bytes make zipfile raise anything
        raise ValueError(
            f"{path} is not a complete PyTorch file of the zip kind ({error}); download it again, "
            "or load and save it anew with a current PyTorch if it is of before 2020"
        ) from error
    records = archive.infolist()
    names = [record.filename for record in records]
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        fault = "compressed records, which `torch.save` never writes"
    elif any(record.flag_bits & 1 or record.external_attr & _FOLDER for record in records):
        fault = "encrypted records or folders, which `torch.save` never writes"
    elif len(set(names)) < len(names):
        fault = "two records of one name"
    elif any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        fault = "a TorchScript program"
    elif sum(record.file_size for record in records) > path.stat().st_size:
        fault = "records that are together larger than the file"
    else:
        return archive
    archive.close()
    raise ValueError(f"{path} holds {fault}; refused")


def _pickle_of(path: Path, archive: zipfile.ZipFile) -> bytes:
    found = [record for record in archive.infolist() if record.filename.endswith("data.pkl")]
    if len(found) != 1 or found[0].file_size > _LARGEST_PICKLE:
        raise ValueError(
            f"{path} must hold one data.pkl of at most {_LARGEST_PICKLE} bytes, got "
            f"{[(record.filename, record.file_size) for record in found]}"
        )
    try:
        return archive.read(found[0])
    except Exception as error:  # damaged bytes make zipfile raise anything
        raise _unsound(path, error) from error


def _globals(path: Path, pickled: bytes) -> Iterator[str]:
    """Every global of a pickle; names that are only put together when it runs are refused."""
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif opcode.name in _INDIRECT:
                raise ValueError(f"opcode {opcode.name}, which no PyTorch file needs")
    except Exception as error:  # a damaged pickle raises anything
        raise _unsound(path, error) from error


def _tensors_in(found: Any) -> Iterator[Tensor]:
    """Every tensor in containers and stand-ins, however deep, each container once."""
    left, seen = [found], set()
    while left:
        here = left.pop()
        if isinstance(here, Tensor):
            yield here
        elif id(here) not in seen:
            seen.add(id(here))
            here = vars(here) if isinstance(here, StandIn) else here
            if isinstance(here, Mapping):
                left += here.values()
            elif isinstance(here, list | tuple | set):
                left += here


def _check_tensors(path: Path, found: Any, held: int) -> None:
    """Refuse tensors that are larger than their storages, and storages larger than the file's.

    Args:
        path: the file.
        found: what was read from it.
        held: bytes in the records of its storages.
    """
    storages: dict[int, int] = {}
    for tensor in _tensors_in(found):
        storage = tensor.untyped_storage()
        nbytes = tensor.numel() * tensor.element_size()
        storages[storage.data_ptr()] = storage.nbytes()
        if nbytes > storage.nbytes() or sum(storages.values()) > held:
            raise ValueError(
                f"{path} declares a tensor of shape {tuple(tensor.shape)}, {nbytes} bytes, that it "
                "does not hold; refused"
            )
