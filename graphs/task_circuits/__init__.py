"""Circuits of tasks: positions by role, sets of circuits, and how much circuits have in common."""

from graphs.task_circuits.chance import ChanceOverlap, chance_overlap
from graphs.task_circuits.matching import FeatureMatch, match_dictionaries, rename_features
from graphs.task_circuits.overlap import CircuitOverlap, Share, circuit_overlap
from graphs.task_circuits.profiles import influence_profile, profile_overlap
from graphs.task_circuits.proof import RoleProof, RoleRunner, prove_roles
from graphs.task_circuits.role_graph import RoleGraph, role_graph
from graphs.task_circuits.roles import collapse, name_positions, nodes_on, order_columns
from graphs.task_circuits.sets import difference, intersection, union

__all__ = [
    "ChanceOverlap",
    "CircuitOverlap",
    "FeatureMatch",
    "RoleGraph",
    "RoleProof",
    "RoleRunner",
    "Share",
    "chance_overlap",
    "circuit_overlap",
    "collapse",
    "difference",
    "influence_profile",
    "intersection",
    "match_dictionaries",
    "name_positions",
    "nodes_on",
    "order_columns",
    "profile_overlap",
    "prove_roles",
    "rename_features",
    "role_graph",
    "union",
]
