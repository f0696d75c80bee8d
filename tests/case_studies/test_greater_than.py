"""Greater-than prompts in both forms: tokens of years, right and wrong answers, corruption."""

from collections import Counter

import pytest
import torch

from attribution import ProbabilityDifference
from case_studies.tasks import GreaterThanTask, TaskPrompt
from case_studies.tasks.frames import is_held_out_year
from case_studies.tasks.word_lists import HELD_OUT_NOUNS, NOUNS
from case_studies.tasks.years import read_year_tokens
from circuits import SubjectModel, load_model
from tests.case_studies.task_models import (
    random_gpt2,
    two_digit_model,
    two_digit_tokenizer,
    word_model,
)

ALL_YY = 97


def _texts(model: SubjectModel, tokens: torch.Tensor) -> list[str]:
    return list(model.token_strings(tokens))


def _year(prompt: TaskPrompt) -> int:
    return int(prompt.clean.split()[6])


@pytest.fixture(scope="module")
def two_digit() -> list[TaskPrompt]:
    return GreaterThanTask().prompts(two_digit_model(), 2 * ALL_YY, seed=0)


@pytest.fixture(scope="module")
def digits() -> list[TaskPrompt]:
    return GreaterThanTask().prompts(word_model(), 64, seed=0)


def test_two_digit_answers_are_the_numbers_above_and_up_to_yy(two_digit: list[TaskPrompt]) -> None:
    for prompt in two_digit:
        yy = _year(prompt) % 100
        assert _texts(two_digit_model(), prompt.correct) == [f"{n:02d}" for n in range(yy + 1, 100)]
        assert _texts(two_digit_model(), prompt.wrong) == [f"{n:02d}" for n in range(yy + 1)]


def test_two_digit_roles(two_digit: list[TaskPrompt]) -> None:
    for prompt in two_digit:
        century, yy = divmod(_year(prompt), 100)
        words = _texts(two_digit_model(), prompt.clean_tokens)
        assert words[prompt.roles["yy"]] == f"{yy:02d}"
        assert words[prompt.roles["before_yy"]] == words[prompt.roles["end"]] == f" {century}"
        assert words[prompt.roles["noun"]] == " " + prompt.clean.split()[1]


def test_two_digit_corruption_is_the_token_01(two_digit: list[TaskPrompt]) -> None:
    model = two_digit_model()
    for prompt in two_digit:
        changed = (prompt.clean_tokens != prompt.corrupted_tokens).nonzero().flatten().tolist()
        assert changed == [prompt.roles["yy"]]
        assert _texts(model, prompt.corrupted_tokens[changed]) == ["01"]
        assert model.tokenize(prompt.corrupted).tolist() == prompt.corrupted_tokens.tolist()


def test_every_yy_from_02_to_98_comes_up_equally_often(two_digit: list[TaskPrompt]) -> None:
    assert Counter(_year(p) % 100 for p in two_digit) == dict.fromkeys(range(2, 99), 2)


@pytest.mark.parametrize(("split", "nouns"), [("held_out", HELD_OUT_NOUNS), ("seen", NOUNS)])
def test_split_decides_nouns_and_years(split: str, nouns: tuple[str, ...]) -> None:
    prompts = GreaterThanTask().prompts(two_digit_model(), 50, seed=0, split=split)  # type: ignore[arg-type]
    assert {p.clean.split()[1] for p in prompts} <= set(nouns)
    assert {is_held_out_year(_year(p)) for p in prompts} == {split == "held_out"}


def test_prompts_are_aligned_seeded_and_different(two_digit: list[TaskPrompt]) -> None:
    task, model = GreaterThanTask(), two_digit_model()
    assert task.groups(model) == ("two-digit",)
    assert len({p.clean for p in two_digit}) == len(two_digit)
    assert len({tuple(p.roles.items()) for p in two_digit}) == 1
    again, other = (task.prompts(model, 2 * ALL_YY, seed=s) for s in (0, 1))
    assert [p.clean for p in again] == [p.clean for p in two_digit] != [p.clean for p in other]


def test_a_year_that_is_one_token_is_never_drawn() -> None:
    tokenizer = two_digit_tokenizer().__class__(
        tokenizer_object=two_digit_tokenizer()._tokenizer.__class__.from_str(
            two_digit_tokenizer()._tokenizer.to_str()
        ),
        bos_token="<|endoftext|>",
    )
    tokenizer.add_tokens([" 1865", " 1914"])
    years = read_year_tokens(load_model(random_gpt2(tokenizer), tokenizer)).years
    assert len(years) == 9 * ALL_YY - 2
    assert not {1865, 1914} & years.keys()


def test_single_digit_tokenizers_are_asked_for_one_digit(digits: list[TaskPrompt]) -> None:
    assert GreaterThanTask().groups(word_model()) == ("tens", "last")
    assert [p.group for p in digits[:4]] == ["tens", "last", "tens", "last"]
    for prompt in digits:
        year = _year(prompt)
        asked = prompt.clean.split()[-1]
        assert asked == str(year)[: 2 if prompt.group == "tens" else 3]


def test_the_tens_digit_itself_is_neither_right_nor_wrong(digits: list[TaskPrompt]) -> None:
    for prompt in (p for p in digits if p.group == "tens"):
        d = _year(prompt) // 10 % 10
        assert _texts(word_model(), prompt.correct) == [str(n) for n in range(d + 1, 10)]
        assert _texts(word_model(), prompt.wrong) == [str(n) for n in range(d)]


def test_the_last_digit_itself_is_wrong(digits: list[TaskPrompt]) -> None:
    for prompt in (p for p in digits if p.group == "last"):
        y = _year(prompt) % 10
        assert _texts(word_model(), prompt.correct) == [str(n) for n in range(y + 1, 10)]
        assert _texts(word_model(), prompt.wrong) == [str(n) for n in range(y + 1)]


def test_single_digit_corruption_zeroes_the_compared_digit(digits: list[TaskPrompt]) -> None:
    for prompt in digits:
        model, words = word_model(), _texts(word_model(), prompt.clean_tokens)
        start = words.index(" year") + 2  # after the space token
        assert prompt.roles["yy"] == start + (2 if prompt.group == "tens" else 3)
        changed = (prompt.clean_tokens != prompt.corrupted_tokens).nonzero().flatten().tolist()
        assert changed == [prompt.roles["yy"]]
        assert _texts(model, prompt.corrupted_tokens[changed]) == ["0"]
        assert model.tokenize(prompt.corrupted).tolist() == prompt.corrupted_tokens.tolist()


@pytest.mark.parametrize(("group", "unit"), [("tens", 10), ("last", 1)])
def test_aligned_digits_are_one_form_and_balanced(group: str, unit: int) -> None:
    prompts = GreaterThanTask().prompts(word_model(), 32, seed=0, aligned_group=group)
    assert {p.group for p in prompts} == {group}
    assert len({tuple(p.roles.items()) for p in prompts}) == 1
    compared = Counter(_year(p) // unit % 10 for p in prompts)
    assert compared == dict.fromkeys(range(1, 9), 4)


def test_three_digit_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"writes 1732 as .* two-digit tokens .* single digits"):
        GreaterThanTask().prompts(word_model(r"\p{N}{1,3}"), 4, seed=0)


def test_more_prompts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found only \d+ different prompts, want 9999"):
        GreaterThanTask().prompts(two_digit_model(), 9999, seed=0)


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="one of two-digit, got 'tens'"):
        GreaterThanTask().prompts(two_digit_model(), 4, seed=0, aligned_group="tens")


def _certain(n_vocab: int, tokens: list[int]) -> torch.Tensor:
    logits = torch.full((len(tokens), n_vocab), -1e4)
    logits[torch.arange(len(tokens)), torch.tensor(tokens)] = 0.0
    return logits


def test_metric_of_perfect_wrong_and_idle_models(two_digit: list[TaskPrompt]) -> None:
    task, d_vocab, prompts = GreaterThanTask(), two_digit_model().d_vocab, two_digit[:5]
    perfect = _certain(d_vocab, [int(p.correct[-1]) for p in prompts])
    mistaken = _certain(d_vocab, [int(p.wrong[0]) for p in prompts])
    idle = _certain(d_vocab, [0] * len(prompts))
    for logits, value in ((perfect, 1.0), (mistaken, -1.0), (idle, 0.0)):
        torch.testing.assert_close(task.metric(logits, prompts), torch.full((5,), value))
        assert task.succeeds(logits, prompts).tolist() == [value == 1.0] * 5


def test_metric_counts_the_whole_vocabulary(two_digit: list[TaskPrompt]) -> None:
    d_vocab, prompt = two_digit_model().d_vocab, two_digit[0]
    metric = GreaterThanTask().metric(torch.zeros(1, d_vocab), [prompt])
    expected = (len(prompt.correct) - len(prompt.wrong)) / d_vocab
    torch.testing.assert_close(metric, torch.tensor([expected]))


@pytest.mark.parametrize("group", ["two-digit", "tens", "last"])
def test_sharpness_compares_the_neighbours_of_the_start_year(group: str) -> None:
    model = two_digit_model() if group == "two-digit" else word_model()
    task = GreaterThanTask()
    (prompt,) = task.prompts(model, 1, seed=5, aligned_group=group)
    value = {"two-digit": _year(prompt) % 100, "tens": _year(prompt) // 10 % 10}
    value["last"] = _year(prompt) % 10
    written = "{:02d}" if group == "two-digit" else "{}"
    above, below = (model.single_token(written.format(value[group] + k)) for k in (1, -1))
    logits = torch.full((1, model.d_vocab), -1e4)
    logits[0, above], logits[0, below] = torch.tensor(3.0).log(), 0.0
    sharpness = task.further_metrics(logits, [prompt])["cutoff_sharpness"]
    torch.testing.assert_close(sharpness, torch.tensor([0.75 - 0.25]))


def test_target_is_the_probability_difference_of_the_answers(two_digit: list[TaskPrompt]) -> None:
    target = GreaterThanTask().target(two_digit[0])
    assert isinstance(target, ProbabilityDifference)
    assert target.correct.tolist() == two_digit[0].correct.tolist()
    assert target.wrong.tolist() == two_digit[0].wrong.tolist()
