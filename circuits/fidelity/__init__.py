"""Fidelity of dictionaries in their model: what they reconstruct, and what the model loses by it.

Positions left out (the first of each row, BOS, padding) keep their true value in every splice and
ablation, and count in no mean: dictionaries are not trained there.
"""

from circuits.fidelity.evaluation import evaluate, evaluate_many
from circuits.fidelity.predictions import cross_entropy
from circuits.fidelity.records import (
    CrossEntropy,
    Density,
    DictionaryFidelity,
    FidelityReport,
    KLDivergence,
)

__all__ = [
    "CrossEntropy",
    "Density",
    "DictionaryFidelity",
    "FidelityReport",
    "KLDivergence",
    "cross_entropy",
    "evaluate",
    "evaluate_many",
]
