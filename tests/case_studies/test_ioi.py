"""IOI prompts: who stands where, what is corrupted, and what counts as right."""

import re
from collections import Counter

import pytest
import torch

from attribution import LogitDifference
from case_studies.tasks import IoiTask, TaskPrompt, ioi
from case_studies.tasks.frames import IOI_FRAMES
from case_studies.tasks.word_lists import HELD_OUT_NAMES, NAMES, STORY_NAMES
from tests.case_studies.task_models import random_gpt2, two_digit_model, word_model

N = 40


def _names(text: str, names: tuple[str, ...]) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in names]


@pytest.fixture(scope="module")
def prompts() -> list[TaskPrompt]:
    return IoiTask().prompts(two_digit_model(), N, seed=0)


def test_roles_point_at_the_names(prompts: list[TaskPrompt]) -> None:
    for prompt in prompts:
        tokens, roles = prompt.clean_tokens, prompt.roles
        assert tokens[roles["io"]] == prompt.correct.item()
        assert tokens[roles["s1"]] == tokens[roles["s2"]] == prompt.wrong.item()
        assert roles["s1"] < roles["s2"] < roles["end"] == len(tokens) - 1
        assert roles["s1+1"] == roles["s1"] + 1
        assert two_digit_model().token_strings(tokens)[-1] == " to"


def test_order_of_names_gives_the_group(prompts: list[TaskPrompt]) -> None:
    for prompt in prompts:
        io_first = prompt.roles["io"] < prompt.roles["s1"]
        assert prompt.group == ("ABBA" if io_first else "BABA")


def test_every_frame_and_order_is_asked_equally_often(prompts: list[TaskPrompt]) -> None:
    counts = Counter((p.frame, p.group) for p in prompts)
    assert set(counts.values()) == {2}
    assert len(counts) == 2 * len(IOI_FRAMES)


def test_abc_puts_three_fresh_names_in_the_three_places(prompts: list[TaskPrompt]) -> None:
    for prompt in prompts:
        clean = _names(prompt.clean, HELD_OUT_NAMES)
        corrupted = _names(prompt.corrupted, HELD_OUT_NAMES)
        assert len(clean) == 3
        assert len(set(clean)) == 2
        assert len(set(corrupted)) == 3
        assert not set(clean) & set(corrupted)


@pytest.mark.parametrize("corruption", ["abc", "flip"])
def test_corruption_changes_names_alone(corruption: str) -> None:
    task = IoiTask(corruption=corruption)  # type: ignore[arg-type]
    for prompt in task.prompts(two_digit_model(), N, seed=3):
        changed = (prompt.clean_tokens != prompt.corrupted_tokens).nonzero().flatten().tolist()
        places = ("io", "s1", "s2") if corruption == "abc" else ("s2",)
        assert changed == sorted(prompt.roles[place] for place in places)


def test_flip_says_the_indirect_object_twice() -> None:
    for prompt in IoiTask(corruption="flip").prompts(two_digit_model(), N, seed=1):
        assert prompt.corrupted_tokens[prompt.roles["s2"]] == prompt.correct.item()


@pytest.mark.parametrize(("split", "names"), [("held_out", HELD_OUT_NAMES), ("seen", NAMES)])
def test_split_decides_the_names(split: str, names: tuple[str, ...]) -> None:
    for prompt in IoiTask().prompts(two_digit_model(), N, seed=0, split=split):  # type: ignore[arg-type]
        assert len(_names(prompt.clean, names)) == 3
        assert len(_names(prompt.corrupted, names)) == 3


def test_same_seed_same_prompts_and_all_differ() -> None:
    task, model = IoiTask(), two_digit_model()
    one, two, other = (
        [(p.clean, p.corrupted) for p in task.prompts(model, N, seed=s)] for s in (7, 7, 8)
    )
    assert one == two != other
    assert len({clean for clean, _ in one}) == N


@pytest.mark.parametrize("group", ["ABBA", "BABA"])
def test_aligned_prompts_have_one_frame_and_equal_roles(group: str) -> None:
    task = IoiTask(aligned_frame=2)
    prompts = task.prompts(two_digit_model(), N, seed=0, aligned_group=group)
    assert {p.frame for p in prompts} == {2}
    assert {p.group for p in prompts} == {group}
    assert all(p.roles == prompts[0].roles for p in prompts)
    assert len({len(p.clean_tokens) for p in prompts}) == 1
    assert group in task.groups(two_digit_model())


def test_story_names_stand_at_the_very_start() -> None:
    prompts = IoiTask(frames="story").prompts(word_model(), N, seed=0)
    assert any(p.roles["io"] == 0 for p in prompts)
    assert any(p.roles["s1"] == 0 for p in prompts)
    for prompt in prompts:
        assert len(_names(prompt.clean, STORY_NAMES)) == 3
        assert prompt.clean_tokens[prompt.roles["s2"]] == prompt.wrong.item()


def test_story_names_must_be_tokens_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"only 0 of 31 names .* use plain frames"):
        IoiTask(frames="story").prompts(two_digit_model(), 4, seed=0)


def test_too_few_single_token_names_are_refused() -> None:
    from case_studies.tiny.tokenizer import train_tokenizer
    from circuits import load_model

    bytes_alone = train_tokenizer(["a"], 257)
    model = load_model(random_gpt2(bytes_alone), bytes_alone)
    with pytest.raises(ValueError, match=r"only 0 of 17 names are single tokens .* at least 8"):
        IoiTask().prompts(model, 4, seed=0)


def test_metric_and_success_by_hand() -> None:
    task, model = IoiTask(), two_digit_model()
    prompts = task.prompts(model, 3, seed=0)
    logits = torch.zeros(3, model.d_vocab)
    for row, (io, s) in enumerate(((2.5, 1.0), (0.0, 4.0), (1.0, 1.0))):
        logits[row, prompts[row].correct], logits[row, prompts[row].wrong] = io, s
    torch.testing.assert_close(task.metric(logits, prompts), torch.tensor([1.5, -4.0, 0.0]))
    assert task.succeeds(logits, prompts).tolist() == [True, False, False]
    p_io = task.further_metrics(logits, prompts)["probability_of_io"]
    e = torch.tensor([2.5, 1.0]).exp()
    torch.testing.assert_close(p_io[0], e[0] / (e.sum() + model.d_vocab - 2))


def test_target_is_the_logit_difference_of_the_answers(prompts: list[TaskPrompt]) -> None:
    target = IoiTask().target(prompts[0])
    assert target == LogitDifference(prompts[0].correct.tolist(), prompts[0].wrong.tolist())


def test_more_prompts_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ioi._PLACES, "plain", ("park",))
    monkeypatch.setitem(ioi._OBJECTS, "plain", ("book",))
    with pytest.raises(ValueError, match="different prompts, want 400"):
        IoiTask().prompts(two_digit_model(), 400, seed=0, aligned_group="ABBA")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least one prompt, got n = 0"),
        ({"n": 4, "aligned_group": "AABB"}, "one of ABBA, BABA, got 'AABB'"),
    ],
)
def test_bad_requests_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IoiTask().prompts(two_digit_model(), seed=0, **arguments)


def test_bad_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aligned_frame must be in \[0, 10\), got 10"):
        IoiTask(aligned_frame=10)


@pytest.mark.usefixtures("unchecked")
def test_bad_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="want one of plain, story, got 'poem'"):
        IoiTask(frames="poem")  # type: ignore[arg-type]
