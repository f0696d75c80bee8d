"""The contexts that are kept of each feature: the largest activations, and a sample of each band.

Both keep the best keys of their slots, so what is kept depends on the corpus alone and not on
batches or interruptions.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.feature_store.keys import EMPTY, best, keys_by_hash, keys_by_value, place_of

__all__ = ["BandSamples", "Kept", "TopContexts", "Windows"]

Windows = Callable[[Int[Tensor, " m"]], Float[Tensor, "m window"]]
"""The activations around some of a batch's entries, by their numbers."""
_NONE = -(2**15)


class Kept:
    """The best k keys of each slot, in any order, with the activations around each place."""

    def __init__(self, n_slots: int, k: int, window: int) -> None:
        self.keys = torch.full((n_slots, k), EMPTY)
        self.windows = torch.zeros(n_slots, k, window)

    def add(self, slots: Int[Tensor, " n"], keys: Int[Tensor, " n"], windows: Windows) -> None:
        """Let entries compete; windows are asked for only of those that are kept."""
        least = self.keys.amin(1)
        better = (keys > least[slots]).nonzero().squeeze(1)
        where, entry, come = best(self.keys, slots[better], keys[better])
        self.keys[where, entry] = keys[better[come]]
        self.windows[where, entry] = windows(better[come])

    def ranked(self) -> tuple[Int[Tensor, "slot k"], Float[Tensor, "slot k window"]]:
        """Places, -1 where there are fewer than k, and the activations around; best first."""
        keys, order = self.keys.sort(descending=True)
        windows = self.windows.gather(1, order[:, :, None].expand_as(self.windows))
        return place_of(keys), windows


class TopContexts:
    """The k largest activations of each feature."""

    def __init__(self, n_features: int, k: int, window: int) -> None:
        self.kept = Kept(n_features, k, window)

    def add(
        self,
        features: Int[Tensor, " n"],
        places: Int[Tensor, " n"],
        values: Float[Tensor, " n"],
        windows: Windows,
    ) -> None:
        self.kept.add(features, keys_by_value(values, places), windows)


class BandSamples:
    """An even sample of the places in each band of each feature's activations.

    Bands are the octaves [2^e, 2^(e + 1)) below the largest activation, highest first, and the last
    has all that is lower. When a larger octave appears, bands move down and the last two meet; the
    places of smallest rank in a union are among those of its parts, so nothing is lost by it.

    Args:
        n_features: of one dictionary.
        bands: how many.
        per_band: places kept of each.
        window: positions of a context.
        before: of these, before the peak.
        first_id: the first feature's number over all dictionaries, by which samples differ.
    """

    def __init__(
        self, n_features: int, bands: int, per_band: int, window: int, before: int, first_id: int
    ) -> None:
        self.bands, self.before, self.first_id = bands, before, first_id
        self.octaves = torch.full((n_features,), _NONE, dtype=torch.int16)
        self.kept = Kept(n_features * bands, per_band, window)

    def add(
        self,
        features: Int[Tensor, " n"],
        places: Int[Tensor, " n"],
        values: Float[Tensor, " n"],
        windows: Windows,
    ) -> None:
        octaves = _octaves(values)
        self._raise(features, octaves)
        keys = keys_by_hash(features + self.first_id, places)
        self.kept.add(self._slots(features, octaves), keys, windows)

    def _slots(self, features: Int[Tensor, " n"], octaves: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        below = self.octaves[features].long() - octaves
        return features * self.bands + below.clamp_max(self.bands - 1)

    def _raise(self, features: Int[Tensor, " n"], octaves: Int[Tensor, " n"]) -> None:
        """Move the bands of features that have a larger octave than before."""
        highest = self.octaves.scatter_reduce(0, features, octaves.to(torch.int16), "amax")
        moved = ((highest > self.octaves) & (self.octaves > _NONE)).nonzero().squeeze(1)
        self.octaves = highest
        if not len(moved):
            return
        slots = (moved[:, None] * self.bands + torch.arange(self.bands)).flatten()
        keys, windows = self.kept.keys[slots], self.kept.windows[slots]
        self.kept.keys[slots], self.kept.windows[slots] = EMPTY, 0.0
        i, j = (keys != EMPTY).nonzero(as_tuple=True)
        old = windows[i, j]
        owners = moved[i // self.bands]
        values = old[:, self.before]
        self.kept.add(self._slots(owners, _octaves(values)), keys[i, j], lambda n: old[n])


def _octaves(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """`floor(log2 value)` of positive float32 values, exactly."""
    return values.float().frexp().exponent.long() - 1
