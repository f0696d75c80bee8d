"""Fidelity metrics: perfect, useless and by hand, then in a model."""

import math

import pytest
import torch

from circuits import SAE, SplicedModel, Transcoder
from circuits.fidelity import cross_entropy, evaluate
from circuits.metrics import SquaredError, ce_recovered, dead_share, fvu, l0
from circuits.sites import Site
from tests.circuits.training_models import random_rows, small_gpt2


def test_fvu_anchors() -> None:
    y = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 3 + 50
    assert fvu(y, y) == 0
    assert fvu(y, y.double().mean(0).expand_as(y)) == pytest.approx(1.0, abs=1e-9)
    # Two tokens at 0 and 2 in one dimension: variance 1 + 1, error (0.5)^2 + (0.5)^2.
    assert fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [1.5]])) == 0.25


def test_fvu_is_relative_to_the_whole_sample_not_the_batch() -> None:
    sums = SquaredError(1)
    sums.add(torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [0.0]]))
    sums.add(torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    assert sums.fvu() == 2 / 4
    assert sums.mean.tolist() == [1.0]


def test_fvu_of_a_far_mean_loses_no_digits() -> None:
    y = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert fvu(y + 1e7, y + 1e7 + 0.5) == pytest.approx(fvu(y, y + 0.5), rel=1e-6)


def test_fvu_without_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="target that varies, got 3 tokens"):
        fvu(torch.ones(3, 2), torch.zeros(3, 2))


def test_l0_and_dead_share_by_hand() -> None:
    a = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 3.0]])
    assert l0(a) == 1.5
    assert dead_share(a) == 0.5
    assert l0(torch.zeros(2, 3)) == 0
    assert dead_share(torch.zeros(2, 3)) == 1


def test_ce_recovered_anchors() -> None:
    assert ce_recovered(1.0, 1.0, 3.0) == 1
    assert ce_recovered(1.0, 3.0, 3.0) == 0
    assert ce_recovered(1.0, 1.5, 3.0) == 0.75
    with pytest.raises(ValueError, match="nothing to recover"):
        ce_recovered(1.0, 1.0, 1.0)


def test_cross_entropy_counts_kept_pairs_only() -> None:
    logits = torch.zeros(1, 4, 8)
    tokens = torch.tensor([[0, 1, 2, 3]])
    keep = torch.tensor([[False, True, True, False]])
    total, count = cross_entropy(logits, tokens, keep)
    assert count == 1
    assert total == pytest.approx(math.log(8))


def _identity(site: str) -> SAE:
    """Reconstructs exactly: one feature for each sign of each dimension."""
    eye = torch.eye(16)
    return SAE(
        torch.cat([eye, -eye], 1),
        torch.cat([eye, -eye]),
        torch.zeros(32),
        torch.zeros(16),
        site=site,
    )


def test_perfect_dictionaries_recover_everything() -> None:
    spliced = SplicedModel(
        small_gpt2(),
        {"resid_post.0": _identity("resid_post"), "resid_post.1": _identity("resid_post")},
    )
    report = evaluate(spliced, random_rows(6), batch_rows=4)
    assert report.n_tokens == 6 * 11
    for record in report.dictionaries:
        assert record.fvu < 1e-10
        assert record.l0 == 16
        assert record.dead_share < 0.1
        assert record.cross_entropy.recovered_mean == pytest.approx(1, abs=1e-5)
        assert record.cross_entropy.recovered_zero == pytest.approx(1, abs=1e-5)
    assert report.together["resid_post"].recovered_mean == pytest.approx(1, abs=1e-5)


def test_the_mean_predictor_is_useless() -> None:
    model, rows = small_gpt2(), random_rows(6)
    site = Site("mlp_raw_out", 1)
    _, values = model.run(rows, capture=[site])
    mean = values[site][:, 1:].double().mean((0, 1)).float()
    nothing = Transcoder(torch.zeros(16, 4), torch.zeros(4, 16), torch.zeros(4), mean)
    (record,) = evaluate(SplicedModel(model, {1: nothing}), rows).dictionaries
    assert record.fvu == pytest.approx(1.0, abs=1e-6)
    assert record.l0 == 0
    assert record.dead_share == 1
    assert record.cross_entropy.recovered_mean == pytest.approx(0, abs=1e-5)


def test_zero_ablation_is_the_zero_predictor_and_leaves_bos_alone() -> None:
    model, rows = small_gpt2(), random_rows(6)
    site = Site("mlp_raw_out", 0)
    nothing = Transcoder(torch.zeros(16, 4), torch.zeros(4, 16), torch.zeros(4), torch.zeros(16))
    (record,) = evaluate(SplicedModel(model, {0: nothing}), rows).dictionaries

    def zero(y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[:, :1], torch.zeros_like(y[:, 1:])], 1)

    logits, _ = model.run(rows, edits={site: zero})
    losses = torch.nn.functional.cross_entropy(logits[:, 1:-1].flatten(0, 1), rows[:, 2:].flatten())
    assert record.cross_entropy.zero_ablated == pytest.approx(losses.item(), rel=1e-5)
    assert record.cross_entropy.spliced == pytest.approx(losses.item(), rel=1e-5)
    assert record.cross_entropy.recovered_zero == pytest.approx(0, abs=1e-5)


def test_together_is_all_at_once() -> None:
    model, rows = small_gpt2(), random_rows(6)
    nothing = Transcoder(torch.zeros(16, 4), torch.zeros(4, 16), torch.zeros(4), torch.zeros(16))
    report = evaluate(SplicedModel(model, {0: nothing, 1: nothing}), rows)
    edits = {
        Site("mlp_raw_out", layer): lambda y: torch.cat([y[:, :1], y[:, 1:] * 0], 1)
        for layer in (0, 1)
    }
    logits, _ = model.run(rows, edits=edits)
    loss = torch.nn.functional.cross_entropy(logits[:, 1:-1].flatten(0, 1), rows[:, 2:].flatten())
    assert report.together["mlp"].spliced == pytest.approx(loss.item(), rel=1e-5)
    assert report.together["mlp"].spliced != pytest.approx(
        report.dictionaries[0].cross_entropy.spliced, rel=1e-3
    )


def test_nothing_kept_is_refused() -> None:
    rows = random_rows(2)
    nothing = Transcoder(torch.zeros(16, 4), torch.zeros(4, 16), torch.zeros(4), torch.zeros(16))
    spliced = SplicedModel(small_gpt2(), {0: nothing})
    with pytest.raises(ValueError, match="position and its next token"):
        evaluate(spliced, rows, keep=torch.zeros_like(rows, dtype=torch.bool))
