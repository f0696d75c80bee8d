"""The picture of a circuit: tokens across, layers up, signed edges, and the proof beside it.

Only this module and its `figure_*` parts import Plotly. Nothing is shown or written here.
"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from graphs.circuit_graph import CircuitGraph, GraphMetadata
from graphs.figure_axes import RULE, SHADE, set_axes
from graphs.figure_edges import edge_traces
from graphs.figure_nodes import node_traces
from graphs.figure_place import place_shown
from graphs.figure_select import choose_labels, select_shown
from graphs.figure_text import default_title, node_name, proof_lines, shorten, wrap
from graphs.layout import Layout
from graphs.node_notes import NodeNotes

__all__ = ["NodeNotes", "plot_circuit"]

_MIN_WIDTH, _MIN_HEIGHT = 860.0, 460.0
_SIDE = 232  # legend and proof, left of the axes so that a wide figure does not hide them
_LEFT, _RIGHT, _BOTTOM = _SIDE + 70, 12, 64
_LINE = 17  # height of a line of the caption, the panel or the legend
_TITLE_LINE = 26


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
    layout = place_shown(
        shown, labels, _MIN_WIDTH, max(_MIN_HEIGHT, float(_LINE * (len(panel) + 19)))
    )
    traces = edge_traces(shown, layout, names) + node_traces(shown, layout, labels, notes)
    _head_legend(traces)
    figure = go.Figure(traces)
    heading = _heading(graph.metadata, title, shown.caption, layout.width)
    _set_frame(figure, layout, heading, template)
    set_axes(figure, layout, graph.metadata)
    if panel:
        figure.add_annotation(**_panel(panel))
    return figure


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
    lines = wrap(title or default_title(metadata), int(full_width / 11))
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
        "bgcolor": SHADE,
        "bordercolor": RULE,
        "borderpad": 8,
        "font": {"size": 12},
    }
