"""Prompts as records, logits of batches, and the behaviour that is reported."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from case_studies.tasks import GreaterThanTask, IoiTask, Task, TaskPrompt, measure_behaviour
from case_studies.tasks.behaviour import bootstrap_interval, final_logits
from tests.case_studies.task_models import two_digit_model, word_model


@pytest.fixture(scope="module")
def prompt() -> TaskPrompt:
    return IoiTask().prompts(two_digit_model(), 1, seed=0)[0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupted_tokens": torch.tensor([1, 2])}, "equally many tokens"),
        ({"wrong": torch.tensor([], dtype=torch.long)}, "answers that differ"),
        ({"roles": {"end": 3}}, "`end` at"),
        ({"roles": {"io": 2}}, "`end` at"),
    ],
)
def test_prompts_that_cannot_be_are_refused(prompt: TaskPrompt, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(prompt, **change)


def test_an_answer_cannot_be_right_and_wrong(prompt: TaskPrompt) -> None:
    with pytest.raises(ValueError, match="answers that differ"):
        replace(prompt, wrong=prompt.correct)


def test_batched_logits_equal_one_prompt_at_a_time() -> None:
    model = two_digit_model()
    rows = [p.clean_tokens for p in IoiTask().prompts(model, 20, seed=0)]
    assert len({len(row) for row in rows}) > 2
    alone = torch.stack([model.run(row[None])[0][0, -1] for row in rows])
    for max_bytes in (1, 2**20):
        torch.testing.assert_close(final_logits(model, rows, max_bytes=max_bytes), alone)


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(2.0, 1.0, 20), rng.normal(2.0, 1.0, 2000)
    low, high = bootstrap_interval(few, seed=0)
    assert low < few.mean() < high
    assert bootstrap_interval(few, seed=0) == (low, high)
    # The interval of a mean is 2 * 1.96 * sd / sqrt(n) wide.
    low, high = bootstrap_interval(many, seed=0)
    assert high - low == pytest.approx(2 * 1.96 / 2000**0.5, rel=0.1)


@pytest.mark.parametrize("task", [IoiTask(), GreaterThanTask()])
def test_behaviour_is_the_mean_over_prompts_and_groups(task: Task) -> None:
    model = word_model() if isinstance(task, GreaterThanTask) else two_digit_model()
    record = measure_behaviour(model, task, 30, seed=2)
    prompts = task.prompts(model, 30, seed=2)
    logits = torch.stack([model.run(p.clean_tokens[None])[0][0, -1] for p in prompts])
    corrupted = torch.stack([model.run(p.corrupted_tokens[None])[0][0, -1] for p in prompts])
    assert record.metric == pytest.approx(task.metric(logits, prompts).mean().item(), abs=1e-6)
    assert record.corrupted_metric == pytest.approx(
        task.metric(corrupted, prompts).mean().item(), abs=1e-6
    )
    assert record.success_rate == task.succeeds(logits, prompts).double().mean().item()
    assert record.metric_interval[0] <= record.metric <= record.metric_interval[1]
    assert set(record.groups) == set(task.groups(model))
    assert sum(g.n_prompts for g in record.groups.values()) == 30
    mean = sum(g.n_prompts * g.metric for g in record.groups.values()) / 30
    assert mean == pytest.approx(record.metric)
    assert (record.model, record.task, record.seed) == (model.name, task.name, 2)
    assert measure_behaviour(model, task, 30, seed=2) == record
