"""What a feature store says of a feature, with token ids as text."""

from case_studies.dashboard.records import Band, CoActive, Observed, Window
from case_studies.dashboard.weights import Words
from circuits.feature_store import Context, FeatureStore, StoredFeature

__all__ = ["observe"]


def observe(store: FeatureStore, name: str, index: int, words: Words) -> Observed:
    """The record of feature `index` of the dictionary `name`.

    Raises:
        ValueError: if the store has no such feature.
    """
    found = store.feature(name, index)
    return Observed(
        store.n_tokens,
        found.n_active,
        found.density,
        found.maximum,
        found.mean_active,
        found.histogram.edges,
        found.histogram.counts,
        tuple(_window(context, words) for context in found.top),
        tuple(
            Band(low, high, tuple(_window(context, words) for context in contexts))
            for low, high, contexts in found.samples
        ),
        tuple(
            CoActive(f"{p.name}.{p.index}", p.n_together, p.share, p.lift) for p in found.partners
        ),
        _partners_note(found),
    )


def _window(context: Context, words: Words) -> Window:
    return Window(words(context.tokens), context.values, context.peak, context.row, context.pos)


def _partners_note(found: StoredFeature) -> str:
    if found.partners_exact:
        return ""
    return f"Estimated from {found.n_counted:,} of its {found.n_active:,} active tokens."
