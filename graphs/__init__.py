"""What is kept: the circuit graph, its pruning, its proof, and its picture.

What is needed less often, and Plotly with the figures, is imported when it is first asked for.
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
    from graphs.feature_effects import attribution_effects, integrated_effects
    from graphs.figure import plot_circuit
    from graphs.frontier_figure import plot_frontiers
    from graphs.heads.acdc import acdc_heads
    from graphs.heads.attribution import edge_attribution
    from graphs.heads.edges import HeadEdges
    from graphs.heads.running import EdgeRunner, run_edges
    from graphs.html import write_html
    from graphs.most_active import top_active
    from graphs.proof.beside import beside_controls
    from graphs.proof.choices import ProofChoices
    from graphs.proof.prove import prove
    from graphs.proof.records import Proof, ProofTable
    from graphs.proof.trial import Trial
    from graphs.prune_paths import path_scores
    from graphs.published.published_circuits import PublishedCircuit, published_circuit

__all__ = [
    "CircuitGraph",
    "CircuitRunner",
    "EdgeRunner",
    "Faithfulness",
    "FrozenGraph",
    "GraphMetadata",
    "HeadEdges",
    "NodeNotes",
    "Proof",
    "ProofChoices",
    "ProofTable",
    "PublishedCircuit",
    "Trial",
    "acdc_edges",
    "acdc_heads",
    "attribution_effects",
    "average_graphs",
    "beside_controls",
    "build_graph",
    "edge_attribution",
    "edge_influence",
    "faithfulness",
    "freeze_graph",
    "integrated_effects",
    "node_influence",
    "non_error_share",
    "output_gap",
    "output_kl",
    "path_scores",
    "plot_circuit",
    "plot_frontiers",
    "prove",
    "prune",
    "prune_influence",
    "published_circuit",
    "replacement_score",
    "run_edges",
    "top_active",
    "write_html",
]

_LATER = {
    "EdgeRunner": "graphs.heads.running",
    "HeadEdges": "graphs.heads.edges",
    "Proof": "graphs.proof.records",
    "ProofChoices": "graphs.proof.choices",
    "ProofTable": "graphs.proof.records",
    "PublishedCircuit": "graphs.published.published_circuits",
    "Trial": "graphs.proof.trial",
    "acdc_heads": "graphs.heads.acdc",
    "attribution_effects": "graphs.feature_effects",
    "beside_controls": "graphs.proof.beside",
    "edge_attribution": "graphs.heads.attribution",
    "integrated_effects": "graphs.feature_effects",
    "path_scores": "graphs.prune_paths",
    "plot_circuit": "graphs.figure",
    "plot_frontiers": "graphs.frontier_figure",
    "prove": "graphs.proof.prove",
    "published_circuit": "graphs.published.published_circuits",
    "run_edges": "graphs.heads.running",
    "top_active": "graphs.most_active",
    "write_html": "graphs.html",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
