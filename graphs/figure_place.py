"""Where the nodes of a circuit figure go, so that few edges cross."""

from collections.abc import Mapping

import numpy as np
import torch

from graphs.figure_order import untangle
from graphs.figure_select import Shown
from graphs.figure_text import show_token
from graphs.layout import Layout, place_nodes

__all__ = ["place_shown"]

_AXIS_CHARACTER = 7.0


def place_shown(
    shown: Shown,
    labels: Mapping[int, str],
    min_width: float,
    min_height: float,
    *,
    n_sweeps: int = 8,
) -> Layout:
    """Place every node of `shown`; within a cell, nodes are ordered to cross few edges.

    Labelled nodes are listed with the influential first, and inputs as they come, so that every
    column shows them alike; the order of the others is `untangle`'s.

    Args:
        shown: what is drawn.
        labels: row of a node -> its text.
        min_width: in pixels.
        min_height: in pixels.
        n_sweeps: see `untangle`; 0 keeps the order by influence.
    """
    tokens = [show_token(token) for token in shown.graph.metadata.tokens]
    widths = [max(30.0, 12 + _AXIS_CHARACTER * len(token)) for token in tokens]

    def place(order: np.ndarray) -> Layout:
        return place_nodes(
            shown.graph.nodes,
            n_layers=shown.graph.metadata.n_layers,
            column_widths=widths,
            labels=labels,
            order=order.tolist(),
            min_width=min_width,
            min_height=min_height,
        )

    is_input = shown.graph.is_kind("token", "position")
    is_labelled = torch.zeros_like(is_input).index_fill(
        0, torch.tensor(sorted(labels), dtype=torch.long), True
    )
    order = untangle(
        place,
        shown.node_influence.masked_fill(is_input, 0.0).numpy(),
        movable=~(is_input | is_labelled).numpy(),
        source=shown.graph.edge_source.numpy(),
        target=shown.graph.edge_target.numpy(),
        strength=shown.edge_influence.numpy(),
        n_sweeps=n_sweeps,
    )
    return place(order)
