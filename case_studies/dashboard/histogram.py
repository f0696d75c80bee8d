"""A histogram as inline SVG: no script, and every bar names its range and count on hover."""

from collections.abc import Sequence

from case_studies.dashboard.markup import Html, number, tag, text

__all__ = ["histogram", "occupied"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640.0, 150.0, 46.0, 20.0, 8.0
_N_LABELS = 6


def histogram(edges: Sequence[float], counts: Sequence[int]) -> Html:
    """Bars of equal width, one a bin from the first to the last that holds anything.

    Bins are drawn as steps of the scale they were made on (the edges are written below), heights
    are counts.

    Args:
        edges: of the bins, one more than counts.
        counts: at least one must be positive.

    Raises:
        ValueError: if all counts are zero.
    """
    first, last = occupied(counts)
    edges, counts = edges[first : last + 1], counts[first:last]
    highest, width = max(counts), (_WIDTH - _LEFT) / len(counts)
    bars = [
        tag(
            "rect",
            _title(f"{number(edges[i])} to {number(edges[i + 1])}: {n:,} tokens"),
            x=f"{_LEFT + i * width:.1f}",
            y=f"{_TOP + _HEIGHT * (1 - n / highest):.1f}",
            width=f"{max(0.5, width - 1):.1f}",
            height=f"{_HEIGHT * n / highest:.1f}",
        )
        for i, n in enumerate(counts)
        if n
    ]
    floor = _TOP + _HEIGHT
    axis = tag("line", x1=_LEFT, x2=_WIDTH, y1=floor, y2=floor)
    every = max(1, -(-len(counts) // _N_LABELS))
    labels = [
        _label(number(edges[i]), _LEFT + i * width, floor + 14, "middle")
        for i in range(0, len(counts) + 1, every)
    ]
    scale = [
        _label(f"{highest:,}", _LEFT - 6, _TOP + 8, "end"),
        _label("0", _LEFT - 6, floor, "end"),
    ]
    return tag(
        "svg",
        *bars,
        axis,
        *labels,
        *scale,
        viewBox=f"0 0 {_WIDTH + 20:g} {floor + _BOTTOM:g}",
        role="img",
        aria_label=f"Histogram of activations from {number(edges[0])} to {number(edges[-1])}; the "
        f"fullest bin holds {highest:,} tokens",
    )


def occupied(counts: Sequence[int]) -> tuple[int, int]:
    """The first bin that holds anything, and the one after the last.

    Raises:
        ValueError: if all counts are zero.

    Example:
        >>> occupied([0, 2, 0, 1, 0])
        (1, 4)
    """
    used = [i for i, n in enumerate(counts) if n]
    if not used:
        raise ValueError("want a histogram with at least one count above 0, got none")
    return used[0], used[-1] + 1


def _title(content: str) -> Html:
    return tag("title", text(content))


def _label(content: str, x: float, y: float, anchor: str) -> Html:
    return tag("text", text(content), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
