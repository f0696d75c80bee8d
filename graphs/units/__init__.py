"""Neurons and heads as units of a circuit: the plain model's own parts, patched like features."""

from graphs.units.effects import unit_attribution, unit_integrated
from graphs.units.places import Part, Unit, UnitKind
from graphs.units.random_alike import random_alike
from graphs.units.trial import UnitTrial

__all__ = [
    "Part",
    "Unit",
    "UnitKind",
    "UnitTrial",
    "random_alike",
    "unit_attribution",
    "unit_integrated",
]
