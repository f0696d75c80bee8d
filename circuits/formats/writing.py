"""Writing checkpoints that other libraries read: checked before, whole files or none."""

import errno
from pathlib import Path

from torch import Tensor

from circuits.dictionaries import SAE, Dictionary
from circuits.files import write_atomically

__all__ = ["check_writable", "save_tensors"]

_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")


def check_writable(name: str, dictionary: Dictionary) -> None:
    """Refuse what could not be read again, before anything is written.

    Raises:
        ValueError: if `name` is not SITE.LAYER with the dictionary's own site, or a tensor is not
            finite in float32.
    """
    site, _, layer = name.rpartition(".")
    own = dictionary.site if isinstance(dictionary, SAE) else "mlp"
    if site != own or not (layer.isascii() and layer.isdigit()):
        raise ValueError(f"a dictionary at {own!r} must be called {own}.LAYER, got {name!r}")
    for field in _TENSORS:
        tensor = getattr(dictionary, field)
        if tensor is not None and not tensor.float().isfinite().all():
            raise ValueError(f"{field} of {name} is not finite in float32; nothing was written")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, all or nothing; tensors may share memory.

    Raises:
        OSError: if the disk is full or `path` cannot be written.
    """
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        storage = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    write_atomically(path, lambda temporary: _save(apart, temporary))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Safetensors' `save_file`, with a full disk as the OSError that it is."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, str(path))
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error
