"""How large a weight is: the closed form against hand-made integrals and sampling."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution.invariant.null import (
    isotropic_significance,
    isotropic_z,
    matched_directions,
    matched_p_value,
    matched_quantile,
    matched_significance,
)
from attribution.invariant.sphere import cosine_p_value, cosine_quantile
from attribution.invariant.strongest import WeightPairs, top_virtual_weights
from attribution.invariant.weights import virtual_weights
from circuits import SplicedModel
from tests import models
from tests.models import D_MODEL

DOUBLE = torch.float64
GRID = torch.tensor([0.0, 1e-6, 0.01, 0.2, 0.5, 0.77, 0.95, 0.999, 1.0], dtype=DOUBLE)
SMALL: dict[int, Callable[[float], float]] = {
    2: lambda c: 2 / math.pi * math.acos(c),
    3: lambda c: 1 - c,
    4: lambda c: 1 - 2 / math.pi * (math.asin(c) + c * math.sqrt(1 - c * c)),
    5: lambda c: 1 - (3 * c - c**3) / 2,
}


@pytest.mark.parametrize("d_model", SMALL)
def test_tails_in_few_dimensions_by_hand(d_model: int):
    want = torch.tensor([SMALL[d_model](c) for c in GRID.tolist()], dtype=DOUBLE)
    assert torch.allclose(cosine_p_value(GRID, d_model), want, rtol=1e-10, atol=1e-15)
    assert torch.equal(cosine_p_value(-GRID, d_model), cosine_p_value(GRID, d_model))


def integral(low: float, d_model: int) -> float:
    """`integral_low^1 (1 - x^2)^((d - 3) / 2) dx` by Simpson's rule in the angle."""
    angle = torch.linspace(0.0, math.acos(low), 200_001, dtype=DOUBLE)
    y = angle.sin() ** (d_model - 2)
    weights = torch.full_like(y, 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    return float((weights * y).sum() * (angle[1] - angle[0]) / 3)


@pytest.mark.parametrize("d_model", [6, 32, 768, 4096])
@pytest.mark.parametrize("z", [0.01, 0.5, 1.0, 1.6, 1.8, 2.5, 5.0, 12.0])
def test_tails_in_many_dimensions_keep_their_relative_precision(d_model: int, z: float):
    cosine = z / math.sqrt(d_model)
    if cosine >= 1:
        assert float(cosine_p_value(torch.tensor(cosine), d_model)) == 0.0
        return
    got = float(cosine_p_value(torch.tensor(cosine, dtype=DOUBLE), d_model))
    want = integral(cosine, d_model) / integral(0.0, d_model)
    assert got == pytest.approx(want, rel=1e-9)


def test_many_dimensions_approach_the_normal_distribution():
    z = torch.tensor([0.5, 1.0, 2.0]).double()
    got = cosine_p_value(z / 1000.0, 1_000_000)
    assert torch.allclose(got, torch.special.erfc(z / math.sqrt(2)), rtol=1e-5)


def uniform_directions(n: int, d_model: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(n, d_model, generator=generator, dtype=torch.float64)
    return normal / normal.norm(dim=1, keepdim=True)


def test_the_closed_form_against_sampling():
    """Standard deviation and tail of `<e, d>` over 200,000 random directions of one norm."""
    encoder, norm = torch.linspace(-1.0, 3.0, 16).double(), 2.5
    weights = norm * uniform_directions(200_000, 16) @ encoder
    size = torch.tensor(float(encoder.norm()))
    z = isotropic_z(weights, size.double(), torch.tensor(norm).double(), 16)
    assert float(z.std()) == pytest.approx(1.0, abs=0.006)
    for p in (0.5, 0.1, 0.01):
        threshold = cosine_quantile(p, 16) * norm * float(size)
        share = float((weights.abs() > threshold).double().mean())
        assert share == pytest.approx(p, abs=4 * math.sqrt(p / 200_000))


@settings(max_examples=15, deadline=None)
@given(p=st.floats(1e-12, 1.0), d_model=st.integers(16, 2000))
def test_the_quantile_inverts_the_tail(p: float, d_model: int):
    cosine = cosine_quantile(p, d_model)
    back = float(cosine_p_value(torch.tensor(cosine, dtype=DOUBLE), d_model))
    assert back == pytest.approx(p, rel=1e-6, abs=1e-15)


def test_a_direction_of_norm_zero_stands_out_from_nothing():
    zero = torch.zeros(1).double()
    assert isotropic_z(zero, torch.ones(1).double(), zero, 8).tolist() == [0.0]


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1])
def test_probabilities_out_of_range_are_refused(p: float):
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\]"):
        cosine_quantile(p, 8)
    with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
        cosine_p_value(GRID, 1)


# --- matched ------------------------------------------------------------------------------------


def test_matched_directions_stay_where_the_decoder_is():
    """Rows in a plane give directions in that plane, as spread in it as the rows are."""
    angle = torch.linspace(0.0, 0.5, 500).double()
    rows = torch.zeros(500, 6).double()
    norms = 3 + 100 * (angle > 0.4)  # do not matter
    rows[:, 1], rows[:, 4] = norms * angle.cos(), norms * angle.sin()
    rows[7] = 0.0  # a dead feature has no direction
    found = matched_directions(rows, 4000, seed=1)
    assert torch.allclose(found.norm(dim=1), torch.ones(4000).double())
    assert found[:, [0, 2, 3, 5]].abs().max() < 1e-7
    angles = torch.atan2(found[:, 4], found[:, 1])
    assert float(angles.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(angles.std()) == pytest.approx(float(angle.std()), abs=0.01)


def test_matched_directions_have_the_mean_and_covariance_of_the_rows():
    scales = torch.linspace(0.5, 1.5, 64).double()
    rows = uniform_directions(3000, 64) * scales + 0.05
    rows = rows / rows.norm(dim=1, keepdim=True)
    found = matched_directions(rows, 50_000, seed=0)
    assert (found.mean(0) - rows.mean(0)).abs().max() < 0.003
    assert (found.T.cov() - rows.T.cov()).abs().max() < 0.15 * rows.T.cov().max()
    assert float(torch.corrcoef(torch.stack([found.var(0), rows.var(0)]))[0, 1]) > 0.99


def test_matched_directions_follow_their_seed():
    rows = uniform_directions(50, 8)
    first = matched_directions(rows, 20, seed=3)
    assert torch.equal(first, matched_directions(rows, 20, seed=3))
    assert not torch.allclose(first, matched_directions(rows, 20, seed=4))


@pytest.mark.parametrize(("rows", "n"), [(torch.zeros(5, 4), 10), (torch.eye(4), 1)])
def test_nothing_to_match_is_refused(rows: Tensor, n: int):
    with pytest.raises(ValueError, match="want at least two decoder rows that are not zero"):
        matched_directions(rows, n, seed=0)


def test_matched_p_values_and_quantiles_by_hand():
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]).double()
    encoder = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]]).double()
    p = matched_p_value(torch.tensor([-1.3, 2.0, 0.9]).double(), encoder, directions)
    assert p.tolist() == [3 / 5, 3 / 5, 2 / 5]  # sizes 2, 0, 1.2, 2 and 0, 1, 0.8, 0
    assert matched_quantile(encoder, directions, 0.5).tolist() == pytest.approx([1.6, 1.6, 0.4])


# --- on a spliced model -------------------------------------------------------------------------


def planted(head: tuple[int, int] | None) -> tuple[SplicedModel, WeightPairs]:
    """Random dictionaries in which source 5 writes just what target 2 reads, and all the pairs."""
    from attribution.invariant.deembedding import effective_encoder, encoder_through_head

    model = models.subject("gpt2", torch.float64)
    low, high = models.transcoder(seed=1, n_features=60), models.transcoder(seed=2, n_features=50)
    spliced = SplicedModel(model, {0: low, 2: high})
    reader = spliced.placements[spliced.write_site("mlp.2")]
    if head is None:
        direction = effective_encoder(model, reader, [2])[0]
    else:
        direction = encoder_through_head(model, reader, head, [2])[0]
    writer = spliced.placements[spliced.write_site("mlp.0")].dictionary
    writer.W_dec[5] = -0.7 * direction / direction.norm()
    writer.W_dec[8] = 0.0
    return spliced, top_virtual_weights(spliced, "mlp.2", "mlp.0", 3000, head=head)


@pytest.mark.parametrize("head", [None, (1, 2)])
def test_a_planted_weight_stands_out_and_the_others_are_uniform(head: tuple[int, int] | None):
    spliced, pairs = planted(head)
    exact = isotropic_significance(spliced, "mlp.2", "mlp.0", pairs, head=head)
    one = int(((pairs.targets == 2) & (pairs.sources == 5)).nonzero())
    assert float(exact.z[one]) == pytest.approx(-math.sqrt(D_MODEL), rel=1e-9)
    assert float(exact.p[one]) < 1e-100
    dead = pairs.sources == 8
    assert torch.equal(exact.z[dead], torch.zeros(50).double())
    assert torch.equal(exact.p[dead], torch.ones(50).double())
    rest = exact.p[(pairs.sources != 5) & ~dead]
    grid = torch.linspace(0.1, 0.9, 9).double()
    shares = (rest[:, None] < grid).double().mean(0)
    assert (shares - grid).abs().max() < 0.06
    assert float(exact.z[(pairs.sources != 5) & ~dead].std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("head", [None, (1, 2)])
def test_the_matched_null_agrees_with_the_isotropic_one_on_random_decoders(
    head: tuple[int, int] | None,
):
    spliced, every = planted(head)
    live = every.sources != 8
    pairs = WeightPairs(every.targets[live], every.sources[live], every.weights[live])
    exact = isotropic_significance(spliced, "mlp.2", "mlp.0", pairs, head=head)
    kwargs = {"head": head, "n_samples": 4000}
    sampled = matched_significance(spliced, "mlp.2", "mlp.0", pairs, **kwargs, chunk=7)
    whole = matched_significance(spliced, "mlp.2", "mlp.0", pairs, **kwargs)
    assert torch.allclose(sampled.z, whole.z)
    assert torch.equal(sampled.p, whole.p)
    other = (pairs.sources != 5) & (exact.z.abs() > 0.5)
    ratio = (sampled.z / exact.z)[other]
    assert 0.8 < float(ratio.median()) < 1.25  # 60 decoder rows estimate 32 variances roughly
    one = int(((pairs.targets == 2) & (pairs.sources == 5)).nonzero())
    assert float(sampled.p[one]) == pytest.approx(1 / 4001)


def test_a_mean_that_all_decoders_share_is_in_the_matched_null_only():
    """Decoders that all lean one way, and a target that reads that way: large, but not rare."""
    spliced, _ = planted(None)
    from attribution.invariant.deembedding import effective_encoder

    reader = spliced.placements[spliced.write_site("mlp.2")]
    writer = spliced.placements[spliced.write_site("mlp.0")].dictionary
    direction = effective_encoder(spliced.model, reader, [2])[0]
    writer.W_dec.copy_(uniform_directions(60, D_MODEL) + 3 * direction / direction.norm())
    weights = virtual_weights(spliced, "mlp.2", "mlp.0", target_features=[2])[0]
    pairs = WeightPairs(torch.full((60,), 2), torch.arange(60), weights)
    exact = isotropic_significance(spliced, "mlp.2", "mlp.0", pairs)
    matched = matched_significance(spliced, "mlp.2", "mlp.0", pairs)
    assert exact.p.max() < 1e-6
    assert exact.z.min() > 4
    assert 0.3 < float(matched.p.mean()) < 0.7
    assert float(matched.z.mean().abs()) < 0.5


def test_paths_are_checked():
    spliced, pairs = planted(None)
    for judge in (isotropic_significance, matched_significance):
        with pytest.raises(ValueError, match="does not write below"):
            judge(spliced, "mlp.0", "mlp.2", pairs)
