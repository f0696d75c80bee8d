"""Frontiers and means over seeds: by hand, against tables, and what cannot be drawn."""

import math

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from case_studies.frontier import FrontierPoint, frontier_figure, frontier_levels
from case_studies.seeds import mean_over_seeds, student_quantile


def points(series: str, seeds: int, levels: int = 4, offset: float = 0.0) -> list[FrontierPoint]:
    return [
        FrontierPoint(series, l0=8.0 * 2**i, value=offset + 0.5 / (1 + i) + 0.01 * s, seed=s)
        for s in range(seeds)
        for i in range(levels)
    ]


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)],
)
def test_student_s_quantiles_are_the_printed_ones(degrees: int, expected: float) -> None:
    assert student_quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_student_s_quantiles_at_another_level_and_in_the_limit() -> None:
    assert student_quantile(1, 0.5) == pytest.approx(1, rel=1e-12)
    assert student_quantile(2, 0.99) == pytest.approx(9.925, abs=5e-4)
    assert student_quantile(100_001) == pytest.approx(1.95996, abs=5e-5)


def test_a_mean_over_three_seeds_by_hand() -> None:
    found = mean_over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.n_seeds == 3
    assert (found.low, found.high) == pytest.approx(
        (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6
    )


def test_one_seed_has_no_interval() -> None:
    found = mean_over_seeds([0.25])
    assert (found.mean, found.low, found.high, found.n_seeds) == (0.25, None, None, 1)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0.1, 3), st.floats(-5, 5))
def test_intervals_move_and_scale_with_the_values(
    values: list[float], scale: float, shift: float
) -> None:
    one = mean_over_seeds(values)
    other = mean_over_seeds([scale * value + shift for value in values])
    assert one.low is not None
    assert other.low is not None
    assert one.low <= one.mean + 1e-12
    assert other.mean == pytest.approx(scale * one.mean + shift, abs=1e-9)
    assert other.low == pytest.approx(scale * one.low + shift, abs=1e-7)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value, all finite"):
        mean_over_seeds(values)


@pytest.mark.parametrize(("degrees", "probability"), [(0, 0.95), (3, 1.0), (3, 0.0)])
def test_impossible_quantiles_are_refused(degrees: int, probability: float) -> None:
    with pytest.raises(ValueError, match="at least one degree of freedom"):
        student_quantile(degrees, probability)


def test_levels_by_hand() -> None:
    given_points = [
        FrontierPoint("a", 40.0, 0.1, 1),
        FrontierPoint("a", 8.0, 0.5, 0),
        FrontierPoint("b", 9.0, 0.9, 7),
        FrontierPoint("a", 10.0, 0.25, 0),
        FrontierPoint("a", 2.0, 0.75, 1),
    ]
    levels = frontier_levels(given_points)
    assert list(levels) == ["a", "b"]
    sparse, dense = levels["a"]
    assert (sparse.l0, sparse.value.mean) == pytest.approx((4.0, 0.625))  # sqrt(8 * 2)
    assert (dense.l0, dense.value.mean) == pytest.approx((20.0, 0.175))  # sqrt(10 * 40)
    assert levels["b"][0].value.low is None


def traces(figure: go.Figure, group: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.legendgroup == group]


def test_a_figure_has_a_line_a_band_and_all_points_of_each_series() -> None:
    own = [*points("TopK", 3), *points("Gated", 3, offset=0.2), *points("ReLU", 1, offset=0.4)]
    figure = frontier_figure(own, metric="FVU (share of variance)", title="TopK wins")
    band, line, dots = traces(figure, "TopK")
    levels = frontier_levels(own)["TopK"]
    assert list(line.x) == [level.l0 for level in levels]
    assert list(line.y) == [level.value.mean for level in levels]
    lows = [level.value.low for level in levels]
    highs = [level.value.high for level in levels]
    assert list(band.x) == [*line.x, *reversed(line.x)]
    assert list(band.y) == [*highs, *reversed(lows)]
    assert band.fill == "toself"
    assert band.line.width == 0
    assert sorted(zip(dots.x, dots.y, dots.customdata, strict=True)) == sorted(
        (p.l0, p.value, p.seed) for p in own if p.series == "TopK"
    )
    assert line.name == "TopK (3 seeds)"
    assert [len(traces(figure, name)) for name in ("Gated", "ReLU")] == [3, 2]
    assert {t.name for t in figure.data if t.showlegend is not False} == {
        *("TopK (3 seeds)", "Gated (3 seeds)", "ReLU (1 seed)"),
    }


def test_both_axes_are_named_and_l0_is_logarithmic() -> None:
    figure = frontier_figure(points("a", 2), metric="KL (nats a token)", title="It works")
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "L0 (active features a token, log scale)"
    assert figure.layout.yaxis.title.text == "KL (nats a token)"
    assert "It works" in figure.layout.title.text
    assert "95 % interval" in figure.layout.title.subtitle.text


def test_series_differ_without_colour_too() -> None:
    own = [point for i in range(9) for point in points(f"series {i}", 2)]
    figure = frontier_figure(own, metric="FVU", title="Many")
    lines = [trace for trace in figure.data if trace.showlegend is not False]
    looks = {(t.line.color, t.marker.symbol, t.line.dash) for t in lines}
    assert len(looks) == 9
    assert len({t.line.color for t in lines[:7]}) == 7
    assert len({t.marker.symbol for t in lines[:8]}) == 8
    for line in lines:
        (band, *_, dots) = traces(figure, line.legendgroup)
        red, green, blue = (int(line.line.color[i : i + 2], 16) for i in (1, 3, 5))
        assert band.fillcolor.startswith(f"rgba({red},{green},{blue},")
        assert (dots.marker.color, dots.marker.symbol) == (line.line.color, line.marker.symbol)


def test_points_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="no point to draw"):
        frontier_figure([], metric="FVU", title="")
    for bad in (FrontierPoint("a", 0.0, 1.0, 0), FrontierPoint("a", 8.0, math.nan, 0)):
        with pytest.raises(ValueError, match="want a positive L0 and a finite value"):
            frontier_levels([bad])
    uneven = [*points("a", 1, levels=2), FrontierPoint("a", 8.0, 0.5, 1)]
    with pytest.raises(ValueError, match=r"different numbers of points: \{0: 2, 1: 1\}"):
        frontier_levels(uneven)
