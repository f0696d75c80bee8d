"""Colours, symbols and sizes of the circuit figure; colours are Okabe and Ito's palette.

Readable without colour vision: a kind also has a shape, a sign is also written on hover.
"""

from dataclasses import dataclass

__all__ = ["BUCKETS", "KIND_STYLES", "SIGN_STYLES", "Bucket", "KindStyle", "SignStyle"]


@dataclass(frozen=True)
class KindStyle:
    """How one kind of node is drawn."""

    legend: str
    symbol: str
    color: str
    border: str = "white"
    on_dark: str = ""
    """Colour on a dark page; empty: the same."""


@dataclass(frozen=True)
class SignStyle:
    """How edges of one sign are drawn."""

    legend: str
    color: str
    on_dark: str
    """Colour on a dark page."""


@dataclass(frozen=True)
class Bucket:
    """How edges are drawn whose influence is at least `floor` times the strongest edge's."""

    floor: float
    width: float
    opacity: float


KIND_STYLES = {
    "position": KindStyle("position embedding", "square-open", "#7f7f7f", "#7f7f7f", "#b0b0b0"),
    "token": KindStyle("token embedding", "square", "#5f5f5f", on_dark="#c8c8c8"),
    "bias": KindStyle("biases", "pentagon", "#A58B00"),
    "error": KindStyle(
        "error: what a dictionary missed", "diamond-x", "#C4C4C4", "#6b6b6b", "#8a8a8a"
    ),
    "sublayer": KindStyle("sublayer without a dictionary", "triangle-up", "#CC79A7"),
    "feature": KindStyle("feature", "circle", "#009E73"),
    "output": KindStyle("output", "star", "#F0E442", "#333333"),
}
"""In drawing order: later kinds lie on top."""

SIGN_STYLES = {
    1: SignStyle("raises its target (+)", "#0072B2", "#56B4E9"),
    -1: SignStyle("lowers its target (−)", "#D55E00", "#E8853A"),
}

BUCKETS = (
    Bucket(0.0, 0.6, 0.16),
    Bucket(0.05, 1.1, 0.32),
    Bucket(0.15, 2.2, 0.55),
    Bucket(0.4, 4.2, 0.8),
)
"""Weakest first, so that strong edges lie on top."""
