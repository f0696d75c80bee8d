"""The page of a comparison: overlaps as matrices, and where shared nodes lie."""

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from case_studies.overlaps.comparing import OverlapRecord, PairRecord, PlaceRecord
from case_studies.overlaps.report import HOW
from graphs.figure_text import escape, shorten, wrap

__all__ = ["overlap_figure"]

_SCALE = "Blues"
_WIDTH = 1120
_ABOVE, _BETWEEN, _BELOW = 155, 130, 150
"""Pixels over, between and under the panels, for titles and slanted labels."""


def overlap_figure(
    record: OverlapRecord, *, title: str, template: str = "plotly_white"
) -> go.Figure:
    """Draw node and edge Jaccard of all pairs, and layers by positions of what is shared.

    Args:
        record: of the comparison.
        title: the finding, in one sentence.
        template: name of a Plotly template.

    Returns:
        Four panels. Above: Jaccard of nodes and of edges, 1 on the diagonal, blank for two models.
        Below: how many nodes of each layer and position all circuits have, and how many only some
        have (circuits of the first one's model).
    """
    names = [circuit.name for circuit in record.circuits]
    n_layers = len({place.layer for place in record.places})
    heights = [max(150, 44 * len(names)), max(80, 32 * n_layers)]
    figure = make_subplots(
        2,
        2,
        row_heights=heights,
        subplot_titles=(
            "nodes in common (Jaccard)",
            "edges in common (Jaccard)",
            "nodes that all circuits have",
            "nodes that some have, and not all",
        ),
        horizontal_spacing=0.16,
        vertical_spacing=_BETWEEN / (_BETWEEN + sum(heights)),
    )
    for column, value in ((1, _node_jaccard), (2, _edge_jaccard)):
        figure.add_trace(_matrix(names, record.pairs, value), row=1, col=column)
        figure.update_yaxes(autorange="reversed", row=1, col=column)
    most = max((max(p.n_all, p.n_some) for p in record.places), default=1)
    for column, count in ((1, _n_all), (2, _n_some)):
        figure.add_trace(_counts(record, count, most), row=2, col=column)
        figure.update_yaxes(title="layer", type="category", row=2, col=column)
        figure.update_xaxes(
            title=_COLUMN_TITLE[record.positions], type="category", row=2, col=column
        )
    figure.update_layout(
        template=template,
        title={
            "text": f"<b>{'<br>'.join(wrap(title, 100))}</b>",
            "subtitle": {"text": "<br>".join(wrap(HOW[record.positions], 150))},
            "x": 0.01,
            "xanchor": "left",
        },
        width=_WIDTH,
        height=_ABOVE + _BETWEEN + _BELOW + sum(heights),
        margin={"t": _ABOVE, "l": 120, "r": 30, "b": _BELOW},
    )
    return figure


_COLUMN_TITLE = {"role": "role", "position": "position", "any": ""}


def _node_jaccard(pair: PairRecord) -> float | None:
    return None if pair.overlap is None else pair.overlap.node_jaccard


def _edge_jaccard(pair: PairRecord) -> float | None:
    return None if pair.overlap is None else pair.overlap.edge_jaccard


def _n_all(place: PlaceRecord) -> int:
    return place.n_all


def _n_some(place: PlaceRecord) -> int:
    return place.n_some


def _matrix(
    names: Sequence[str], pairs: Sequence[PairRecord], value: Callable[[PairRecord], float | None]
) -> go.Heatmap:
    found = {(pair.a, pair.b): value(pair) for pair in pairs}
    cells = [
        [1.0 if a == b else found.get((a, b), found.get((b, a))) for b in names] for a in names
    ]
    labels = [escape(shorten(name, 22)) for name in names]
    return _heatmap(
        labels,
        labels,
        cells,
        zmin=0,
        zmax=1,
        texttemplate="%{z:.2f}",
        hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
    )


def _counts(record: OverlapRecord, count: Callable[[PlaceRecord], int], most: int) -> go.Heatmap:
    layers = sorted({place.layer for place in record.places})
    at = {(place.layer, place.column): count(place) for place in record.places}
    cells = [[at.get((layer, column), 0) for column in record.columns] for layer in layers]
    return _heatmap(
        [escape(shorten(column, 26)) for column in record.columns],
        ["input" if layer < 0 else str(layer) for layer in layers],
        cells,
        zmin=0,
        zmax=most,
        text=[[str(n) if n else "" for n in row] for row in cells],
        texttemplate="%{text}",
        hovertemplate="layer %{y}, %{x}: %{z} nodes<extra></extra>",
    )


def _heatmap(x: Sequence[str], y: Sequence[str], z: Sequence[Sequence[Any]], **how: Any) -> Any:
    return go.Heatmap(x=x, y=y, z=z, colorscale=_SCALE, showscale=False, xgap=1, ygap=1, **how)
