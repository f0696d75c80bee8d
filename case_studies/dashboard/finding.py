"""What a feature's page says first: one sentence on what it fires on and what it raises."""

from collections import Counter
from collections.abc import Iterable

from case_studies.dashboard.markup import visible
from case_studies.dashboard.records import FeatureRecord, Missing, Observed, TokenScores

__all__ = ["finding", "fires_on", "reads"]

_N_NAMED = 3


def finding(record: FeatureRecord) -> str:
    """One line: what the feature fires on (or, unseen, reads), and the logits it raises.

    Example: `mlp.2.345 fires on “war”, “wars”, raises “ 19”`, without the spaces around tokens.
    """
    seen = record.observed
    parts: list[str] = []
    if isinstance(seen, Observed) and seen.n_active == 0:
        parts.append(f"never fired on {seen.n_tokens:,} tokens")
    elif isinstance(seen, Observed) and seen.top:
        parts.append(f"fires on {_named(fires_on(seen))}")
    elif reading := reads(record):
        parts.append(f"reads {_named(token for token, _ in reading)}")
    if not isinstance(record.weights.promoted, Missing):
        parts.append(f"raises {_named(token for token, _ in record.weights.promoted)}")
    return f"{record.name} " + ", ".join(parts or ["has no weights-only description"])


def fires_on(seen: Observed) -> list[str]:
    """The tokens at the peaks of the strongest windows, the most frequent first."""
    peaks = Counter(window.tokens[window.peak] for window in seen.top)
    return [token for token, _ in peaks.most_common()]


def reads(record: FeatureRecord) -> TokenScores:
    """The tokens that push it up once layer 0 has read them, or straight off the embedding."""
    weights = record.weights
    lists = (weights.deembedding_extended, weights.deembedding)
    known: TokenScores = next((found for found in lists if not isinstance(found, Missing)), ())
    return tuple((token, score) for token, score in known if score > 0)


def _named(tokens: Iterable[str]) -> str:
    """The first few, each once, however it is spaced."""
    names = dict.fromkeys(visible(token.strip(" ") or token) for token in tokens)
    return ", ".join(f"“{name}”" for name in list(names)[:_N_NAMED])
