"""What a scan has collected so far: updated batch after batch, saved and restored as tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.dictionaries import Dictionary
from circuits.feature_store.coactivation import TokenSample
from circuits.feature_store.contexts import BandSamples, TopContexts
from circuits.feature_store.layout import ScanSettings
from circuits.feature_store.statistics import FeatureSums
from circuits.training.step import Workspace

__all__ = ["Active", "Collected", "DictionaryState", "encode_active", "neighbours"]

_BLOCK = 2**21
"""Activations encoded at a time."""
_SAMPLE = ("hashes", "lengths", "ids")


@dataclass(frozen=True)
class Active:
    """Active entries of one dictionary in a batch, token after token, features in order.

    Args:
        tokens: number of the token in the batch, of those that count.
        features: number of the feature.
        values: its activation, positive.
    """

    tokens: Int[Tensor, " n"]
    features: Int[Tensor, " n"]
    values: Float[Tensor, " n"]


def encode_active(dictionary: Dictionary, x: Float[Tensor, "token d_in"]) -> Active:
    """The active entries of `x`, encoded in blocks that stay in cache; on the CPU.

    Raises:
        ValueError: if activations are not finite, or negative.
    """
    size, first = max(1, _BLOCK // dictionary.n_features), 0
    tokens, features, values = [], [], []
    for block in x.split(size):
        a = dictionary.encode(block)
        i, j = a.nonzero(as_tuple=True)
        tokens.append(i.cpu() + first)
        features.append(j.cpu())
        values.append(a[i, j].float().cpu())
        first += len(block)
    active = Active(torch.cat(tokens), torch.cat(features), torch.cat(values))
    wrong = active.values[~((active.values > 0) & active.values.isfinite())]
    if len(wrong):
        raise ValueError(
            f"activations must be finite and not negative, got {wrong[0].item()}; are the weights "
            "damaged?"
        )
    return active


def neighbours(
    kept: Bool[Tensor, "row pos"], before: int, after: int
) -> Int[Tensor, "token window"]:
    """For each token that counts, the numbers of those in its window, -1 for what does not count.

    Example:
        >>> neighbours(torch.tensor([[False, True, True], [False, True, False]]), 1, 1)
        tensor([[-1,  0,  1],
                [ 0,  1, -1],
                [-1,  2, -1]])
    """
    numbers = torch.where(kept.flatten(), kept.flatten().cumsum(0) - 1, -1).view(kept.shape)
    padded = torch.nn.functional.pad(numbers, (before, after), value=-1)
    return padded.unfold(1, before + 1 + after, 1)[kept]


class DictionaryState:
    """What is collected of one dictionary."""

    def __init__(self, n_features: int, first_id: int, settings: ScanSettings) -> None:
        self.first_id = first_id
        self.sums = FeatureSums(n_features)
        self.top = TopContexts(n_features, settings.top_k, settings.window)
        self.samples = BandSamples(
            n_features,
            settings.bands,
            settings.per_band,
            settings.window,
            settings.before,
            first_id,
        )

    def add(
        self,
        active: Active,
        places: Int[Tensor, " token"],
        neighbours: Int[Tensor, "token window"],
        work: Workspace,
    ) -> None:
        """Count a batch.

        Args:
            active: the active entries.
            places: those of its tokens in the corpus.
            neighbours: numbers of the tokens around each, -1 for what does not count.
            work: lends a table of all activations, mostly 0.
        """
        if not len(active.tokens):
            return
        at, n = places[active.tokens], len(self.sums.n_active)
        dense = work.take("activations", (len(places) + 1) * n, like=active.values)
        dense.zero_()
        dense[active.tokens * n + active.features] = active.values

        def windows(entries: Tensor) -> Tensor:
            near = neighbours[active.tokens[entries]] % (len(places) + 1)  # -1: the last, all 0
            return dense[near * n + active.features[entries][:, None]]

        self.sums.add(active.features, active.values)
        self.top.add(active.features, at, active.values, windows)
        self.samples.add(active.features, at, active.values, windows)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name; changed in place by `restore`."""
        return {
            "n_active": self.sums.n_active,
            "sum": self.sums.sum,
            "maximum": self.sums.maximum,
            "histogram": self.sums.histogram,
            "octave": self.samples.octaves,
            "top_keys": self.top.kept.keys,
            "top_values": self.top.kept.windows,
            "sample_keys": self.samples.kept.keys,
            "sample_values": self.samples.kept.windows,
        }

    def tables(self) -> dict[str, Tensor]:
        """The tables of `circuits.feature_store.layout`, but for co-activation."""
        found, n = self.tensors(), len(self.sums.n_active)
        top_place, top_values = self.top.kept.ranked()
        sample_place, sample_values = self.samples.kept.ranked()
        return {
            **{name: found[name] for name in ("n_active", "sum", "maximum", "histogram")},
            "octave": torch.where(found["n_active"] > 0, found["octave"], 0).to(torch.int16),
            "top_place": top_place,
            "top_values": top_values,
            "sample_place": sample_place.view(n, -1),
            "sample_values": sample_values.view(n, -1, sample_values.shape[2]),
        }


class Collected:
    """What is collected of all dictionaries."""

    def __init__(self, n_features: Mapping[str, int], settings: ScanSettings) -> None:
        self.states: dict[str, DictionaryState] = {}
        first_id = 0
        for name, n in n_features.items():
            self.states[name] = DictionaryState(n, first_id, settings)
            first_id += n
        self.sample = TokenSample(settings.coactivation_entries)
        self.settings, self._work = settings, Workspace()

    def add(
        self,
        name: str,
        active: Active,
        places: Int[Tensor, " token"],
        kept: Bool[Tensor, "row pos"],
    ) -> None:
        """Count the active entries of one dictionary.

        Args:
            name: the dictionary.
            active: its active entries in a batch.
            places: those of the batch's tokens in the corpus.
            kept: which positions of its rows these tokens are.
        """
        around = neighbours(kept, self.settings.before, self.settings.after)
        self.states[name].add(active, places, around, self._work)

    def add_together(self, active: Mapping[str, Active], places: Int[Tensor, " token"]) -> None:
        """Hold which features of all dictionaries were active at the tokens of a batch.

        Args:
            active: the active entries of every dictionary.
            places: those of the tokens in the corpus.
        """
        found = [active[name] for name in self.states]
        first_ids = [state.first_id for state in self.states.values()]
        ids = [each.features + i for each, i in zip(found, first_ids, strict=True)]
        tokens = torch.cat([each.tokens for each in found])
        self.sample.add(self.sample.chosen(places), tokens, torch.cat(ids))

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name."""
        found = {
            f"{name}/{table}": tensor
            for name, state in self.states.items()
            for table, tensor in state.tensors().items()
        }
        sample = self.sample
        found |= {f"sample/{part}": getattr(sample, part) for part in _SAMPLE}
        return found | {"sample/limit": torch.tensor([sample.limit])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` gave."""
        for name, state in self.states.items():
            for table, tensor in state.tensors().items():
                tensor.copy_(tensors[f"{name}/{table}"])
        for part in _SAMPLE:
            setattr(self.sample, part, tensors[f"sample/{part}"])
        self.sample.limit = int(tensors["sample/limit"])
