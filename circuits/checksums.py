"""SHA-256 of what a file holds: one flipped bit is an error that names the tensor."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["RECORD", "different", "sha256_of_record", "sha256_of_tensor", "sha256_of_tensors"]

RECORD = "record"
"""Name under which the checksum of the record itself is kept."""


def sha256_of_tensor(tensor: Tensor) -> str:
    """Of the bytes of a tensor on the CPU, in its own dtype and row-major order.

    Example:
        >>> sha256_of_tensor(torch.zeros(2, 3)) == hashlib.sha256(bytes(24)).hexdigest()
        True
    """
    flat = tensor.contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of each tensor."""
    return {name: sha256_of_tensor(tensor) for name, tensor in tensors.items()}


def sha256_of_record(record: Mapping[str, Any]) -> str:
    """Of a record as JSON with sorted keys, its own checksums left out."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def different(tensors: Mapping[str, Tensor], checksums: Mapping[str, str]) -> list[str]:
    """Names of the tensors that are not what their checksums say, or have none, or are missing.

    Args:
        tensors: as they are in the file.
        checksums: of the file's record.
    """
    found = sha256_of_tensors(tensors)
    names = sorted((found.keys() | checksums.keys()) - {RECORD})
    return [name for name in names if found.get(name) != checksums.get(name)]
