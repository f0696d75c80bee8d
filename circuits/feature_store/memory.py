"""How much memory and disk a scan takes, before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass

from circuits.feature_store.layout import DTYPES, ScanSettings, shapes_of

__all__ = ["ScanMemory", "scan_memory"]

_BATCH_COPIES = 4
_ENTRY_BYTES = 4
_COUNTING_BYTES = 48
"""Per entry, while co-activation is counted: two orders, ranks, owners and what sorting needs."""


@dataclass(frozen=True)
class ScanMemory:
    """Bytes a scan takes besides the model and the dictionaries; none grows with the corpus.

    Args:
        kept: statistics and contexts of all features.
        entries: lists of active features held for co-activation, at most.
        counting: while those are counted, at the end.
        batch: activations of one batch, at most.
        disk: the store, and as much again for what an interrupted scan goes on from. The rows of
            tokens come to that, 4 bytes each.
    """

    kept: int
    entries: int
    counting: int
    batch: int
    disk: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        return self.kept + self.entries + max(self.counting, self.batch)


def scan_memory(n_features: Mapping[str, int], settings: ScanSettings, context: int) -> ScanMemory:
    """What a scan of dictionaries with so many features takes.

    Args:
        n_features: of each dictionary.
        settings: what is kept of each feature.
        context: tokens a row of text.
    """
    kept = sum(_table_bytes(n, settings) for n in n_features.values())
    entries = settings.coactivation_entries
    tokens = settings.batch_rows * context
    return ScanMemory(
        kept=kept,
        entries=_ENTRY_BYTES * entries,
        counting=_COUNTING_BYTES * entries,
        batch=_BATCH_COPIES * 4 * tokens * max(n_features.values()),
        disk=2 * kept + _ENTRY_BYTES * entries,
    )


def _table_bytes(n_features: int, settings: ScanSettings) -> int:
    total = 0
    for table, shape in shapes_of(n_features, settings).items():
        n_entries = 1
        for size in shape:
            n_entries *= size
        total += n_entries * DTYPES[table].itemsize
    return total
