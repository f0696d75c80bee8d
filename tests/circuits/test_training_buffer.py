"""Batches of activations: what is in them, and what they do not depend on."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from circuits.sites import Site
from circuits.training.buffer import ActivationSource, activations
from circuits.training.processes import Processes
from tests.circuits.training_models import random_rows, small_gpt2

READ, WRITE, DEEP = Site("mlp_in", 0), Site("mlp_raw_out", 0), Site("resid_post", 1)
ROWS = random_rows(10)
ROWS[3, 7:] = -1
ROWS[4, 5] = 0
N_TOKENS = 10 * 11 - 5 - 1


def source(sites: list[Site], **changes) -> ActivationSource:
    settings = {
        "bos": 0,
        "batch_size": 12,
        "chunk_tokens": 40,
        "cache_bytes": 1e9,
        "seed": 1,
        "model_batch_rows": 2,
    }
    return ActivationSource(small_gpt2(), ROWS, sites, **(settings | changes))


def batches(of: ActivationSource, site: Site, n: int, start: int = 0) -> list[Tensor]:
    return [gather(site, "x").clone() for gather in islice(of.batches(start), n)]


@pytest.mark.parametrize("cache_bytes", [1e9, 0.0], ids=["cached", "streamed"])
def test_an_epoch_serves_positions_once_and_leaves_bos_and_padding_out(cache_bytes: float) -> None:
    of = source([READ], cache_bytes=cache_bytes)
    assert of.n_tokens == N_TOKENS
    epoch = torch.cat(batches(of, READ, 6))
    _, values = small_gpt2().run(torch.where(ROWS < 0, 0, ROWS), capture=[READ])
    wanted = values[READ][:, 1:].flatten(0, 1)
    distances = torch.cdist(epoch.double(), wanted.double())
    nearest = distances.argmin(1)
    assert distances.min(1).values.max() < 1e-5
    assert len(nearest.unique()) == len(epoch) == 6 * 12
    left_out = {*range(3 * 11 + 6, 4 * 11), 4 * 11 + 4}
    assert not left_out & set(nearest.tolist())
    assert nearest.tolist() != sorted(nearest.tolist())


def test_epochs_have_orders_of_their_own() -> None:
    of = source([READ], chunk_tokens=1000, model_batch_rows=10)
    first, second = torch.cat(batches(of, READ, 8)), torch.cat(batches(of, READ, 8, start=8))
    assert not torch.equal(first, second)
    distances = torch.cdist(second.double(), first.double()).min(1).values
    assert (distances < 1e-5).double().mean() > 0.8


@pytest.mark.parametrize(
    "changes",
    [{"cache_bytes": 0.0}, {"processes": Processes(0, 1)}, {}],
    ids=["streamed", "alone", "with other sites"],
)
def test_batches_have_the_same_bits_however_they_are_made(changes: dict) -> None:
    wanted = batches(source([READ]), READ, 30)
    found = batches(source([READ, WRITE, DEEP], **changes), READ, 30)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize("cache_bytes", [1e9, 0.0], ids=["cached", "streamed"])
@pytest.mark.parametrize("start", [1, 5, 17])
def test_batch_i_is_the_same_from_wherever_one_starts(cache_bytes: float, start: int) -> None:
    whole = batches(source([READ], cache_bytes=cache_bytes), READ, 25)
    late = batches(source([READ], cache_bytes=cache_bytes), READ, 25 - start, start=start)
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], late, strict=True))


def test_the_seed_decides_the_order() -> None:
    one, other = (torch.cat(batches(source([READ], seed=seed), READ, 3)) for seed in (1, 2))
    assert not torch.equal(one, other)


def test_the_first_chunk_is_what_the_first_batches_are_from() -> None:
    of = source([READ], cache_bytes=0.0)
    first, served = of.first(READ), torch.cat(batches(of, READ, 1))
    assert 12 <= len(first) < 60
    assert (torch.cdist(served.double(), first.double()).min(1).values < 1e-5).all()


@pytest.mark.parametrize("cache_bytes", [1e9, 0.0], ids=["cached", "streamed"])
def test_each_row_runs_through_the_model_as_often_as_needed(cache_bytes: float) -> None:
    done: list[int] = []
    of = source([READ], cache_bytes=cache_bytes, progress=done.append)
    of.first(READ)
    batches(of, READ, 12)
    assert sum(done) == (N_TOKENS if cache_bytes else 2 * N_TOKENS)


def test_a_chunk_of_all_rows_is_kept_without_a_cache() -> None:
    done: list[int] = []
    of = source([READ], cache_bytes=0.0, progress=done.append, chunk_tokens=N_TOKENS)
    batches(of, READ, 24)
    assert sum(done) == N_TOKENS


@pytest.mark.parametrize("chunk_tokens", [1, 7, 13, 50, 10_000])
def test_every_size_of_chunk_makes_batches(chunk_tokens: int) -> None:
    for batch_size in (1, 12, 53, N_TOKENS):
        of = source([READ], chunk_tokens=chunk_tokens, batch_size=batch_size)
        assert len(batches(of, READ, 1)[0]) == batch_size


def test_too_few_tokens_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="has 104 tokens to train on, fewer than one batch of 105"):
        source([READ], batch_size=105)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 12 cannot be shared evenly by 5"):
        source([READ], processes=Processes(0, 5))


def test_passes_of_other_sizes_give_the_same_values() -> None:
    model = small_gpt2()
    whole = activations(model, ROWS, [READ, DEEP], bos=0)
    parts = activations(model, ROWS, [READ, DEEP], bos=0, batch_rows=3)
    for site, values in whole.items():
        assert values.shape == (N_TOKENS, 16)
        torch.testing.assert_close(parts[site], values)
