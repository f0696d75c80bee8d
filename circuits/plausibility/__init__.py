"""The test on load: does a dictionary fit its model as it is declared, and if not, how would it?

A dictionary read under another convention than its own gives numbers like any other. A few hundred
tokens tell: what it reconstructs as declared, and under every other convention that it might have.
"""

from circuits.plausibility.checking import check_plausible, measure_fits
from circuits.plausibility.remembered import try_out
from circuits.plausibility.verdicts import (
    CHECK,
    UNCHECKED,
    Alternative,
    Fit,
    ImplausibleDictionaryError,
)

__all__ = [
    "CHECK",
    "UNCHECKED",
    "Alternative",
    "Fit",
    "ImplausibleDictionaryError",
    "check_plausible",
    "measure_fits",
    "try_out",
]
