"""What a page holds of a graph, as plain JSON: columns of nodes, packed edges, and the style."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.factors import EdgeFactors, PathFactors
from graphs.circuit_graph import CircuitGraph
from graphs.figure_axes import set_axes
from graphs.figure_edges import BOW, points_per_edge
from graphs.figure_nodes import marker_sizes
from graphs.figure_select import Shown
from graphs.figure_style import BUCKETS, KIND_STYLES, SIGN_STYLES
from graphs.figure_text import node_name
from graphs.layout import Layout
from graphs.node_notes import NodeNotes
from graphs.page.contexts import ShownContext

__all__ = [
    "axes_record",
    "edge_record",
    "factor_records",
    "node_record",
    "pack",
    "row_totals",
    "style_record",
]


def pack(values: Sequence[float] | np.ndarray, dtype: str) -> str:
    """Numbers as base64 of a little-endian typed array, such as `<f4` or `<u4`."""
    return base64.b64encode(np.asarray(values, dtype=dtype).tobytes()).decode("ascii")


def node_record(
    shown: Shown,
    layout: Layout,
    labels: Mapping[int, str],
    notes: Mapping[str, NodeNotes],
    contexts: Mapping[str, Sequence[ShownContext]],
) -> dict[str, Any]:
    """One column a property, one row a node; notes and contexts by row where there are any."""
    nodes = shown.graph.nodes
    return {
        "id": [node.id for node in nodes],
        "name": [node_name(node, notes.get(node.id)) for node in nodes],
        "kind": [node.kind for node in nodes],
        "layer": [node.layer for node in nodes],
        "site": [node.site for node in nodes],
        "pos": [node.pos for node in nodes],
        "feature": [node.feature for node in nodes],
        "activation": pack([node.activation for node in nodes], "<f8"),
        "influence": pack(shown.node_influence.numpy(), "<f8"),
        "size": pack(marker_sizes(shown), "<f4"),
        "x": pack(layout.x, "<f4"),
        "y": pack(layout.y, "<f4"),
        "label": {str(row): text for row, text in labels.items()},
        "notes": {
            str(row): notes[node.id].model_dump(exclude={"label"}, exclude_defaults=True)
            for row, node in enumerate(nodes)
            if node.id in notes
        },
        "contexts": {
            str(row): [context.model_dump() for context in contexts[node.id]]
            for row, node in enumerate(nodes)
            if node.id in contexts
        },
    }


def edge_record(
    shown: Shown, row_totals: Float[Tensor, " node"], details: Iterable[EdgeFactors]
) -> dict[str, Any]:
    """Packed edges, what each node's row sums to unsigned in the whole graph, and factorisations.

    `|attribution| / total[target]` is then what `normalise_rows` gives on the whole graph.
    """
    graph = shown.graph
    pairs = zip(graph.edge_source.tolist(), graph.edge_target.tolist(), strict=True)
    row_of = {pair: edge for edge, pair in enumerate(pairs)}
    rows = {node.id: row for row, node in enumerate(graph.nodes)}
    factors = {}
    for edge in details:
        row = row_of.get((rows.get(edge.source.id, -1), rows.get(edge.target.id, -1)))
        if row is not None:
            factors[str(row)] = factor_records(edge)
    return {
        "source": pack(graph.edge_source.numpy(), "<u4"),
        "target": pack(graph.edge_target.numpy(), "<u4"),
        "attribution": pack(graph.edge_attribution.numpy(), "<f4"),
        "influence": pack(shown.edge_influence.numpy(), "<f4"),
        "total": pack(row_totals.numpy(), "<f8"),
        "factors": factors,
    }


def row_totals(graph: CircuitGraph) -> Float[Tensor, " node"]:
    """Summed size of all edges into each node: what `normalise_rows` divides by."""
    size = graph.edge_attribution.abs().double()
    return torch.zeros(graph.n_nodes, dtype=torch.float64).index_add(0, graph.edge_target, size)


def factor_records(edge: EdgeFactors) -> dict[str, Any]:
    """An edge as a sum over paths, each a product of factors (design 2.5)."""
    return {"paths": [_path_record(path) for path in edge.paths], "remainder": edge.remainder}


def _path_record(path: PathFactors) -> dict[str, Any]:
    return {
        "through": "direct" if path.head is None else f"head {path.head[0]}.{path.head[1]}",
        "activation": path.activation,
        "attention": path.attention,
        "dependent": path.input_dependent,
        "weight": path.virtual_weight,
        "invariant": path.invariant,
        "value": path.value,
    }


def style_record(n_edges: int) -> dict[str, Any]:
    """Colours, symbols, widths and the shape of edges, as `plot_circuit` has them."""
    return {
        "kinds": [{"kind": kind, **asdict(style)} for kind, style in KIND_STYLES.items()],
        "signs": [{"sign": sign, **asdict(style)} for sign, style in SIGN_STYLES.items()],
        "buckets": [asdict(bucket) for bucket in BUCKETS],
        "points": points_per_edge(n_edges),
        "bow": BOW,
    }


def axes_record(graph: CircuitGraph, layout: Layout) -> dict[str, Any]:
    """The frame of the figure as Plotly's layout, and the words of its two filters."""
    figure = go.Figure(layout={"template": "none"})
    set_axes(figure, layout, graph.metadata)
    frame = figure.to_plotly_json()["layout"]
    frame.pop("template")
    tokens = graph.metadata.tokens
    return {
        "frame": frame,
        "width": layout.width,
        "height": layout.height,
        "tokens": list(tokens),
        "n_layers": graph.metadata.n_layers,
    }
