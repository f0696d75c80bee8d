"""Node traces: one a kind, so that a click in the legend hides a kind with its labels."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from graphs.figure_select import Shown
from graphs.figure_style import KIND_STYLES
from graphs.figure_text import escape, node_hover
from graphs.layout import Layout
from graphs.node_notes import NodeNotes

__all__ = ["marker_sizes", "node_traces"]

_MIN_SIZE, _MAX_SIZE = 8.0, 19.0
_LABEL_SIZE = 11


def node_traces(
    shown: Shown, layout: Layout, labels: Mapping[int, str], notes: Mapping[str, NodeNotes]
) -> list[go.Scatter]:
    """Draw every node of `shown`; area grows with influence, outputs are largest."""
    sizes = marker_sizes(shown)
    return [
        _kind_trace(kind, rows, shown, layout, sizes, labels, notes)
        for kind in KIND_STYLES
        if (rows := shown.graph.nodes.where(kind=kind))
    ]


def marker_sizes(shown: Shown) -> Float[np.ndarray, " node"]:
    """Marker diameters in pixels; area grows with influence."""
    influence = shown.node_influence.numpy()
    is_output = shown.graph.is_kind("output").numpy()
    strongest = influence[~is_output].max(initial=0.0)
    share = np.clip(influence / strongest, 0, 1) if strongest > 0 else np.zeros_like(influence)
    return np.where(is_output, _MAX_SIZE, _MIN_SIZE + (_MAX_SIZE - _MIN_SIZE) * np.sqrt(share))


def _kind_trace(
    kind: str,
    rows: list[int],
    shown: Shown,
    layout: Layout,
    sizes: np.ndarray,
    labels: Mapping[int, str],
    notes: Mapping[str, NodeNotes],
) -> go.Scatter:
    style, nodes = KIND_STYLES[kind], shown.graph.nodes
    return go.Scatter(
        x=[round(layout.x[row], 1) for row in rows],
        y=[round(layout.y[row], 1) for row in rows],
        mode="markers+text",
        marker={
            "symbol": style.symbol,
            "color": style.color,
            "size": sizes[rows].round(1),
            "opacity": 1.0,
            "line": {"color": style.border, "width": 1},
        },
        text=["\u00a0" + escape(labels[row]) if row in labels else "" for row in rows],
        textposition="middle right",
        textfont={"size": _LABEL_SIZE, "shadow": "auto"},
        hovertext=[
            node_hover(
                nodes[row],
                notes.get(nodes[row].id),
                float(shown.node_influence[row]),
                shown.graph.metadata,
            )
            for row in rows
        ],
        hoverinfo="text",
        customdata=[nodes[row].id for row in rows],
        name=style.legend,
        legendgroup=f"nodes {kind}",
        cliponaxis=False,
    )
