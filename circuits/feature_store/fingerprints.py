"""Identity of dictionaries and files: SHA-256 of what they hold."""

import hashlib
import json
from pathlib import Path

import torch

from circuits.dictionaries import SAE, Dictionary

__all__ = ["file_sha256", "fingerprint"]

_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")


def fingerprint(dictionary: Dictionary) -> str:
    """SHA-256 of a dictionary's kind, activation function, convention and weights in float32.

    It is the same in whichever format and folder the dictionary lies.
    """
    about = {
        "kind": type(dictionary).__name__,
        "site": dictionary.site if isinstance(dictionary, SAE) else "mlp",
        "activation": dictionary.activation,
        "k": dictionary.k,
        "convention": dictionary.convention.model_dump(),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in _TENSORS:
        tensor = getattr(dictionary, name)
        if tensor is not None:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(values.numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
