"""The picture of a circuit: tokens across, layers up, signed edges, and the proof beside it.

Only this module and its `figure_*` parts import Plotly. Nothing is shown or written here.
"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from graphs.circuit_graph import CircuitGraph, GraphMetadata
from graphs.figure_edges import edge_traces
from graphs.figure_nodes import node_traces
from graphs.figure_select import Shown, choose_labels, select_shown
from graphs.figure_text import node_name, proof_lines, shorten, show_token, wrap
from graphs.layout import BIAS_COLUMN, Band, Layout, place_nodes
from graphs.node_notes import NodeNotes

__all__ = ["NodeNotes", "plot_circuit"]

_MIN_WIDTH, _MIN_HEIGHT = 860.0, 460.0
_SIDE = 232  # legend and proof, left of the axes so that a wide figure does not hide them
_LEFT, _RIGHT, _BOTTOM = _SIDE + 70, 12, 64
_LINE = 17  # height of a line of the caption, the panel or the legend
_TITLE_LINE = 26
_AXIS_CHARACTER = 7.0
_SHADE, _RULE = "rgba(128,128,128,0.09)", "rgba(128,128,128,0.18)"


def plot_circuit(
    graph: CircuitGraph,
    *,
    notes: Mapping[str, NodeNotes] | None = None,
    title: str | None = None,
    proof: Mapping[str, str] | None = None,
    max_nodes: int = 300,
    max_edges: int = 800,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw a circuit.

    Args:
        graph: usually pruned; of a larger one only the most influential part is drawn, and the
            caption says how much is not.
        notes: node id -> names and top tokens, for labels and hovers. None: ids only.
        title: the finding, in one sentence. None: the target and the model.
        proof: name -> value for the panel, such as faithfulness with its interval. None: no panel.
        max_nodes: draw at most so many nodes; outputs first, then by influence.
        max_edges: draw at most so many edges, by influence.
        template: name of a Plotly template.

    Returns:
        A figure sized for its content, in pixels. Node traces carry ids in `customdata`, edge
        hover traces pairs of source and target ids.

    Raises:
        ValueError: if `max_nodes` leaves no room for the outputs, or `max_edges` is negative.
    """
    notes = notes or {}
    shown = select_shown(graph, max_nodes, max_edges)
    labels = choose_labels(shown, notes)
    names = [node_name(node, notes.get(node.id)) for node in shown.graph.nodes]
    panel = proof_lines(proof) if proof else []
    layout = _place(shown, labels, n_side_lines=len(panel) + 19)
    traces = edge_traces(shown, layout, names) + node_traces(shown, layout, labels, notes)
    _head_legend(traces)
    figure = go.Figure(traces)
    heading = _heading(graph.metadata, title, shown.caption, layout.width)
    _set_frame(figure, layout, heading, template)
    _set_axes(figure, layout, graph.metadata)
    if panel:
        figure.add_annotation(**_panel(panel))
    return figure


def _place(shown: Shown, labels: Mapping[int, str], n_side_lines: int) -> Layout:
    tokens = [show_token(token) for token in shown.graph.metadata.tokens]
    return place_nodes(
        shown.graph.nodes,
        n_layers=shown.graph.metadata.n_layers,
        column_widths=[max(30.0, 12 + _AXIS_CHARACTER * len(token)) for token in tokens],
        labels=labels,
        order=_cell_order(shown),
        min_width=_MIN_WIDTH,
        min_height=max(_MIN_HEIGHT, float(_LINE * n_side_lines)),
    )


def _cell_order(shown: Shown) -> list[float]:
    """The influential first; inputs as they come, so that every column shows them alike."""
    is_input = shown.graph.is_kind("token", "position")
    return shown.node_influence.masked_fill(is_input, 0.0).tolist()


def _head_legend(traces: Sequence[go.Scatter]) -> None:
    """Put a heading over the first node kind and the first sign."""
    for prefix, heading in (
        ("nodes", "<b>Nodes</b> (size: influence)"),
        ("edges", "<b>Edges</b> (width: influence)"),
    ):
        group = [
            trace
            for trace in traces
            if str(trace.legendgroup).startswith(prefix) and trace.showlegend is not False
        ]
        if group:
            first = min(group, key=lambda trace: str(trace.legendrank or ""))
            first.update(legendgrouptitle={"text": heading, "font": {"size": 12}})


def _heading(
    metadata: GraphMetadata, title: str | None, caption: str, width: float
) -> tuple[str, str, int]:
    """Title and subtitle as HTML, and the height of both in pixels."""
    full_width = width + _LEFT + _RIGHT
    finding = title or f"What drives {metadata.target} in {metadata.model}"
    lines = wrap(finding, int(full_width / 11))
    prompt = f"{metadata.model} reads: “{shorten(metadata.prompt, 150)}”"
    small = [*wrap(prompt, int(full_width / 6.5)), *wrap(caption, int(full_width / 6.5))]
    height = _TITLE_LINE * len(lines) + _LINE * len(small)
    return f"<b>{'<br>'.join(lines)}</b>", "<br>".join(small), height


def _set_frame(
    figure: go.Figure, layout: Layout, heading: tuple[str, str, int], template: str
) -> None:
    finding, small, height = heading
    top = height + 34
    figure.update_layout(
        template=template,
        title={
            "text": finding,
            "subtitle": {"text": small, "font": {"size": 12}},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "yref": "container",
            "yanchor": "top",
            "y": 1,
            "pad": {"l": 16, "t": 14},
            "font": {"size": 19},
        },
        width=int(layout.width) + _LEFT + _RIGHT,
        height=int(layout.height) + top + _BOTTOM,
        margin={"l": _LEFT, "r": _RIGHT, "t": top, "b": _BOTTOM},
        legend={
            "xref": "container",
            "x": 0.006,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "itemsizing": "constant",
        },
        hovermode="closest",
        hoverlabel={"align": "left"},
    )


def _set_axes(figure: go.Figure, layout: Layout, metadata: GraphMetadata) -> None:
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
            figure.add_hrect(span.start, span.stop, fillcolor=_SHADE, line_width=0, layer="below")
    for span in list(columns.values())[1:]:
        figure.add_vline(span.start, line_color=_RULE, line_width=1, layer="below")


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


def _panel(lines: list[str]) -> dict[str, object]:
    """The proof, below the legend, to the left of the axes."""
    return {
        "text": "<br>".join(lines),
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 0,
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": 16 - _LEFT,
        "align": "left",
        "showarrow": False,
        "bgcolor": _SHADE,
        "bordercolor": _RULE,
        "borderpad": 8,
        "font": {"size": 12},
    }
