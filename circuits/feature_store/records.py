"""What a feature store says of one feature."""

from dataclasses import dataclass

__all__ = ["Context", "Histogram", "Partner", "StoredFeature"]


@dataclass(frozen=True)
class Context:
    """One place where a feature was active, with the window around it.

    Args:
        row: row of the corpus.
        pos: position in that row.
        value: the feature's activation there.
        tokens: ids of the window; shorter where the row begins or ends.
        values: the feature's activation at each of them; 0 at positions that are not counted (the
            first of a row, BOS), where nothing is measured.
        peak: which of them is `pos`.
    """

    row: int
    pos: int
    value: float
    tokens: tuple[int, ...]
    values: tuple[float, ...]
    peak: int


@dataclass(frozen=True)
class Histogram:
    """Active positions by activation: bin i counts `edges[i] <= a < edges[i + 1]`.

    The first bin also counts everything below it, and the last everything above.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Partner:
    """A feature that is often active at the same position.

    Args:
        name: its dictionary.
        index: its number there.
        n_together: positions where both are active (an estimate unless the feature's
            `partners_exact`).
        share: `n_together / n_active` of the feature asked about.
        lift: `share` over the partner's density; 1 if the two were independent.
    """

    name: str
    index: int
    n_together: int
    share: float
    lift: float


@dataclass(frozen=True)
class StoredFeature:
    """One feature over the whole corpus. Positions are those that count: not the first of a row,
    BOS or padding.

    Args:
        name: its dictionary, such as `mlp.0`.
        index: its number there.
        density: share of the positions where it is active.
        n_active: number of those positions.
        maximum: largest activation; 0 if never active.
        mean_active: mean over the positions where it is active; 0 if there are none.
        histogram: those positions by activation.
        top: contexts of the largest activations, largest first, earlier first among equals.
        samples: (low, high, contexts drawn evenly from those with an activation in [low, high)),
            highest band first, largest activation first. Bands are the octaves below `maximum`
            (which the first contains), the last reaches down to 0.
        partners: features active together with it, by the cosine
            `n_together / sqrt(n_active n_active')`, largest first.
        n_counted: on how many of its active positions `partners` were counted.
    """

    name: str
    index: int
    density: float
    n_active: int
    maximum: float
    mean_active: float
    histogram: Histogram
    top: tuple[Context, ...]
    samples: tuple[tuple[float, float, tuple[Context, ...]], ...]
    partners: tuple[Partner, ...]
    n_counted: int

    @property
    def partners_exact(self) -> bool:
        """Whether `partners` were counted on all its active positions.

        If not, `share` has a standard error of `sqrt(share (1 - share) / n_counted)` at most.
        """
        return self.n_counted == self.n_active
