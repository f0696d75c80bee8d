"""Dictionaries from any iterator of activations, without a language model."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from circuits.checkpoints import load_dictionary
from circuits.dictionaries import SAE, Transcoder
from circuits.training import DictionaryConfig, fit
from circuits.training.from_batches import recut
from circuits.training.learner import Learner

CONFIG = DictionaryConfig(
    n_features=48, k=4, n_tokens=40 * 64, batch_size=64, lr=1e-2, dead_after_tokens=300
)
Pair = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache  # `fit` calls for it under another matmul precision than the tests
def data() -> Pair:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40 * 64, 10, generator=generator) + 3
    return x, torch.tanh(x @ torch.randn(10, 7, generator=generator))


def pieces(*sizes: int) -> list[Pair]:
    x, y = data()
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def from_step(step: int) -> Iterator[Pair]:
    x, y = data()
    yield x[64 * step :], y[64 * step :]


class Stopped(Exception):
    pass


def stopping(after: int) -> Callable[[int], Iterator[Pair]]:
    """Batches that fail once the learner has had `after` of them."""
    calls: list[int] = []

    def batches(step: int) -> Iterator[Pair]:
        calls.append(step)
        if len(calls) == 1:  # for means and scales
            yield from from_step(step)
        yield from islice(recut(from_step(step), 64), after)
        raise Stopped

    return batches


def test_it_is_the_learner_on_the_batches_in_their_order() -> None:
    x, y = data()
    with torch.no_grad():
        learner = Learner.start(CONFIG, "mlp", x, y, seed=CONFIG.seed)
        for step in range(40):
            learner.learn(x[64 * step : 64 * step + 64], y[64 * step : 64 * step + 64], step)
        wanted = learner.dictionary()
    found = fit(CONFIG, from_step, progress=False)
    assert isinstance(found, Transcoder)
    torch.testing.assert_close(found.W_enc, wanted.W_enc, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.W_dec, wanted.W_dec, rtol=1e-5, atol=1e-5)
    error = (found(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert error < 0.6


@pytest.mark.parametrize("sizes", [(2560,), (64,) * 40, (1, 100, 2400, 59), (1000, 1000, 560)])
def test_batches_of_any_size_give_the_same_bits(sizes: tuple[int, ...]) -> None:
    wanted = fit(CONFIG, from_step, progress=False)
    found = fit(CONFIG, iter(pieces(*sizes)), progress=False)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_recutting_keeps_tokens_and_their_order(sizes: list[int], size: int) -> None:
    x = torch.arange(sum(sizes), dtype=torch.float32)[:, None]
    parts = list(zip(x.split(sizes), (-x).split(sizes), strict=True)) if sizes else []
    found = list(recut(parts, size))
    assert [len(a) for a, _ in found] == [size] * (len(x) // size)
    joined = torch.cat([x[:0], *(a for a, _ in found)])
    assert torch.equal(joined, x[: len(joined)])
    assert all(torch.equal(a, -b) for a, b in found)


def test_an_sae_is_fitted_to_pairs_of_the_same(tmp_path: Path) -> None:
    x, y = data()
    sae = fit(CONFIG, [(x, x)], site="resid_post", progress=False)
    assert isinstance(sae, SAE)
    assert sae.site == "resid_post"
    with pytest.raises(ValueError, match="at site resid_post x and y are the same; got"):
        fit(CONFIG, [(x, y)], site="resid_post", progress=False)


@pytest.mark.parametrize("after", [7, 24, 39])
def test_an_interrupted_fit_goes_on_to_the_same_bytes(after: int, tmp_path: Path) -> None:
    whole = fit(CONFIG, from_step, out=tmp_path / "whole", progress=False, layer=3, model="m")
    out, settings = tmp_path / "parts", {"progress": False, "layer": 3, "model": "m"}
    with pytest.raises(Stopped):
        fit(CONFIG, stopping(after), out=out, checkpoint_every=5, **settings)
    assert (out / "checkpoint.safetensors").exists()
    parts = fit(CONFIG, from_step, out=out, checkpoint_every=5, **settings)
    assert torch.equal(parts.W_dec, whole.W_dec)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert {path.name for path in out.iterdir()} == {"config.json", "mlp.3.safetensors"}
    layer, loaded = load_dictionary(out / "mlp.3.safetensors")
    assert layer == 3
    assert torch.equal(loaded.W_enc, whole.W_enc)
    again = fit(CONFIG, stopping(0), out=out, **settings)
    assert torch.equal(again.W_enc, whole.W_enc)


def test_a_folder_of_another_fit_is_refused(tmp_path: Path) -> None:
    fit(CONFIG, from_step, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"other settings \(dictionary 'mlp.0' not 'mlp.1'\)"):
        fit(CONFIG, from_step, out=tmp_path, layer=1, progress=False)


def test_a_folder_needs_batches_that_can_be_made_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batches must be a function of the number of a step"):
        fit(CONFIG, pieces(2560), out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_batches_that_end_too_early_are_an_error() -> None:
    with pytest.raises(ValueError, match="the batches ended after 39 of 40 steps; give more"):
        fit(CONFIG, pieces(2559, 1)[:1], progress=False)
    with pytest.raises(ValueError, match="there are no batches to train on"):
        fit(CONFIG, [], progress=False)


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.zeros(3, 10), torch.zeros(4, 7)),
        (torch.zeros(3, 9), torch.zeros(3, 7)),
        (torch.zeros(3, 10), torch.zeros(3, 10)),
        (torch.zeros(10), torch.zeros(7)),
        (torch.zeros(1, 3, 10), torch.zeros(1, 3, 7)),
    ],
)
def test_pairs_that_do_not_fit_are_named(wrong: Pair) -> None:
    with pytest.raises(ValueError, match=r"want x \[token, d_in\] and y \[token, d_out\]"):
        fit(CONFIG, [*pieces(100, 2460)[:1], wrong], progress=False)
    with pytest.raises(ValueError, match=r"want x \[token, d_in\] and y \[token, d_out\]"):
        list(recut([*pieces(100, 2460)[:1], wrong], 64))


def test_nothing_about_language_models_is_imported() -> None:
    program = (
        "import sys, torch\n"
        "from circuits.training import DictionaryConfig, fit\n"
        "x = torch.randn(64, 4)\n"
        "fit(DictionaryConfig(n_features=8, k=2, n_tokens=64, batch_size=16), [(x, x)])\n"
        "heavy = {'transformers', 'transformer_lens', 'tokenizers', 'circuits.subject'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
