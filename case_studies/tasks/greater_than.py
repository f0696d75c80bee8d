"""Greater-than (Hanna et al. 2023): a war that began in 1732 ended in a later year."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.targets import ProbabilityDifference
from case_studies.tasks.frames import GREATER_THAN_FRAME, is_held_out_year
from case_studies.tasks.metrics import probability_difference, step_in_probability
from case_studies.tasks.task import Split, Task, TaskPrompt, check_request, single_token_words
from case_studies.tasks.word_lists import HELD_OUT_NOUNS, NOUNS
from case_studies.tasks.years import NumberForm, YearTokens, compared_value, read_year_tokens
from circuits.subject import SubjectModel

__all__ = ["GreaterThanTask"]

_NOUNS = {"held_out": HELD_OUT_NOUNS, "seen": NOUNS, "all": (*NOUNS, *HELD_OUT_NOUNS)}
_BEFORE_YEAR = GREATER_THAN_FRAME.partition(" {start}")[0]


@dataclass(frozen=True)
class GreaterThanTask(Task):
    """Prompts `The war lasted from the year 1732 to the year 17`, in the form the tokenizer has.

    - `two-digit` (" 17" and "32" are tokens), start year XXYY with YY = 02..98: the answers
      YY+1..99 are right, 00..YY wrong. The corrupted prompt has the token "01" for YY.
    - `tens` (every digit is a token), tens digit d = 1..8: the prompt ends in "17", digits above d
      are right, below d wrong, and d itself is neither. The corrupted prompt has 0 for d.
    - `last` (likewise), last digit y = 1..8: the prompt ends in "173", digits above y are right,
      0..y wrong. The corrupted prompt has 0 for y.

    Every value of YY, d or y comes up equally often, and the two single-digit forms alternate.
    Roles: `noun`, `yy` (the token compared with), `before_yy`, `end`.
    """

    name = "greater-than"
    metric_name = "probability difference"
    question = "Told when something began, how does the model know that it ended in a later year?"
    expected = "Numbers above the start year are likelier, together, than those up to it."

    def groups(self, model: SubjectModel) -> tuple[str, ...]:
        """The forms of the question that the tokenizer allows."""
        return read_year_tokens(model).forms

    def prompts(
        self,
        model: SubjectModel,
        n: int,
        *,
        seed: int,
        split: Split = "held_out",
        aligned_group: str | None = None,
    ) -> list[TaskPrompt]:
        tokens = read_year_tokens(model)
        check_request(n, aligned_group, tokens.forms)
        rng = random.Random(seed)
        nouns = single_token_words(model, _NOUNS[split], "nouns")
        years = [year for year in tokens.years if _in_split(year, split)]
        forms: list[NumberForm] = [f for f in tokens.forms if aligned_group in (None, f)]
        draws = {form: _balanced(rng, tokens.by_value(form, years), nouns) for form in forms}
        prompts = []
        for i in range(n):
            form = forms[i % len(forms)]
            drawn = next(draws[form], None)
            if drawn is None:
                raise ValueError(
                    f"found only {len(prompts)} different prompts, want {n}; ask for fewer, or "
                    "draw from more words (split 'all')"
                )
            prompts.append(_prompt(model, tokens, form, *drawn))
        return prompts

    def metric(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> Float[Tensor, " batch"]:
        """Summed probability of right answers minus that of wrong ones, full-vocabulary softmax."""
        return probability_difference(
            logits, [p.correct for p in prompts], [p.wrong for p in prompts]
        )

    def succeeds(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> Bool[Tensor, " batch"]:
        """Whether the likeliest token of the whole vocabulary is a right answer."""
        best = logits.argmax(-1).tolist()
        hits = [token in p.correct.tolist() for token, p in zip(best, prompts, strict=True)]
        return torch.tensor(hits, device=logits.device)

    def target(self, prompt: TaskPrompt) -> ProbabilityDifference:
        return ProbabilityDifference(prompt.correct, prompt.wrong)

    def further_metrics(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Cut-off sharpness: p(YY + 1) - p(YY - 1), with the digit for YY in the digit forms."""
        above = torch.stack([p.correct[0] for p in prompts])
        below = torch.stack([p.wrong[-1 if p.group == "tens" else -2] for p in prompts])
        return {"cutoff_sharpness": step_in_probability(logits, above, below)}


def _in_split(year: int, split: Split) -> bool:
    return split == "all" or is_held_out_year(year) == (split == "held_out")


def _balanced(
    rng: random.Random, by_value: Mapping[int, Sequence[int]], nouns: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Pairs of a noun and a start year, each once: every round every value, in a new order."""
    left = {
        value: rng.sample(pairs, len(pairs))
        for value, years in sorted(by_value.items())
        if (pairs := list(product(nouns, years)))
    }
    while left:
        for value in rng.sample(sorted(left), len(left)):
            yield left[value].pop()
            if not left[value]:
                del left[value]


def _prompt(
    model: SubjectModel, tokens: YearTokens, form: NumberForm, noun: str, year: int
) -> TaskPrompt:
    year_ids, value = tokens.years[year], compared_value(form, year)
    n_cut = 2 if form == "tens" else 1  # year tokens that the prompt leaves to the answer
    n_digits = 1 if form == "last" else 2
    clean = GREATER_THAN_FRAME.format(noun=noun, start=year, century=str(year)[:-n_digits])
    unit = 10 if form == "tens" else 1
    fill = 1 if form == "two-digit" else 0
    corrupted_year = year - (value - fill) * unit
    clean_tokens = model.tokenize(clean)
    start = len(model.tokenize(_BEFORE_YEAR.format(noun=noun)))
    read = clean_tokens.tolist()
    tail = year_ids[: len(year_ids) - n_cut]
    if (*read[start : start + len(year_ids)], *read[-len(tail) :]) != (*year_ids, *tail):
        raise ValueError(
            f"{model.name!r} splits the years of {clean!r} as {model.token_strings(clean_tokens)}, "
            f"want {model.token_strings(year_ids)} at {start}"
        )
    yy = start + len(year_ids) - n_cut
    corrupted_tokens = clean_tokens.clone()
    corrupted_tokens[yy] = tokens.answers[fill]
    answers = torch.tensor(tokens.answers, device=model.device)
    return TaskPrompt(
        clean=clean,
        corrupted=GREATER_THAN_FRAME.format(
            noun=noun, start=corrupted_year, century=str(year)[:-n_digits]
        ),
        clean_tokens=clean_tokens,
        corrupted_tokens=corrupted_tokens,
        correct=answers[value + 1 :],
        wrong=answers[: value + (form != "tens")],
        group=form,
        frame=0,
        roles={
            "noun": start - _n_after_noun(model, noun),
            "before_yy": yy - 1,
            "yy": yy,
            "end": len(read) - 1,
        },
    )


def _n_after_noun(model: SubjectModel, noun: str) -> int:
    """Tokens from the noun to the start year, the noun included."""
    after = _BEFORE_YEAR.partition("{noun}")[2]
    return len(model.continuation(f" {noun}{after}"))
