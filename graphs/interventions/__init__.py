"""Interventions from the graph: change nodes on the real model, and compare what edges foretold."""

from graphs.interventions.agreement import EffectAgreement, compare_effects
from graphs.interventions.changes import Change, ablate, steer, swap
from graphs.interventions.continuing import continue_prompt
from graphs.interventions.effects import Effects, measure_effects
from graphs.interventions.naming import find_nodes, parse_nodes
from graphs.interventions.outcome import Outcome, intervene

__all__ = [
    "Change",
    "EffectAgreement",
    "Effects",
    "Outcome",
    "ablate",
    "compare_effects",
    "continue_prompt",
    "find_nodes",
    "intervene",
    "measure_effects",
    "parse_nodes",
    "steer",
    "swap",
]
