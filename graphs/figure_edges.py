"""Edge traces: a few polylines by sign and strength, and invisible markers to hover on."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from graphs.figure_select import Shown
from graphs.figure_style import BUCKETS, SIGN_STYLES
from graphs.figure_text import edge_hover
from graphs.layout import Layout

__all__ = ["BOW", "edge_curves", "edge_traces", "points_per_edge"]

_MAX_POINTS, _MIN_POINTS = 32, 8
_POINT_BUDGET = 40_000  # on all edges together; too little for curves gives straight lines
BOW = 0.14  # how far an edge within one column swings out, as a share of its height


def edge_traces(shown: Shown, layout: Layout, names: Sequence[str]) -> list[go.Scatter]:
    """Draw every edge of `shown`, the weakest first; hover markers come last."""
    x, y = np.asarray(layout.x), np.asarray(layout.y)
    source, target = shown.graph.edge_source.numpy(), shown.graph.edge_target.numpy()
    n_points = points_per_edge(len(source))
    ends = np.stack([x[source], y[source], x[target], y[target]], axis=-1)
    curves = edge_curves(ends, n_points)
    sign = np.where(shown.graph.edge_attribution.numpy() < 0, -1, 1)
    strength = shown.edge_influence.numpy()
    bucket = _bucket(strength)
    lines = []
    for b in range(len(BUCKETS)):
        for s in SIGN_STYLES:
            chosen = (bucket == b) & (sign == s)
            if chosen.any():
                legend = b == bucket[sign == s].max()
                lines.append(_line(curves[chosen], s, b, legend=bool(legend)))
    middles = curves[:, n_points // 2] if n_points > 2 else curves.mean(axis=1)
    hovers = [
        _markers(shown, middles, np.flatnonzero(sign == s), s, names)
        for s in SIGN_STYLES
        if (sign == s).any()
    ]
    return lines + hovers


def points_per_edge(n_edges: int) -> int:
    """Points on each curve; 2, a straight line, where there are too many for curves."""
    n_points = min(_MAX_POINTS, _POINT_BUDGET // max(1, n_edges))
    return n_points if n_points >= _MIN_POINTS else 2


def edge_curves(
    ends: Float[np.ndarray, "edge 4"], n_points: int
) -> Float[np.ndarray, "edge point 2"]:
    """Cubic curves that leave a source upwards and reach a target from below.

    Args:
        ends: x and y of the source, then of the target.
        n_points: points on each curve, at least 2; 2 gives straight lines.

    Returns:
        x and y of every point. An edge within one column swings to the left, so that it does not
        run through what lies between.
    """
    start, stop = ends[:, None, :2], ends[:, None, 2:]
    rise = stop[..., 1:] - start[..., 1:]
    swing = BOW * rise * np.exp(-np.abs(stop[..., :1] - start[..., :1]) / 40)
    handle = np.concatenate([-swing, rise / 2], axis=-1)
    first, second = start + handle, stop - handle * np.array([-1.0, 1.0])
    t = np.linspace(0, 1, n_points)[None, :, None]
    return (
        (1 - t) ** 3 * start
        + 3 * (1 - t) ** 2 * t * first
        + 3 * (1 - t) * t**2 * second
        + t**3 * stop
    )


def _bucket(strength: Float[np.ndarray, " edge"]) -> Int[np.ndarray, " edge"]:
    if not len(strength) or strength.max() <= 0:
        return np.zeros(len(strength), dtype=int)
    floors = np.array([bucket.floor for bucket in BUCKETS])
    return np.searchsorted(floors, strength / strength.max(), side="right") - 1


def _line(
    curves: Float[np.ndarray, "edge point 2"], sign: int, bucket: int, *, legend: bool
) -> go.Scatter:
    """All edges of one sign and strength as a single broken polyline."""
    gap = np.full((len(curves), 1, 2), np.nan)
    points = np.concatenate([curves, gap], axis=1).reshape(-1, 2).astype(np.float32)
    style = SIGN_STYLES[sign]
    return go.Scatter(
        x=points[:, 0],
        y=points[:, 1],
        mode="lines",
        line={"color": style.color, "width": BUCKETS[bucket].width},
        opacity=BUCKETS[bucket].opacity,
        hoverinfo="skip",
        name=style.legend,
        legendgroup=f"edges{sign:+d}",
        showlegend=legend,
        legendrank=2000 - sign,
    )


def _markers(
    shown: Shown,
    middles: Float[np.ndarray, "edge 2"],
    edges: Int[np.ndarray, " chosen"],
    sign: int,
    names: Sequence[str],
) -> go.Scatter:
    """Invisible points half way along the edges, which carry the hover text and both ids."""
    graph = shown.graph
    source, target = graph.edge_source[edges].tolist(), graph.edge_target[edges].tolist()
    values = graph.edge_attribution[edges].tolist()
    influence = shown.edge_influence[edges].tolist()
    columns: list[tuple[int, int, float, float]] = list(
        zip(source, target, values, influence, strict=True)
    )
    return go.Scatter(
        x=middles[edges, 0].astype(np.float32),
        y=middles[edges, 1].astype(np.float32),
        mode="markers",
        marker={"size": 9, "opacity": 0, "color": SIGN_STYLES[sign].color},
        hovertext=[
            edge_hover(graph.nodes[s], graph.nodes[t], (names[s], names[t]), value, share)
            for s, t, value, share in columns
        ],
        hoverinfo="text",
        customdata=[[graph.nodes[s].id, graph.nodes[t].id] for s, t, _, _ in columns],
        legendgroup=f"edges{sign:+d}",
        showlegend=False,
        name=SIGN_STYLES[sign].legend,
    )
