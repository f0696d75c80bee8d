"""BatchTopK: an exact choice from a sampled floor, and the threshold that stands in for a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.training import entries
from circuits.training.architectures import batchtopk
from circuits.training.architectures.auxk import AuxK
from circuits.training.architectures.batchtopk import BatchTopK, kept_entries, largest, track
from circuits.training.architectures.matryoshka import Matryoshka, group_bounds
from circuits.training.entries import GridEntries, ListedEntries
from circuits.training.step import Moment
from tests.circuits.training_problems import NO_DEAD, moment, problem


@settings(deadline=None)
@given(st.lists(st.integers(-3, 4), min_size=1, max_size=30), st.integers(1, 40))
def test_largest_agrees_with_a_stable_sort(values: list[int], n: int) -> None:
    given_values = torch.tensor(values, dtype=torch.float64)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]
    wanted = [i in order and values[i] > 0 for i in range(len(values))]
    assert largest(given_values, n).tolist() == wanted


def _identity(z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """An encoder whose pre-activations on the second thing returned are `z`."""
    n_features = z.shape[1]
    p = {"W_enc": torch.eye(n_features).to(z), "b_enc": torch.zeros(n_features).to(z)}
    return p, z


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("n", [1, 500, 3000])
def test_exactly_the_largest_of_a_batch_are_kept(
    share: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(entries.DENSE_SHARE, "cpu", share)
    z = torch.randn(500, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = kept_entries(*_identity(z), z, n, moment())
    assert isinstance(found, GridEntries if share == 0 else ListedEntries)
    wanted = z.flatten().sort(descending=True).values[:n]
    kept = found.raw[found.raw > 0]
    assert torch.equal(kept.sort(descending=True).values, wanted)


def test_a_floor_that_was_too_high_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 102nd entry is large, and these are what the sample sees."""
    monkeypatch.setattr(batchtopk, "_SAMPLE", 100)
    monkeypatch.setitem(entries.DENSE_SHARE, "cpu", 2.0)
    z = torch.rand(100, 101, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z.view(-1)[::102] += 10
    tried = []
    plain = entries.entries_above

    def spy(p: dict[str, Tensor], x: Tensor, zz: Tensor, floor: float, now: Moment):
        tried.append(floor)
        return plain(p, x, zz, floor, now)

    monkeypatch.setattr(batchtopk, "entries_above", spy)
    found = kept_entries(*_identity(z), z, 400, moment())
    assert len(tried) > 1
    assert tried == sorted(tried, reverse=True)
    wanted = z.flatten().sort(descending=True).values[:400]
    assert torch.equal(found.raw.sort(descending=True).values, wanted)


def test_the_sample_visits_every_feature() -> None:
    """A distance that divides the number of features would see a few of them again and again."""
    z = torch.zeros(4096, 64)
    z[:, 1::2] = torch.linspace(1, 2, 4096 * 32).view(4096, 32)
    floor = batchtopk._exceeded_by(z, 0.25)
    assert (z > floor).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_ties_fall_to_the_earliest_tokens_and_less_than_asked_is_kept_if_little_is_positive() -> (
    None
):
    z = torch.zeros(3, 4, dtype=torch.float64)
    z[:, 1:3] = 1.0
    found = kept_entries(*_identity(z), z, 3, moment())
    assert found.decode(found.raw, torch.eye(4).double()).tolist() == [
        [0, 1, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]
    z[z == 0] = -1.0
    found = kept_entries(*_identity(z), z, 9, moment())
    assert (found.raw > 0).sum() == 6


def test_the_threshold_is_the_mean_of_what_the_smallest_kept_were() -> None:
    architecture, memory = BatchTopK(1, AuxK(1, 0.0)), {}
    p, x, _ = problem(0, skip=False)
    architecture.begin(p, memory, x)
    smallest = [0.5, 1.5, 4.0]
    for value in smallest:
        track(memory, torch.tensor([9.0, value, 0.0, value + 1]), moment())
    assert memory["threshold"].dtype == torch.float64
    assert memory["threshold"].item() == pytest.approx(sum(smallest) / 3)
    track(memory, torch.tensor([0.0]), moment())
    assert memory["threshold"].item() == pytest.approx(2.0)
    memory["steps"].fill_(100_000)
    track(memory, torch.tensor([3.0]), moment())
    assert memory["threshold"].item() == pytest.approx(2.0 + 0.01 * (3 - 2))
    finished = architecture.finish(p, memory)
    assert finished.activation == "jumprelu"
    assert finished.threshold is not None
    torch.testing.assert_close(finished.threshold, torch.full_like(p["b_enc"], 2.01))


def test_the_threshold_is_the_mean_over_processes() -> None:
    architecture, memory = BatchTopK(2, AuxK(1, 0.0)), {}
    p, x, y = problem(1, skip=False)
    architecture.begin(p, memory, x)
    now = Moment(dead=NO_DEAD, mean=lambda value: (value + 5.0) / 2)
    step = architecture.step(p, memory, x, y, now)
    assert step.l0 == 2
    z = x @ p["W_enc"].T + p["b_enc"]
    own = z.flatten().sort(descending=True).values[2 * len(x) - 1].item()
    assert memory["threshold"].item() == pytest.approx((own + 5) / 2)


def test_groups_need_features() -> None:
    assert group_bounds((0.0625, 0.1875, 0.75), 128) == [0, 8, 32, 128]
    p, x, _ = problem(0, skip=False)
    with pytest.raises(ValueError, match=r"every group needs a feature.*0\.01"):
        Matryoshka(BatchTopK(1, AuxK(1, 0.0)), (0.01, 0.99)).begin(p, {}, x)
