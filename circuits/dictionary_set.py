"""Dictionaries that are read when they are asked for: a set opens from headers alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

from circuits.dictionaries import Dictionary
from circuits.formats.entry import Entry, FeatureRows

__all__ = ["DictionarySet"]


class DictionarySet(Mapping[str, Dictionary]):
    """Dictionaries of one checkpoint by `SITE.LAYER`, in the order of layers.

    `dictionaries["mlp.3"]` reads one; nothing keeps it but the caller, so going over a set holds
    one in memory at a time. `rows` reads single features.

    Args:
        entries: what the checkpoint holds.

    Raises:
        ValueError: if two entries claim one place.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries: dict[str, Entry] = {}
        for entry in sorted(entries, key=lambda entry: entry.layer):
            if entry.name in self.entries:
                raise ValueError(
                    f"both {self.entries[entry.name].path} and {entry.path} hold {entry.name}; "
                    "name the folder of the one that is wanted"
                )
            self.entries[entry.name] = entry
        self._alive: WeakValueDictionary[str, Dictionary] = WeakValueDictionary()

    def __getitem__(self, name: str) -> Dictionary:
        dictionary = self._alive.get(name)
        if dictionary is None:
            dictionary = self._entry(name).read()
            self._alive[name] = dictionary
        return dictionary

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __repr__(self) -> str:
        return f"DictionarySet({', '.join(self.entries)})"

    def rows(self, name: str, features: Sequence[int]) -> FeatureRows:
        """Some features of one dictionary, read without the others where its format allows.

        Raises:
            ValueError: if a feature is not there.
        """
        entry = self._entry(name)
        wrong = [feature for feature in features if not 0 <= feature < entry.n_features]
        if wrong:
            raise ValueError(f"{name} has features 0 to {entry.n_features - 1}, got {wrong[0]}")
        return entry.read_rows(features)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise KeyError(f"no dictionary {name!r}; there are {', '.join(self.entries) or 'none'}")
        return self.entries[name]
