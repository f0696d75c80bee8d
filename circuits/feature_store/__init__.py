"""Feature store: what every feature of every layer does on a corpus, from one pass of the model."""

from circuits.feature_store.layout import CorpusSettings, ScanSettings
from circuits.feature_store.records import Context, Histogram, Partner, StoredFeature
from circuits.feature_store.store import FeatureStore

__all__ = [
    "Context",
    "CorpusSettings",
    "FeatureStore",
    "Histogram",
    "Partner",
    "ScanSettings",
    "StoredFeature",
]
