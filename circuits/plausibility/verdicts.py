"""The rules by which a dictionary is refused, and the reason that is given.

Pure: scores in, a record out. The limits rest on 20 right dictionaries (`tiny`, two sets of
stories15m) and on `benchmarks/conventions.py`, which declares conventions wrongly on purpose.
"""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from circuits.conventions import Convention
from circuits.plausibility.hypotheses import Change, described, opposite, remedy, written
from circuits.plausibility.readings import Score

__all__ = [
    "CHECK",
    "CLEARLY_BETTER",
    "CLEARLY_BETTER_ELSEWHERE",
    "DENSE_FVU",
    "DENSE_SHARE",
    "MAX_FVU",
    "MAX_MEAN_MISSED",
    "MIN_FVU_DIFFERENCE",
    "OVER_RECORD",
    "UNCHECKED",
    "Alternative",
    "Fit",
    "ImplausibleDictionaryError",
    "judge",
]

MAX_FVU = 0.9
"""From here on a reconstruction says hardly more than the mean."""
CLEARLY_BETTER = 0.9
"""Another reading of the same activations fits better if its FVU is below this share of the
declared one's (right ones: 0.999 at the lowest; the mildest wrong norm of a trained model: 0.82,
stories15m's layer 2 declared bare), ..."""
CLEARLY_BETTER_ELSEWHERE = 0.75
"""... or below this if it is of other activations, whose variance is another (without BOS, where
right ones come to 0.98; of another layer or site), ..."""
MIN_FVU_DIFFERENCE = 0.005
"""... and lower by this at least: shares of almost nothing say nothing."""
MAX_MEAN_MISSED = 0.5
"""Who misses less of the activations' mean over d_model was not trained on centred ones, in which
there was none to learn: native ones miss 0.02 to 0.13, centred ones 1.00, even where the mean is so
small that FVU does not tell (`tiny`)."""
DENSE_SHARE = 0.1
"""An L0 above this share of the features is dense: implausible ..."""
DENSE_FVU = 0.5
"""... if it buys no better FVU than this, ..."""
OVER_RECORD = 3.0
"""... or, where an L0 is on record (k of TopK), if it is so many times that."""

CHECK = "try dictionaries on a few paragraphs first, and refuse those that do not fit the model"
"""What a switch for the check says of itself."""

UNCHECKED = (
    "the dictionaries were not tried on the model (the check is off): if a convention is not what "
    "is declared, every number from here on is wrong and looks right"
)
"""What to warn of where the check is switched off."""


class ImplausibleDictionaryError(ValueError):
    """A dictionary does not fit its model as it is declared."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Alternative(_Record):
    """What a dictionary comes to under another reading."""

    change: str = Field(description="what was read otherwise, in words")
    remedy: str = Field(description="what to do if that is how it was trained")
    fvu: float = Field(description="FVU under it; NaN if not finite")
    l0: float = Field(description="mean active features a token under it")


class Fit(_Record):
    """How one dictionary fits its model."""

    name: str = Field(description="SITE.LAYER")
    convention: Convention = Field(description="as it is declared")
    n_features: int = Field(description="features of the dictionary")
    n_tokens: int = Field(description="tokens it was tried on; those left out not counted")
    fvu: float = Field(description="FVU as declared, about the mean of these tokens; or NaN")
    l0: float = Field(description="mean active features a token as declared")
    alternatives: tuple[Alternative, ...] = Field(description="what else was tried, best first")
    verdict: Literal["fits", "refused"] = Field(description="whether it may be used as declared")
    reason: str = Field(description="of the verdict; if refused, also what would fit")


def judge(
    name: str,
    convention: Convention,
    n_features: int,
    scores: Mapping[Change, Score],
    *,
    bos: bool | None = None,
    recorded_l0: float | None = None,
) -> Fit:
    """The verdict on one dictionary.

    Refused if FVU as declared is not finite or `MAX_FVU` or more; if no feature is active, or far
    too many are; if another reading fits clearly better; if it is declared centred but writes the
    mean that centred activations have not; or if the declared BOS is not what the prompts have.

    Args:
        name: `SITE.LAYER`.
        convention: as declared.
        n_features: features of the dictionary.
        scores: by change; that of no change, `()`, is as declared.
        bos: whether prompts begin with BOS; None where it is not known.
        recorded_l0: mean active features a token on record; k for TopK.
    """
    own, better = scores[()], _better(scores)
    faults = [*_faults(own, n_features, recorded_l0), *_bos_faults(convention, bos, scores)]
    others = sorted((change for change in scores if change), key=lambda c: _rank(scores[c]))
    alternatives = (
        Alternative(
            change=described(change),
            remedy=remedy(convention, change),
            fvu=scores[change].fvu,
            l0=scores[change].l0,
        )
        for change in others
    )
    return Fit(
        name=name,
        convention=convention,
        n_features=n_features,
        n_tokens=own.n_tokens,
        fvu=own.fvu,
        l0=own.l0,
        alternatives=tuple(alternatives),
        verdict="refused" if faults or better else "fits",
        reason=f"{name} {_reason(convention, n_features, scores, better, faults)}",
    )


def _rank(score: Score) -> float:
    return score.fvu if isfinite(score.fvu) else inf


def _better(scores: Mapping[Change, Score]) -> Change | None:
    """The change that fits clearly better than none: of the best the one with fewest fields."""
    own = _rank(scores[()])
    fitting = {
        change: score.fvu
        for change, score in scores.items()
        if _rank(score) < min(_share(change) * own, own - MIN_FVU_DIFFERENCE, MAX_FVU)
    }
    raw: Change = (("centred", False),)
    if not fitting:
        # The change is tried only where the convention says centred.
        return raw if raw in scores and scores[()].mean_missed < MAX_MEAN_MISSED else None
    best = min(fitting.values())
    as_good = [change for change, each in fitting.items() if CLEARLY_BETTER * each <= best]
    return min(as_good, key=lambda change: (len(change), fitting[change]))


def _share(change: Change) -> float:
    elsewhere = {name for name, _ in change} & {"with_bos", "layer", "site"}
    return CLEARLY_BETTER_ELSEWHERE if elsewhere else CLEARLY_BETTER


def _faults(own: Score, n_features: int, recorded_l0: float | None) -> list[str]:
    """What is implausible about FVU and L0 as they are."""
    faults = []
    if not isfinite(own.fvu):
        faults.append("its reconstruction is not finite")
    elif own.fvu >= MAX_FVU:
        faults.append(f"it says little or no more than the mean (FVU {MAX_FVU} and above)")
    if own.l0 == 0:
        faults.append("no feature is active")
    dense = own.l0 > DENSE_SHARE * n_features
    if dense and recorded_l0 is not None:
        if own.l0 > OVER_RECORD * recorded_l0:
            faults.append(f"far more features are active than on record ({recorded_l0:.1f})")
    elif dense and own.fvu > DENSE_FVU:
        faults.append(f"over {DENSE_SHARE:.0%} of its features are active, to little effect")
    return faults


def _bos_faults(
    convention: Convention, bos: bool | None, scores: Mapping[Change, Score]
) -> list[str]:
    """A declared BOS that prompts do not have, or the other way round."""
    if bos is None or convention.bos == "unknown" or (convention.bos == "in front") == bos:
        return []
    other: Change = (("with_bos", not bos), ("first", False))
    has, fitting = ("has one", "in front") if bos else ("has none", "none")
    instead = convention.model_copy(update={"bos": fitting})
    return [
        f"its convention has bos={convention.bos!r}, but a prompt {has} (FVU {scores[()].fvu:.2g}; "
        f"{described(other)} {scores[other].fvu:.2g}): {remedy(convention, other)}, or pass "
        f"convention={written(instead)} if the file is wrong"
    ]


def _reason(
    convention: Convention,
    n_features: int,
    scores: Mapping[Change, Score],
    better: Change | None,
    faults: Sequence[str],
) -> str:
    own = scores[()]
    found = f"has FVU {own.fvu:.2g} and L0 {own.l0:.3g} of {n_features} features"
    if better is None:
        lost = _rank(own) >= MAX_FVU or own.l0 == 0
        hint = ["no other reading that was tried fits; is it of this model?"] if lost else []
        return f"{found}: {'; '.join([*faults, *hint])}" if faults else found
    at = scores[better]
    return (
        f"{found} {described(opposite(convention, better))}"
        f"{''.join(f' ({fault})' for fault in faults)}; {described(better)} it has FVU "
        f"{at.fvu:.2g} and L0 {at.l0:.3g}: {remedy(convention, better)}"
    )
