"""Training of sparse dictionaries: text in, transcoders and SAEs of many layers out, in one pass.

Names load on first use, so that reading a `TrainingConfig` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.training.config import TrainingConfig
    from circuits.training.text import read_rows
    from circuits.training.trainer import train

__all__ = ["TrainingConfig", "read_rows", "train"]

_HOME = {"TrainingConfig": "config", "read_rows": "text", "train": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuits.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"circuits.training.{_HOME[name]}"), name)
