"""What the page of a feature shows, as plain records: no model, no tensors, no HTML."""

from dataclasses import dataclass

from case_studies.dashboard.neighbours import Neighbours

__all__ = [
    "Band",
    "CoActive",
    "FeatureRecord",
    "FeatureWeights",
    "Missing",
    "Observed",
    "TokenScores",
    "Window",
]

TokenScores = tuple[tuple[str, float], ...]
"""Tokens as text with their scores, strongest first."""


@dataclass(frozen=True)
class Missing:
    """Why something is not there; shown in its place."""

    reason: str


@dataclass(frozen=True)
class FeatureWeights:
    """What weights alone say of a feature.

    Attributes:
        deembedding: tokens it reads off the embedding.
        deembedding_extended: tokens it reads once layer 0 has read them.
        promoted: tokens whose logits it raises, relative to the mean token.
        suppressed: tokens whose logits it lowers.
        logits_note: what the logits leave out that is particular to this model; may be empty.
        upstream: features of the same site that write into it.
        downstream: features of the same site that read it.
    """

    deembedding: TokenScores | Missing
    deembedding_extended: TokenScores | Missing
    promoted: TokenScores | Missing
    suppressed: TokenScores | Missing
    logits_note: str
    upstream: Neighbours
    downstream: Neighbours


@dataclass(frozen=True)
class Window:
    """A piece of the corpus and the feature's activation at each of its tokens.

    Attributes:
        tokens: as text.
        values: activations, 0 where it is not active.
        peak: which token the window is about.
        row: of the corpus.
        pos: of the peak in that row.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    row: int
    pos: int


@dataclass(frozen=True)
class Band:
    """Windows sampled from those whose peak's activation lies between two values."""

    low: float
    high: float
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class CoActive:
    """A feature that is active on the same tokens.

    Attributes:
        name: such as `mlp.1.77`.
        n_together: on how many tokens both are active.
        share: of the tokens this page's feature is active on.
        lift: how many times more often than if the two were independent.
    """

    name: str
    n_together: int
    share: float
    lift: float


@dataclass(frozen=True)
class Observed:
    """What a scan of a corpus saw of a feature.

    Attributes:
        n_tokens: how many tokens were read.
        n_active: on how many of them it was active.
        density: their share.
        maximum: its largest activation.
        mean_active: its mean activation where it was active.
        edges: of the histogram of its positive activations, one more than `counts`.
        counts: of the histogram.
        top: windows around its largest activations, largest first.
        bands: windows sampled from bands of activation, the highest first.
        partners: the features most often active together with it.
        partners_note: how far their counts are an estimate; empty where they are exact.
    """

    n_tokens: int
    n_active: int
    density: float
    maximum: float
    mean_active: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    top: tuple[Window, ...]
    bands: tuple[Band, ...]
    partners: tuple[CoActive, ...]
    partners_note: str = ""


@dataclass(frozen=True)
class FeatureRecord:
    """All that is known of one feature, such as `mlp.2.345`."""

    name: str
    model: str
    dictionaries: str
    weights: FeatureWeights
    observed: Observed | Missing
