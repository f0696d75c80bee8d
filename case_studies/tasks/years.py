"""How a tokenizer writes years: `" 17" "32"`, or digit by digit; always asked of the tokenizer."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from circuits.subject import SubjectModel

__all__ = [
    "CENTURIES",
    "START_YEARS",
    "NumberForm",
    "YearTokens",
    "compared_value",
    "read_year_tokens",
]

CENTURIES = range(11, 20)
"""First two digits of the start year, as in the task documents of `tiny`."""
START_YEARS = range(2, 99)
"""YY = 02..98, so that a year above and a year below always exist (Hanna et al. 2023)."""

NumberForm = Literal["two-digit", "tens", "last"]
"""Which part of the end year is asked for: two digits in one token, or one digit."""


@dataclass(frozen=True)
class YearTokens:
    """The years a tokenizer writes in a usable way, and the tokens of the answers.

    Args:
        forms: which questions can be asked: `two-digit`, or `tens` and `last`.
        answers: token ids of the numbers "00".."99", or of the digits "0".."9".
        years: start year -> its token ids as it continues a text.
    """

    forms: tuple[NumberForm, ...]
    answers: tuple[int, ...]
    years: dict[int, tuple[int, ...]]

    def by_value(self, form: NumberForm, years: Iterable[int]) -> dict[int, list[int]]:
        """Group `years` by the number that `form` compares; digits 0 and 9 leave no question."""
        groups: dict[int, list[int]] = defaultdict(list)
        for year in years:
            value = compared_value(form, year)
            if form == "two-digit" or 1 <= value <= 8:
                groups[value].append(year)
        return dict(groups)


def compared_value(form: NumberForm, year: int) -> int:
    """The number of `year` that the answer is compared with: YY, its tens digit, or its last digit.

    Example:
        >>> [compared_value(form, 1732) for form in ("two-digit", "tens", "last")]
        [32, 3, 2]
    """
    if form == "two-digit":
        return year % 100
    return year // 10 % 10 if form == "tens" else year % 10


def read_year_tokens(model: SubjectModel) -> YearTokens:
    """Find out how the model's tokenizer writes years.

    A year must split as [" XX"]["YY"] for the two-digit form; GPT-2 has single tokens for many
    famous years, which drop out. If none does, every digit must be a token of its own.

    Raises:
        ValueError: if the tokenizer does neither.
    """
    found = _two_digit(model) or _single_digit(model)
    if found is None:
        example = model.token_strings(model.continuation(" 1732"))
        raise ValueError(
            f"{model.name!r} writes 1732 as {example}; greater-than needs years split in two-digit "
            'tokens (" 17", "32") or in single digits'
        )
    return found


def _two_digit(model: SubjectModel) -> YearTokens | None:
    answers = _one_token_each(model, [f"{n:02d}" for n in range(100)])
    if answers is None:
        return None
    years = {}
    for century in CENTURIES:
        front = model.continuation(f" {century}")
        if len(front) != 1:
            continue
        for yy in START_YEARS:
            ids = model.continuation(f" {century}{yy:02d}")
            if ids == [*front, answers[yy]]:
                years[century * 100 + yy] = tuple(ids)
    return YearTokens(("two-digit",), answers, years) if years else None


def _single_digit(model: SubjectModel) -> YearTokens | None:
    answers = _one_token_each(model, [str(n) for n in range(10)])
    if answers is None:
        return None
    years = {}
    for year in (century * 100 + yy for century in CENTURIES for yy in START_YEARS):
        ids = model.continuation(f" {year}")
        if ids[-3:] == [answers[int(digit)] for digit in str(year)[1:]]:
            years[year] = tuple(ids)
    return YearTokens(("tens", "last"), answers, years) if years else None


def _one_token_each(model: SubjectModel, numbers: list[str]) -> tuple[int, ...] | None:
    """Ids of numbers that follow a text without a space, or None if one is not a single token."""
    ids = [model.continuation(number) for number in numbers]
    if any(len(i) != 1 for i in ids) or len({i[0] for i in ids}) != len(ids):
        return None
    return tuple(i[0] for i in ids)
