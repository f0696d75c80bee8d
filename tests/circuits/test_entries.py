"""Entries as a list and as a grid: the same numbers, found by one dense product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.training import entries as module
from circuits.training.entries import (
    Entries,
    GridEntries,
    ListedEntries,
    chosen_entries,
    entries_above,
    pre_activations,
)
from circuits.training.step import Moment, Workspace
from tests.circuits.training_problems import NO_DEAD, moment


def _pair(seed: int, *, n: int = 7, f: int = 6, d: int = 3) -> tuple[Tensor, ListedEntries, Tensor]:
    """Pre-activations with 0 where inactive, their list, and which they are."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, f, generator=generator) < 0.4
    z = torch.randn(n, f, generator=generator, dtype=torch.float64) * active
    token, feature = active.nonzero().T
    return z, ListedEntries(z[token, feature], token, feature, (n, f)), active


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 8))
def test_a_list_and_a_grid_do_the_same(seed: int, n: int, f: int) -> None:
    z, listed, active = _pair(seed, n=n, f=f)
    grid = GridEntries(z)
    generator = torch.Generator().manual_seed(seed + 1)
    W_dec = torch.randn(f, 4, generator=generator, dtype=torch.float64)
    rows = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    g_out = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    close = torch.testing.assert_close
    close(listed.decode(listed.raw, W_dec), z @ W_dec)
    close(grid.decode(grid.raw, W_dec), z @ W_dec)
    close(listed.sums(listed.raw), z.sum(0))
    close(grid.sums(grid.raw), z.sum(0))
    close(listed.value_gradients(W_dec, g_out), (g_out @ W_dec.T)[active])
    close(grid.value_gradients(W_dec, g_out), g_out @ W_dec.T)
    for some in (listed, grid):
        first, second = some.weight_gradients([(some.raw, g_out), (some.raw.square(), rows)])
        close(first, z.T @ g_out)
        close(second, z.square().T @ rows)
        assert torch.equal(some.fired(some.raw), (z > 0).any(0))
    each = torch.arange(f, dtype=torch.float64)
    close(listed.at(each), each.expand(n, f)[active])
    assert torch.equal(grid.at(each).expand(n, f), each.expand(n, f))


@pytest.mark.parametrize("start", [0, 2])
def test_select_and_group_keep_what_they_should(start: int) -> None:
    z, listed, _ = _pair(5)
    W_dec = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = z.clamp_min(0)[:, start:4] @ W_dec[start:4]
    some: Entries
    for some in (listed, GridEntries(z)):
        part = some.select(some.raw > 0).group(start, 4)
        torch.testing.assert_close(part.decode(part.raw, W_dec[start:4]), wanted)
        assert part.sums(part.raw).shape == (4 - start,)


def _encoder(seed: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = {
        "W_enc": torch.randn(96, 32, generator=generator, dtype=dtype),
        "b_enc": torch.randn(96, generator=generator, dtype=dtype),
    }
    x = torch.randn(50, 32, generator=generator, dtype=dtype)
    return p, x, x @ p["W_enc"].T + p["b_enc"]


def test_entries_above_a_floor_are_all_of_them_and_no_others() -> None:
    p, x, wanted = _encoder(0, torch.float64)
    floor = torch.linspace(9, 12, 96, dtype=torch.float64)
    z = pre_activations(p, x, moment())
    found = entries_above(p, x, z, floor, moment())
    assert isinstance(found, ListedEntries)
    above = wanted > floor
    assert 10 < above.sum() < above.numel() / 12
    assert torch.equal(torch.stack([found.token, found.feature], 1), above.nonzero())
    torch.testing.assert_close(found.raw, wanted[above])


@pytest.mark.parametrize(("share", "kind"), [(0.02, GridEntries), (0.2, ListedEntries)])
def test_many_entries_become_a_grid(
    share: float, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, x, wanted = _encoder(1, torch.float64)
    monkeypatch.setitem(module.DENSE_SHARE, "cpu", share)
    floor = wanted.flatten().sort(descending=True).values[wanted.numel() // 10].item()
    found = entries_above(p, x, pre_activations(p, x, moment()), floor, moment())
    assert isinstance(found, kind)
    assert (found.raw > floor).sum() == (wanted > floor).sum()


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["dense", "sparse"])
def test_what_a_bfloat16_encoder_chooses_is_computed_in_full(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.DENSE_SHARE, "cpu", share)
    p, x, wanted = _encoder(2, torch.float32)
    low = Moment(dead=NO_DEAD, encode_dtype=torch.bfloat16)
    z = pre_activations(p, x, low)
    assert z.dtype == torch.bfloat16
    assert (z - wanted).abs().max() > 1e-3
    found = entries_above(p, x, z, 8.0, low)
    scale = wanted.abs().max().item()
    if isinstance(found, ListedEntries):
        exact = wanted[found.token, found.feature]
        torch.testing.assert_close(found.raw, exact, rtol=0.0, atol=1e-6 * scale)
        by_index = chosen_entries(p, x, z, z.topk(3).indices)
        assert isinstance(by_index, ListedEntries)
        exact = wanted[by_index.token, by_index.feature]
        torch.testing.assert_close(by_index.raw, exact, rtol=0.0, atol=1e-6 * scale)
    else:
        torch.testing.assert_close(found.raw, wanted, rtol=0.0, atol=1e-6 * scale)


def test_a_workspace_gives_the_same_memory_again_and_more_when_asked() -> None:
    work, like = Workspace(), torch.zeros(1)
    first = work.take("z", 4, 3, like=like)
    assert work.take("z", 2, 5, like=like).data_ptr() == first.data_ptr()
    assert work.take("z", 2, 5, like=like).shape == (2, 5)
    assert work.take("y", 4, 3, like=like).data_ptr() != first.data_ptr()
    assert work.take("z", 7, 3, like=like).shape == (7, 3)
    assert work.take("z", 4, 3, like=like, dtype=torch.bool).dtype == torch.bool
