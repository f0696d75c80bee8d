"""Frontiers: points from runs that are formulas, fronts, knees and areas by hand."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.frontier import Frontier, frontier, geometric_sizes, random_frontier, top_ranked
from graphs.frontier_figure import plot_frontiers
from graphs.frontier_shape import (
    FrontierPoint,
    curve_areas,
    knee,
    pareto_front,
    smallest_reaching,
)
from graphs.proof import Estimate, Outcome
from graphs.proof.estimates import mean_estimate, resampling

WORTH = torch.tensor([5.0, 3.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).double()
STRENGTH = torch.tensor([1.0, 2.0, 3.0]).double()
MODEL = (10 * STRENGTH) + 1


def _measure(kept):
    value = kept.double() @ WORTH
    return Outcome(value[:, None] * STRENGTH + 1, (10 - value)[:, None] * STRENGTH)


def _point(size, value, threshold=0.0):
    one = Estimate(value=value, low=value - 0.1, high=value + 0.2)
    return FrontierPoint(threshold=threshold, size=size, faithfulness=one, kl=one)


def _frontier(circuits, **options) -> Frontier:
    names = {"family": "f", "unit": "nodes", "choices": "unit node; ..."}
    return frontier(_measure, MODEL, circuits, n_resamples=50, **names | options)


def test_points_by_hand():
    circuits = top_ranked(WORTH, [8, 1, 2, 4])
    found = _frontier(circuits, seed=1)
    assert [p.size for p in found.points] == [1, 2, 4, 8]
    assert [p.threshold for p in found.points] == [1.0, 2.0, 4.0, 8.0]
    assert [p.faithfulness.value for p in found.points] == pytest.approx([0.5, 0.8, 1.0, 1.0])
    assert [p.kl.value for p in found.points] == pytest.approx([10.0, 4.0, 0.0, 0.0], abs=1e-12)
    assert all(p.faithfulness.high - p.faithfulness.low < 1e-9 for p in found.points)
    assert found.points[0].kl.low < 9.0 < 11.0 < found.points[0].kl.high
    assert [p.size for p in found.front] == [1, 2, 4]
    assert (found.n_units, found.n_prompts) == (8, 3)
    # (0, 0), (1/8, .5), (2/8, .8), (4/8, 1), (1, 1)
    cpr = (0.25 + 0.65) / 8 + 0.9 / 4 + 0.5
    assert found.cpr == pytest.approx(cpr)
    assert found.cmd == pytest.approx(1 - cpr)
    assert Frontier.model_validate_json(found.model_dump_json()) == found
    assert found == _frontier(circuits, seed=1)
    kl = torch.tensor([5.0, 10.0, 15.0]).double()
    assert found.points[0].kl == mean_estimate(kl, resampling(3, n_resamples=50, seed=1))


def test_a_sweep_by_threshold_need_not_be_nested_or_sorted():
    a, b = torch.zeros(2, 8, dtype=torch.bool)
    a[[1, 2]], b[0] = True, True
    found = _frontier({0.5: a, 0.1: b})
    assert [(p.threshold, p.size) for p in found.points] == [(0.1, 1), (0.5, 2)]
    assert [p.faithfulness.value for p in found.points] == pytest.approx([0.5, 0.4])
    assert [p.size for p in found.front] == [1]
    assert found.knee is None


def test_metrics_are_averaged_before_the_ratio():
    """One prompt gains all, the other has a tiny span: the ratio of means is 1/2."""
    model = torch.tensor([1.0, 1.0]).double()

    def measure(kept):
        gain = kept.any(1).double()[:, None] * torch.tensor([[1.0, 0.0]]).double()
        return Outcome(gain, gain)

    circuits = {1.0: torch.tensor([True])}
    found = frontier(measure, model, circuits, family="f", unit="u", choices="c")
    assert found.points[0].faithfulness.value == 0.5
    assert found.points[0].faithfulness.low == 0.0
    assert found.points[0].faithfulness.high == 1.0


def test_sizes():
    assert geometric_sizes(1) == [1]
    assert geometric_sizes(16) == [1, 2, 4, 8, 16]
    assert geometric_sizes(7, factor=1.1) == [1, 2, 3, 4, 5, 6, 7]
    assert geometric_sizes(100, factor=10.0) == [1, 10, 100]
    with pytest.raises(ValueError, match="factor > 1"):
        geometric_sizes(5, factor=1.0)
    with pytest.raises(ValueError, match="n_units >= 1"):
        geometric_sizes(0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_ranked_circuits_are_nested_and_best(scores):
    score = torch.tensor(scores).double()
    circuits = top_ranked(score, range(len(scores) + 1))
    before = torch.zeros(len(scores), dtype=torch.bool)
    for size, flags in circuits.items():
        assert int(flags.sum()) == size
        assert not (before & ~flags).any()
        assert score[flags].sum() == score.sort(descending=True).values[: int(size)].sum()
        before = flags


def test_ties_fall_to_the_earlier_unit():
    flags = top_ranked(torch.zeros(50), [3])[3.0]
    assert flags.nonzero().flatten().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"sizes must be in \[0, 50\], got 51"):
        top_ranked(torch.zeros(50), [51])


sweeps = st.lists(st.tuples(st.integers(0, 30), st.floats(-1, 2)), min_size=1, max_size=12)


@given(sweeps)
@settings(max_examples=80, deadline=None)
def test_a_front_is_what_nothing_smaller_beats(pairs):
    points = [_point(size, value, float(i)) for i, (size, value) in enumerate(pairs)]
    front = pareto_front(points)

    def close(point):
        return 1 - abs(1 - point.faithfulness.value)

    for left, right in pairwise(front):
        assert left.size < right.size
        assert close(left) < close(right)
    for point in points:
        best = max((close(p) for p in front if p.size <= point.size), default=None)
        assert best is not None
        assert best >= close(point)
    assert all(point in points for point in front)


def test_overshooting_is_not_better():
    assert pareto_front([_point(1, 0.9), _point(2, 1.3)]) == [_point(1, 0.9)]
    assert pareto_front([_point(1, 1.3), _point(2, 0.9)]) == [_point(1, 1.3), _point(2, 0.9)]


def test_knee_by_hand():
    """Over log size 0, 1, 2, 3 (of 3): above the chord by 0, .3, .2667, 0."""
    front = [_point(1, 0.0), _point(2, 0.5), _point(4, 0.75), _point(8, 0.8)]
    above = [0.5 / 0.8 - 1 / 3, 0.75 / 0.8 - 2 / 3]
    assert above[0] > above[1]
    assert knee(front) == front[1]
    later = [_point(1, 0.0), _point(2, 0.2), _point(4, 0.75), _point(8, 0.8)]
    assert knee(later) == later[2]
    # Not over size itself, where the second point is 0.482 above and the third 0.509.
    assert 0.5 / 0.8 - 1 / 7 < 0.75 / 0.8 - 3 / 7


def test_knee_at_the_edges():
    below = [_point(1, 0.0), _point(2, 0.1), _point(4, 1.0)]
    assert knee(below) is None
    assert knee([_point(3, 0.5)]) is None
    assert knee([_point(3, 0.5), _point(9, 0.6)]) is None
    straight = [_point(1, 0.0), _point(2, 0.5), _point(4, 1.0)]
    assert knee(straight) is None
    with_empty = [_point(0, -0.5), _point(1, 0.0), _point(2, 0.9), _point(4, 1.0)]
    assert knee(with_empty) == with_empty[2]
    with pytest.raises(ValueError, match="at least one unit"):
        knee([_point(0, 0.0)])


def test_areas_by_hand():
    perfect = [_point(0, 1.0), _point(10, 1.0)]
    assert curve_areas(perfect, n_units=10) == pytest.approx((1.0, 0.0))
    # 0 to 2 over the first half crosses 1 midway, then flat at 2.
    cpr, cmd = curve_areas([_point(5, 2.0)], n_units=10)
    assert cpr == pytest.approx(0.5 * 1.0 + 0.5 * 2.0)
    assert cmd == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(-2, 3)), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_areas_are_those_of_a_fine_grid(pairs):
    by_size = {size: value for size, value in pairs}
    points = [_point(size, value) for size, value in by_size.items()]
    xs = torch.tensor([0, *sorted(by_size), 41]).double() / 41
    ys = [0.0, *(by_size[size] for size in sorted(by_size))]
    ys = torch.tensor([*ys, ys[-1]]).double()
    grid = (torch.arange(41 * 200).double() + 0.5) / (41 * 200)
    at = torch.searchsorted(xs, grid).clamp(1, len(xs) - 1)
    part = (grid - xs[at - 1]) / (xs[at] - xs[at - 1])
    curve = ys[at - 1] + part * (ys[at] - ys[at - 1])
    cpr, cmd = curve_areas(points, n_units=41)
    assert cpr == pytest.approx(float(curve.mean()), abs=1e-6)
    assert cmd == pytest.approx(float((1 - curve).abs().mean()), abs=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_bad_families():
    with pytest.raises(ValueError, match="has no circuit"):
        _frontier({})
    nothing = {0.0: torch.zeros(8, dtype=torch.bool)}
    with pytest.raises(ValueError, match="must differ"):
        frontier(_measure, 0 * MODEL + 1, nothing, family="f", unit="u", choices="c")


def test_random_circuits_by_hand():
    """Means over draws, and the band of the draws; metrics are averaged before the ratio."""
    one, two = torch.eye(8, dtype=torch.bool)[:4], torch.eye(8, dtype=torch.bool)[[1, 2]]
    draws = {2.0: one[[0, 0]] | two, 1.0: one}
    names = {"family": "f", "unit": "nodes", "choices": "c"}
    found = random_frontier(_measure, MODEL, draws, **names)
    assert [(p.threshold, p.size) for p in found.points] == [(1.0, 1), (2.0, 2)]
    shares = torch.tensor([0.5, 0.3, 0.1, 0.1]).double()
    single = found.points[0].faithfulness
    assert single.value == pytest.approx(0.25)
    tails = shares.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    assert [single.low, single.high] == pytest.approx(tails)
    assert found.points[1].faithfulness.value == pytest.approx((0.8 + 0.6) / 2)
    assert found.points[1].kl.value == pytest.approx(2 * (2 + 4) / 2)
    assert (found.intervals, found.n_units, found.n_prompts) == ("draws", 8, 3)
    assert _frontier({1.0: one[0]}).intervals == "prompts"
    with pytest.raises(ValueError, match=r"of one size, got \{1, 2\}"):
        random_frontier(_measure, MODEL, {1.0: torch.stack([one[0], draws[2.0][0]])}, **names)
    with pytest.raises(ValueError, match="has no circuit"):
        random_frontier(_measure, MODEL, {}, **names)
    with pytest.raises(ValueError, match="must differ"):
        random_frontier(_measure, 0 * MODEL + 1, {1.0: one & False}, **names)


def test_a_level_is_reached_from_both_sides():
    points = [_point(8, 0.95), _point(1, 1.25), _point(2, 0.79), _point(4, 1.19)]
    assert smallest_reaching(points, 0.8) == points[3]
    assert smallest_reaching(points, 0.9) == points[0]
    assert smallest_reaching(points, 0.99) is None
    with pytest.raises(ValueError, match=r"share in \(0, 1\], got 80"):
        smallest_reaching(points, 80.0)


NAMES = ("features, a", "features, b", "heads, b", "heads, random")


def _families() -> list[Frontier]:
    good = _frontier(top_ranked(WORTH, [0, 1, 2, 4, 8]), family="features, a", unit="features")
    spread = tuple(_point(p.size, p.faithfulness.value, p.threshold) for p in good.points)
    good = good.model_copy(update={"points": spread})
    also = _frontier(top_ranked(WORTH.flip(0), [2, 8]), family="features, b", unit="features")
    heads = _frontier(top_ranked(-WORTH, [1, 2, 4, 8]), family="heads, b", unit="heads")
    draws = {2.0: torch.eye(8, dtype=torch.bool)[:4], 4.0: torch.eye(8, dtype=torch.bool)[:3]}
    random = random_frontier(
        _measure, MODEL, draws, family="heads, random", unit="heads", choices=good.choices
    )
    return [good, also, heads, random]


def _curves(figure, name):
    """The curve of faithfulness and the curve of KL."""
    curves = [t for t in figure.data if t.legendgroup == name and t.customdata is not None]
    assert [curve.yaxis for curve in curves] == ["y", "y2"]
    return curves


def test_figure():
    families = _families()
    good = families[0]
    title = "Two nodes carry 80 % of the behaviour"
    figure = plot_frontiers(families, title=title, template="simple_white")
    assert title in figure.layout.title.text
    assert good.choices in figure.layout.title.subtitle.text
    assert "3 prompts" in figure.layout.title.subtitle.text
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"
    entries = [trace.name for trace in figure.data if trace.showlegend]
    assert entries == [
        f"features, a ({good.cpr:.2f}, knee {good.knee.size})",
        *(f"{f.family} ({f.cpr:.2f})" for f in families[1:]),
    ]
    faithful, kl = _curves(figure, "features, a")
    drawn = good.points[1:]
    assert list(faithful.x) == list(kl.x) == [1, 2, 4, 8]
    assert list(faithful.y) == [p.faithfulness.value for p in drawn]
    assert list(kl.y) == [p.kl.value for p in drawn]
    bars = zip(faithful.y, faithful.error_y.array, faithful.error_y.arrayminus, strict=True)
    for point, (y, up, down) in zip(drawn, bars, strict=True):
        assert y + up == pytest.approx(point.faithfulness.high)
        assert y - down == pytest.approx(point.faithfulness.low)
    assert [c[1] for c in faithful.customdata] == [p.kl.value for p in drawn]
    assert [c[3] for c in kl.customdata] == [1 / 8, 2 / 8, 4 / 8, 1]
    assert math.isclose(figure.layout.shapes[0].y0, 1.0)


def test_a_colour_is_a_kind_of_unit_and_a_symbol_a_method():
    figure = plot_frontiers(_families(), title="t")
    looks = [_curves(figure, name)[0] for name in NAMES]
    colours = [curve.line.color for curve in looks]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert looks[0].marker.symbol != looks[1].marker.symbol
    assert looks[0].line.dash != looks[1].line.dash == looks[2].line.dash
    assert looks[1].marker.symbol == looks[2].marker.symbol
    assert [curve.mode for curve in looks] == [*["lines+markers"] * 3, "lines"]
    assert looks[3].line.dash == "dot"


def test_only_a_knee_is_ringed_and_only_draws_have_a_band():
    families = _families()
    figure = plot_frontiers(families, title="t")
    rings = [t for t in figure.data if t.mode == "markers" and t.marker.symbol == "circle-open"]
    good = families[0]
    assert [(t.legendgroup, t.x[0], t.y[0]) for t in rings] == [
        ("features, a", good.knee.size, good.knee.faithfulness.value)
    ]
    bands = [t for t in figure.data if t.fill == "toself"]
    assert [(t.legendgroup, t.yaxis) for t in bands] == [(NAMES[3], "y"), (NAMES[3], "y2")]
    random = families[3]
    low, high = ([getattr(p.faithfulness, end) for p in random.points] for end in ("low", "high"))
    assert list(bands[0].x) == [1, 1, 1, 1]
    assert list(bands[0].y) == [*high, *reversed(low)]
    assert all(curve.error_y.array is None for curve in _curves(figure, NAMES[3]))
    assert "random circuits" in figure.layout.title.subtitle.text
    alone = plot_frontiers(families[:2], title="t")
    assert "random" not in alone.layout.title.subtitle.text


def test_hidden_families_wait_in_the_legend():
    figure = plot_frontiers(_families(), title="t", hidden=[NAMES[1], NAMES[3]])
    shown = {t.legendgroup: t.visible for t in figure.data}
    assert shown == dict(zip(NAMES, [True, "legendonly", True, "legendonly"], strict=True))
    assert "click to show" in figure.layout.legend.title.text
    assert "click" not in plot_frontiers(_families(), title="t").layout.legend.title.text
    with pytest.raises(ValueError, match="cannot hide 'x'; the families are features, a"):
        plot_frontiers(_families(), title="t", hidden=["x"])


def test_long_lines_are_broken():
    long = [f.model_copy(update={"choices": "word " * 60}) for f in _families()]
    figure = plot_frontiers(long, title="finding " * 30)
    subtitle, title = figure.layout.title.subtitle.text, figure.layout.title.text
    assert max(len(line) for line in subtitle.split("<br>")) <= 150
    assert subtitle.count("word") == 60
    assert title.count("finding") == 30
    assert title.count("<br>") > 1


def test_families_must_be_comparable():
    one = _frontier(top_ranked(WORTH, [1]))
    with pytest.raises(ValueError, match="different names"):
        plot_frontiers([one, one], title="t")
    with pytest.raises(ValueError, match="at least one"):
        plot_frontiers([], title="t")
    other = one.model_copy(update={"family": "g", "choices": "others"})
    with pytest.raises(ValueError, match="same choices"):
        plot_frontiers([one, other], title="t")
