"""Fidelity metrics on plain tensors: perfect, useless and by hand."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.metrics import (
    LOG10_DENSITY_EDGES,
    ce_recovered,
    cosine,
    dead_share,
    density_histogram,
    explained_variance,
    fvu,
    kl_divergence,
    kl_recovered,
    l0,
    l2_ratio,
    reconstruction_bias,
)
from circuits.reconstruction import ReconstructionSums

RATIOS = (fvu, explained_variance, cosine, l2_ratio, reconstruction_bias)


def random_pair(seed: int = 0, n: int = 60, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A target far from 0, and a poor reconstruction of it."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(n, d, generator=generator, dtype=torch.float64) * 3 + 4
    return y, 0.8 * y + torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_a_perfect_reconstruction() -> None:
    y, _ = random_pair()
    assert fvu(y, y) == 0
    assert explained_variance(y, y) == 1
    assert cosine(y, y) == pytest.approx(1, abs=1e-12)
    assert l2_ratio(y, y) == 1
    assert reconstruction_bias(y, y) == 1


def test_predicting_the_mean_explains_nothing() -> None:
    y, _ = random_pair()
    mean = y.mean(0).expand_as(y)
    assert fvu(y, mean) == pytest.approx(1, abs=1e-12)
    assert explained_variance(y, mean) == pytest.approx(0, abs=1e-12)


def test_predicting_zero() -> None:
    y, _ = random_pair()
    zero = torch.zeros_like(y)
    variance = (y - y.mean(0)).square().sum()
    assert fvu(y, zero) == pytest.approx(float(y.square().sum() / variance), rel=1e-12)
    assert cosine(y, zero) == 0
    assert l2_ratio(y, zero) == 0
    assert reconstruction_bias(y, zero) is None


def test_two_tokens_by_hand() -> None:
    # Errors (1, 0) and (0, 2): 5 in all. Mean (1, 3); squared distances 1 + 1 and 1 + 1: 4 in all.
    y = torch.tensor([[2.0, 4.0], [0.0, 2.0]])
    y_hat = torch.tensor([[1.0, 4.0], [0.0, 4.0]])
    assert fvu(y, y_hat) == 5 / 4
    assert explained_variance(y, y_hat) == -1 / 4
    first = 18 / math.sqrt(20 * 17)
    assert cosine(y, y_hat) == pytest.approx((first + 1) / 2, rel=1e-12)
    assert l2_ratio(y, y_hat) == pytest.approx((math.sqrt(17 / 20) + 2) / 2, rel=1e-12)
    assert reconstruction_bias(y, y_hat) == pytest.approx((17 + 16) / (18 + 8), rel=1e-12)


def test_halving_the_reconstruction_is_shrinkage_by_half() -> None:
    y, _ = random_pair()
    assert l2_ratio(y, y / 2) == 0.5
    assert reconstruction_bias(y, y / 2) == pytest.approx(0.5, rel=1e-12)
    assert cosine(y, y / 2) == pytest.approx(1, abs=1e-12)


def test_the_bias_is_one_over_the_best_scale() -> None:
    y, y_hat = random_pair(1)
    bias = reconstruction_bias(y, y_hat)
    assert bias is not None
    best = 1 / bias
    errors = [float((y - c * y_hat).square().sum()) for c in (best - 1e-3, best, best + 1e-3)]
    assert errors[1] == min(errors)


def test_explained_variance_is_about_the_mean_not_zero() -> None:
    """sae-bench divides by E|y|^2: a large mean then looks like fidelity."""
    y, y_hat = random_pair()
    moment = y.square().sum(1).mean() - y.mean(0).square().sum()
    error = (y - y_hat).square().sum(1).mean()
    assert explained_variance(y, y_hat) == pytest.approx(float(1 - error / moment), rel=1e-10)
    shifted = explained_variance(y + 1000, y_hat + 1000)
    assert shifted == pytest.approx(explained_variance(y, y_hat), rel=1e-9)


def test_more_of_the_same_tokens_change_no_ratio() -> None:
    """sae-bench divides the squared error by the number of tokens twice."""
    y, y_hat = random_pair()
    for metric in RATIOS:
        once, thrice = metric(y, y_hat), metric(y.repeat(3, 1), y_hat.repeat(3, 1))
        assert thrice == pytest.approx(once, rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 50))
def test_batches_of_any_size_add_up(cuts: list[int], seed: int) -> None:
    y, y_hat = random_pair(seed)
    whole, parts = ReconstructionSums(), ReconstructionSums()
    whole.add(y, y_hat)
    edges = [0, *sorted(cuts), len(y)]
    for start, stop in pairwise(edges):
        parts.add(y[start:stop], y_hat[start:stop])
    assert parts.n_tokens == whole.n_tokens == 60
    torch.testing.assert_close(parts.mean, y.mean(0), atol=1e-12, rtol=1e-12)
    for name in ("fvu", "cosine", "l2_ratio", "reconstruction_bias"):
        assert getattr(parts, name)() == pytest.approx(getattr(whole, name)(), rel=1e-11)


def test_fvu_is_relative_to_the_whole_sample_not_the_batch() -> None:
    sums = ReconstructionSums()
    sums.add(torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [0.0]]))
    sums.add(torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    assert sums.fvu() == 2 / 4
    assert sums.mean.tolist() == [1.0]


def test_float32_is_summed_in_float64() -> None:
    """A float32 sum of 0.1 loses digits after some thousand terms."""
    y = torch.full((20_000, 1), 0.1).index_fill(0, torch.tensor([0]), 0.3)
    sums = ReconstructionSums()
    for part in y.split(7):
        sums.add(part, torch.zeros_like(part))
    exact = y.double()
    expected = exact.square().sum() / (exact - exact.mean(0)).square().sum()
    assert sums.fvu() == pytest.approx(float(expected), rel=1e-9)


def test_fvu_of_a_far_mean_loses_no_digits() -> None:
    y = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert fvu(y + 1e7, y + 1e7 + 0.5) == pytest.approx(fvu(y, y + 0.5), rel=1e-6)


def test_zero_targets_count_in_the_error_but_have_no_cosine_or_ratio() -> None:
    y = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    y_hat = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert cosine(y, y_hat) == 1
    assert l2_ratio(y, y_hat) == 1
    assert fvu(y, y_hat) == pytest.approx(1 / (2 * 2.5**2), rel=1e-12)


@pytest.mark.parametrize("metric", [cosine, l2_ratio])
def test_zero_targets_alone_are_refused(metric) -> None:
    with pytest.raises(ValueError, match="target that is not zero, got zeros on all 3 tokens"):
        metric(torch.zeros(3, 2), torch.ones(3, 2))


def test_fvu_without_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="target that varies, got 3 tokens"):
        fvu(torch.ones(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="target that varies, got 0 tokens"):
        fvu(torch.ones(0, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="no token to average over"):
        _ = ReconstructionSums().mean


def test_l0_and_dead_share_by_hand() -> None:
    a = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 3.0]])
    assert l0(a) == 1.5
    assert dead_share(a) == 0.5
    assert l0(torch.zeros(2, 3)) == 0
    assert dead_share(torch.zeros(2, 3)) == 1


def test_density_bins_by_hand() -> None:
    density = torch.tensor([0.0, 1e-9, 1e-7, 1e-2, 0.0099, 0.1, 0.5, 1.0], dtype=torch.float64)
    counts = density_histogram(density)
    assert len(counts) == len(LOG10_DENSITY_EDGES) - 1
    found = {LOG10_DENSITY_EDGES[i]: n for i, n in enumerate(counts) if n}
    assert found == {-7.0: 2, -2.25: 1, -2.0: 1, -1.0: 1, -0.5: 1, -0.25: 1}


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40))
def test_every_living_feature_is_in_one_bin(firings: list[int]) -> None:
    density = torch.tensor(firings).double() / 500
    counts = density_histogram(density)
    assert sum(counts) == sum(n > 0 for n in firings)
    for i, count in enumerate(counts[1:-1], 1):
        low, high = 10 ** LOG10_DENSITY_EDGES[i], 10 ** LOG10_DENSITY_EDGES[i + 1]
        near = sum(low * (1 + 1e-9) < d < high * (1 - 1e-9) for d in density.tolist())
        reach = sum(low * (1 - 1e-9) < d < high * (1 + 1e-9) for d in density.tolist())
        assert near <= count <= reach


def test_kl_is_torch_s_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 30, 11, generator=generator, dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(log_p, log_q), expected, atol=1e-12, rtol=1e-12)
    assert (kl_divergence(log_p, log_p) == 0).all()
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    p, q = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]], dtype=torch.float64)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(by_hand, rel=1e-12)


def test_kl_of_what_is_impossible() -> None:
    """log(softmax) would give nan: 0 log 0 counts nothing, and what q excludes is infinite."""
    p = torch.tensor([[1.0, 0.0]]).log()
    assert kl_divergence(p, p).item() == 0
    assert kl_divergence(p, torch.tensor([[0.5, 0.5]]).log()).item() == pytest.approx(math.log(2))
    assert kl_divergence(p, torch.tensor([[0.0, 1.0]]).log()).item() == math.inf
    far = torch.tensor([[0.0, 400.0]]).log_softmax(-1)
    assert kl_divergence(far, -far - 400).item() == pytest.approx(400)


def test_recovered_anchors() -> None:
    assert ce_recovered(1.0, 1.0, 3.0) == 1
    assert ce_recovered(1.0, 3.0, 3.0) == 0
    assert ce_recovered(1.0, 1.5, 3.0) == 0.75
    assert ce_recovered(1.0, 4.0, 3.0) == -0.5
    assert kl_recovered(0.0, 2.0) == 1
    assert kl_recovered(2.0, 2.0) == 0
    assert kl_recovered(0.5, 2.0) == 0.75


def test_nothing_to_recover_is_refused() -> None:
    for ablated in (1.0, 0.9):
        with pytest.raises(ValueError, match="not above the clean one"):
            ce_recovered(1.0, 1.0, ablated)
    with pytest.raises(ValueError, match="changes no prediction"):
        kl_recovered(0.0, 0.0)
