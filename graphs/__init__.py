"""What is kept: the circuit graph, its pruning, its proof, and its picture.

Plotly is imported when `plot_circuit` or `write_html` is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from graphs.acdc_edges import acdc_edges, output_gap, output_kl
from graphs.build import average_graphs, build_graph
from graphs.circuit_graph import CircuitGraph, GraphMetadata
from graphs.faithfulness import Faithfulness, faithfulness
from graphs.freeze import freeze_graph
from graphs.frozen_graph import FrozenGraph
from graphs.influence import edge_influence, node_influence, non_error_share, replacement_score
from graphs.node_notes import NodeNotes
from graphs.prune import prune
from graphs.prune_influence import prune_influence
from graphs.scorer import CircuitRunner

if TYPE_CHECKING:
    from graphs.figure import plot_circuit
    from graphs.html import write_html

__all__ = [
    "CircuitGraph",
    "CircuitRunner",
    "Faithfulness",
    "FrozenGraph",
    "GraphMetadata",
    "NodeNotes",
    "acdc_edges",
    "average_graphs",
    "build_graph",
    "edge_influence",
    "faithfulness",
    "freeze_graph",
    "node_influence",
    "non_error_share",
    "output_gap",
    "output_kl",
    "plot_circuit",
    "prune",
    "prune_influence",
    "replacement_score",
    "write_html",
]

_PLOTTING = {"plot_circuit": "graphs.figure", "write_html": "graphs.html"}


def __getattr__(name: str) -> object:
    if name in _PLOTTING:
        return getattr(import_module(_PLOTTING[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
