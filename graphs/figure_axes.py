"""The axes of a circuit figure: tokens across, layers up."""

from collections.abc import Mapping

import plotly.graph_objects as go

from graphs.figure_text import show_token
from graphs.layout import BIAS_COLUMN, Band, Layout
from graphs.metadata import GraphMetadata

__all__ = ["RULE", "SHADE", "set_axes"]

SHADE, RULE = "rgba(128,128,128,0.09)", "rgba(128,128,128,0.18)"


def set_axes(figure: go.Figure, layout: Layout, metadata: GraphMetadata) -> None:
    """Name the columns and bands of `layout`, shade every other layer, rule off the tokens."""
    columns, bands = layout.columns, layout.bands
    figure.update_xaxes(
        title="token (and its position)",
        range=[0, layout.width],
        tickvals=[span.middle for span in columns.values()],
        ticktext=[_column_name(column, metadata) for column in columns],
        tickangle=0,
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        range=[0, layout.height],
        tickvals=[span.middle for span in bands.values()],
        ticktext=[_band_name(band, bands, metadata.n_layers) for band in bands],
        showgrid=False,
        zeroline=False,
    )
    for band, span in bands.items():
        if band.layer % 2:
            figure.add_hrect(span.start, span.stop, fillcolor=SHADE, line_width=0, layer="below")
    for span in list(columns.values())[1:]:
        figure.add_vline(span.start, line_color=RULE, line_width=1, layer="below")


def _column_name(column: int, metadata: GraphMetadata) -> str:
    if column == BIAS_COLUMN:
        return "<i>biases</i>"
    token = show_token(metadata.tokens[column])
    return f"{token}<br><span style='font-size:9px'>{column}</span>"


def _band_name(band: Band, bands: Mapping[Band, object], n_layers: int) -> str:
    if band.layer < 0:
        return "inputs"
    if band.layer >= n_layers:
        return "output"
    is_alone = sum(other.layer == band.layer for other in bands) == 1
    return f"layer {band.layer}" if is_alone else f"L{band.layer} {band.site}"
