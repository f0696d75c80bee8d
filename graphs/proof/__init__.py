"""The proof of a circuit: completeness, minimality and controls, with every choice named."""

from graphs.proof.beside import beside_controls
from graphs.proof.choices import ProofChoices
from graphs.proof.estimates import Estimate
from graphs.proof.prove import check_disjoint, prove
from graphs.proof.records import ControlProof, Knockouts, Minimality, NodeHarm, Proof, ProofTable
from graphs.proof.trial import Outcome, Trial

__all__ = [
    "ControlProof",
    "Estimate",
    "Knockouts",
    "Minimality",
    "NodeHarm",
    "Outcome",
    "Proof",
    "ProofChoices",
    "ProofTable",
    "Trial",
    "beside_controls",
    "check_disjoint",
    "prove",
]
