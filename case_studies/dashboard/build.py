"""From a model, its dictionaries and perhaps a store to the records of many features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jaxtyping import Float
from torch import Tensor

from attribution.invariant.extended import extended_embedding
from case_studies.dashboard.observed import observe
from case_studies.dashboard.places import only
from case_studies.dashboard.records import FeatureRecord, Missing, Observed
from case_studies.dashboard.weights import Words, feature_weights, reads_above_layer_0
from circuits import SplicedModel
from circuits.dictionaries import CrossLayerTranscoder
from circuits.feature_store import FeatureStore
from circuits.subject import SubjectModel

__all__ = ["Source", "feature_records", "open_source", "word_table"]

Progress = Callable[[int, int], None]

_CHUNK = 64
"""Features whose scores over the vocabulary are held at once."""


@dataclass(frozen=True)
class Source:
    """What records are made from; everything in it is made once.

    Attributes:
        spliced: by the name of a dictionary, the model with it and the others of its site.
        dictionaries: how they were named.
        store: what a scan saw of them, or how to make one.
        extended: the extended embedding; None where nothing reads above layer 0.
        words: token ids as text.
    """

    spliced: Mapping[str, SplicedModel]
    dictionaries: str
    store: FeatureStore | Missing
    extended: Float[Tensor, "d_vocab d_model"] | None
    words: Words

    @property
    def model(self) -> SubjectModel:
        return next(iter(self.spliced.values())).model


def open_source(
    spliced: Mapping[str, SplicedModel],
    dictionaries: str,
    store: FeatureStore | Missing,
    progress: Progress | None = None,
) -> Source:
    """Check the store, and run the vocabulary through layer 0 if anything shown reads above it.

    Args:
        spliced: by the names of the dictionaries to show; all of one model.
        dictionaries: how they were named.
        store: a scan of at least the dictionaries to show, or how to make one.
        progress: called with (tokens done, tokens in all).

    Raises:
        ValueError: if there is no such dictionary, or the store is of others.
    """
    placements = [on.placements[on.write_site(name)] for name, on in spliced.items()]
    model = next(iter(spliced.values())).model
    if not isinstance(store, Missing):
        _check_store(store, spliced)
    extended = None
    if any(reads_above_layer_0(placement) for placement in placements):
        extended = extended_embedding(model, progress=progress)
    return Source(spliced, dictionaries, store, extended, word_table(model))


def _check_store(store: FeatureStore, spliced: Mapping[str, SplicedModel]) -> None:
    """Refuse a store of other dictionaries. Those of a site that are not shown need not be in it,
    but for parts of a cross-layer transcoder, which are a whole.
    """
    for name, on in spliced.items():
        whole = isinstance(on.placements[on.write_site(name)].dictionary, CrossLayerTranscoder)
        store.check(on if whole else only(on, [name]))


def word_table(model: SubjectModel) -> Words:
    """Token ids as text, each worked out once."""

    @cache
    def word(token: int) -> str:
        return model.token_strings([token])[0]

    return lambda tokens: tuple(word(token) for token in tokens)


def feature_records(
    source: Source, name: str, features: Sequence[int], *, top: int
) -> Iterator[FeatureRecord]:
    """The records of features of one dictionary, in the order given.

    Args:
        source: of the weights and of what was seen.
        name: the dictionary, such as `mlp.2`.
        features: their indices.
        top: entries a list of tokens or neighbours.
    """
    spliced = source.spliced[name]
    for start in range(0, len(features), _CHUNK):
        chunk = list(features[start : start + _CHUNK])
        weights = feature_weights(
            spliced, name, chunk, top=top, extended=source.extended, words=source.words
        )
        for index, known in zip(chunk, weights, strict=True):
            full = f"{name}.{index}"
            seen = _seen(source, name, index)
            yield FeatureRecord(full, spliced.model.name, source.dictionaries, known, seen)


def _seen(source: Source, name: str, index: int) -> Observed | Missing:
    if isinstance(source.store, Missing):
        return source.store
    return observe(source.store, name, index, source.words)
