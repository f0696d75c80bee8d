"""Training of sparse dictionaries: text in, transcoders and SAEs of many layers out, in one pass.

Names load on first use, so that reading a `TrainingConfig` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.training.config import DictionaryConfig, TrainingConfig
    from circuits.training.from_batches import fit
    from circuits.training.text import read_rows
    from circuits.training.trainer import train, train_many

__all__ = ["DictionaryConfig", "TrainingConfig", "fit", "read_rows", "train", "train_many"]

_HOME = {
    "DictionaryConfig": "config",
    "TrainingConfig": "config",
    "fit": "from_batches",
    "read_rows": "text",
    "train": "trainer",
    "train_many": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuits.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"circuits.training.{_HOME[name]}"), name)
