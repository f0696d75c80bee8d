"""The dry run: numbers that can be known, times that are plausible, nothing written."""

import pytest
import torch

from circuits.training import TrainingConfig, plan
from circuits.training.measuring import seconds_of
from circuits.training.plan import plan_training
from tests.circuits.training_models import small_gpt2

BASE = TrainingConfig(
    model="small",
    n_features=48,
    k=4,
    n_tokens=1000,
    batch_size=64,
    n_text_tokens=12 * 50,
    context=12,
    n_eval_rows=10,
    buffer_tokens=100,
    activation_cache_gb=0.0,
)
N_PARAMETERS = 2 * 48 * 16 + 48 + 16


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_sizes_are_counted() -> None:
    jump = BASE.model_copy(update={"architecture": "jumprelu", "layers": (1,)})
    plan = plan_training({"top": BASE, "jump": jump}, small_gpt2())
    assert plan.dictionaries == {"top": 2, "jump": 1}
    assert plan.parameters == {"top": 2 * N_PARAMETERS, "jump": N_PARAMETERS + 48}
    assert plan.steps == 15
    assert plan.tokens == 15 * 64
    assert plan.text_tokens == 40 * 11
    assert plan.optimiser_bytes == 4 * 4 * (3 * N_PARAMETERS + 48)
    assert plan.activation_bytes == 4 * 88 * 16 * 4, "four sites, five chunks of 88 tokens"
    assert not plan.activations_kept
    assert plan.step_bytes == 5 * 64 * 48


def test_a_cache_holds_the_whole_text() -> None:
    plan = plan_training({"": BASE.model_copy(update={"activation_cache_gb": 1.0})}, small_gpt2())
    assert plan.activations_kept
    assert plan.activation_bytes == 4 * 440 * 16 * 4


def test_times_add_up_and_grow_with_the_work() -> None:
    model = small_gpt2()
    short = plan_training({"": BASE}, model)
    long = plan_training({"": BASE.model_copy(update={"n_tokens": 100_000})}, model)
    parts = short.seconds
    total = parts.text + parts.model + parts.training + parts.fidelity
    assert short.seconds_total == pytest.approx(total)
    assert min(parts.text, parts.model, parts.training, parts.fidelity) > 0
    assert long.seconds.training > 20 * parts.training
    assert long.seconds.model > 20 * parts.model
    given = BASE.model_copy(update={"text": "a.txt"})
    assert plan_training({"": given}, model).seconds.text == 0


def test_times_are_those_of_the_parts_as_often_as_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "step_of", lambda *_: (7, 0.5))
    monkeypatch.setattr(plan, "seconds_to_read", lambda *_: (0.1, 0.2))
    monkeypatch.setattr(plan, "seconds_to_sample", lambda *_: 3.0)
    seconds = plan_training({"a": BASE, "b": BASE}, small_gpt2()).seconds
    assert seconds.text == 3
    assert seconds.model == pytest.approx(0.1 * 15 * 64 / 11)
    assert seconds.training == pytest.approx(2 * 2 * 15 * 0.5), "variants, layers, steps"
    assert seconds.fidelity == pytest.approx(0.2 * 10 * (2 + 4 + 2 + 2 * (2 + 1)))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="has layers 0 to 1, got \\[5\\]"):
        plan_training({"": BASE.model_copy(update={"layers": (5,)})}, small_gpt2())
    with pytest.raises(ValueError, match="context is 12 for 'a' and 13 for 'b'"):
        plan_training({"a": BASE, "b": BASE.model_copy(update={"context": 13})}, small_gpt2())


def test_the_first_run_is_not_counted() -> None:
    calls = []
    assert seconds_of(lambda: calls.append(1), torch.device("cpu")) < 0.1
    assert len(calls) == 4
