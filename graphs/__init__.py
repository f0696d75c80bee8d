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
from graphs.scorer import CircuitRunner, Tally

if TYPE_CHECKING:
    from graphs.exchange import GraphView, export_graph, import_graph
    from graphs.feature_effects import attribution_effects, integrated_effects
    from graphs.figure import plot_circuit
    from graphs.frontier_figure import plot_frontiers
    from graphs.heads.acdc import acdc_heads
    from graphs.heads.attribution import edge_attribution
    from graphs.heads.edges import HeadEdges
    from graphs.heads.running import EdgeRunner, run_edges
    from graphs.html import write_html
    from graphs.interventions import (
        Change,
        EffectAgreement,
        Effects,
        Outcome,
        ablate,
        compare_effects,
        continue_prompt,
        find_nodes,
        intervene,
        measure_effects,
        parse_nodes,
        steer,
        swap,
    )
    from graphs.interventions.effects_figure import plot_effects
    from graphs.live_acdc import acdc_live_edges
    from graphs.live_circuits import LiveCircuits
    from graphs.most_active import top_active
    from graphs.page import CircuitPage, ShownContext, circuit_page
    from graphs.proof.beside import beside_controls
    from graphs.proof.choices import ProofChoices
    from graphs.proof.prove import prove
    from graphs.proof.records import Proof, ProofTable
    from graphs.proof.trial import Trial
    from graphs.prune_paths import path_scores
    from graphs.published.published_circuits import PublishedCircuit, published_circuit
    from graphs.task_circuits import (
        RoleGraph,
        RoleProof,
        RoleRunner,
        chance_overlap,
        circuit_overlap,
        collapse,
        difference,
        influence_profile,
        intersection,
        match_dictionaries,
        name_positions,
        prove_roles,
        role_graph,
        union,
    )
    from graphs.units import UnitTrial, unit_attribution, unit_integrated

__all__ = [
    "Change",
    "CircuitGraph",
    "CircuitPage",
    "CircuitRunner",
    "EdgeRunner",
    "EffectAgreement",
    "Effects",
    "Faithfulness",
    "FrozenGraph",
    "GraphMetadata",
    "GraphView",
    "HeadEdges",
    "LiveCircuits",
    "NodeNotes",
    "Outcome",
    "Proof",
    "ProofChoices",
    "ProofTable",
    "PublishedCircuit",
    "RoleGraph",
    "RoleProof",
    "RoleRunner",
    "ShownContext",
    "Tally",
    "Trial",
    "UnitTrial",
    "ablate",
    "acdc_edges",
    "acdc_heads",
    "acdc_live_edges",
    "attribution_effects",
    "average_graphs",
    "beside_controls",
    "build_graph",
    "chance_overlap",
    "circuit_overlap",
    "circuit_page",
    "collapse",
    "compare_effects",
    "continue_prompt",
    "difference",
    "edge_attribution",
    "edge_influence",
    "export_graph",
    "faithfulness",
    "find_nodes",
    "freeze_graph",
    "import_graph",
    "influence_profile",
    "integrated_effects",
    "intersection",
    "intervene",
    "match_dictionaries",
    "measure_effects",
    "name_positions",
    "node_influence",
    "non_error_share",
    "output_gap",
    "output_kl",
    "parse_nodes",
    "path_scores",
    "plot_circuit",
    "plot_effects",
    "plot_frontiers",
    "prove",
    "prove_roles",
    "prune",
    "prune_influence",
    "published_circuit",
    "replacement_score",
    "role_graph",
    "run_edges",
    "steer",
    "swap",
    "top_active",
    "union",
    "unit_attribution",
    "unit_integrated",
    "write_html",
]

_LATER = {
    "Change": "graphs.interventions",
    "CircuitPage": "graphs.page",
    "EdgeRunner": "graphs.heads.running",
    "EffectAgreement": "graphs.interventions",
    "Effects": "graphs.interventions",
    "GraphView": "graphs.exchange",
    "HeadEdges": "graphs.heads.edges",
    "LiveCircuits": "graphs.live_circuits",
    "Outcome": "graphs.interventions",
    "Proof": "graphs.proof.records",
    "ProofChoices": "graphs.proof.choices",
    "ProofTable": "graphs.proof.records",
    "PublishedCircuit": "graphs.published.published_circuits",
    "RoleGraph": "graphs.task_circuits",
    "RoleProof": "graphs.task_circuits",
    "RoleRunner": "graphs.task_circuits",
    "ShownContext": "graphs.page",
    "Trial": "graphs.proof.trial",
    "UnitTrial": "graphs.units",
    "ablate": "graphs.interventions",
    "acdc_heads": "graphs.heads.acdc",
    "acdc_live_edges": "graphs.live_acdc",
    "attribution_effects": "graphs.feature_effects",
    "beside_controls": "graphs.proof.beside",
    "chance_overlap": "graphs.task_circuits",
    "circuit_overlap": "graphs.task_circuits",
    "circuit_page": "graphs.page",
    "collapse": "graphs.task_circuits",
    "compare_effects": "graphs.interventions",
    "continue_prompt": "graphs.interventions",
    "difference": "graphs.task_circuits",
    "edge_attribution": "graphs.heads.attribution",
    "export_graph": "graphs.exchange",
    "find_nodes": "graphs.interventions",
    "import_graph": "graphs.exchange",
    "influence_profile": "graphs.task_circuits",
    "integrated_effects": "graphs.feature_effects",
    "intersection": "graphs.task_circuits",
    "intervene": "graphs.interventions",
    "match_dictionaries": "graphs.task_circuits",
    "measure_effects": "graphs.interventions",
    "name_positions": "graphs.task_circuits",
    "parse_nodes": "graphs.interventions",
    "path_scores": "graphs.prune_paths",
    "plot_circuit": "graphs.figure",
    "plot_effects": "graphs.interventions.effects_figure",
    "plot_frontiers": "graphs.frontier_figure",
    "prove": "graphs.proof.prove",
    "prove_roles": "graphs.task_circuits",
    "published_circuit": "graphs.published.published_circuits",
    "role_graph": "graphs.task_circuits",
    "run_edges": "graphs.heads.running",
    "steer": "graphs.interventions",
    "swap": "graphs.interventions",
    "top_active": "graphs.most_active",
    "union": "graphs.task_circuits",
    "unit_attribution": "graphs.units",
    "unit_integrated": "graphs.units",
    "write_html": "graphs.html",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
