"""Sparsity-fidelity frontiers: a metric against L0, one line an architecture, over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, isfinite, log

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from case_studies.seeds import SeedMean, mean_over_seeds
from graphs.figure_style import KIND_STYLES, SIGN_STYLES

__all__ = ["FrontierLevel", "FrontierPoint", "frontier_figure", "frontier_levels"]

_COLOURS = (
    SIGN_STYLES[1].color,
    SIGN_STYLES[-1].color,
    KIND_STYLES["feature"].color,
    KIND_STYLES["sublayer"].color,
    "#E69F00",
    "#56B4E9",
    "#333333",
)
"""Okabe and Ito's palette, as in the circuit figure; a series also has its own symbol and dash."""
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "triangle-down")
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class FrontierPoint:
    """One trained dictionary.

    Args:
        series: what makes a line: an architecture.
        l0: mean active features a token.
        value: the metric.
        seed: of its training.
    """

    series: str
    l0: float
    value: float
    seed: int


@dataclass(frozen=True)
class FrontierLevel:
    """One sparsity level of a series, over its seeds."""

    l0: float
    value: SeedMean


def frontier_levels(points: Iterable[FrontierPoint]) -> dict[str, list[FrontierLevel]]:
    """Each series' levels from sparse to dense: geometric mean L0, and the metric over seeds.

    Level i is the i-th sparsest dictionary of every seed, so seeds need not hit the same L0: what
    L0 varies by then widens the interval.

    Raises:
        ValueError: if there is no point, a number cannot be drawn, or the seeds of a series have
            different numbers of dictionaries.
    """
    points = list(points)
    if not points:
        raise ValueError("there is no point to draw; give at least one")
    for point in points:
        if not (isfinite(point.l0) and point.l0 > 0 and isfinite(point.value)):
            raise ValueError(f"want a positive L0 and a finite value, got {point}")
    names = list(dict.fromkeys(point.series for point in points))
    return {name: _levels([p for p in points if p.series == name]) for name in names}


def _levels(points: Sequence[FrontierPoint]) -> list[FrontierLevel]:
    ranked = sorted(points, key=lambda point: (point.seed, point.l0))
    runs = {seed: list(group) for seed, group in groupby(ranked, key=lambda point: point.seed)}
    if len({len(run) for run in runs.values()}) > 1:
        raise ValueError(
            f"seeds of {points[0].series!r} have different numbers of points: "
            f"{ {seed: len(run) for seed, run in runs.items()} }; want one a sparsity level each"
        )
    return [
        FrontierLevel(
            l0=exp(sum(log(point.l0) for point in level) / len(level)),
            value=mean_over_seeds([point.value for point in level]),
        )
        for level in zip(*runs.values(), strict=True)
    ]


def frontier_figure(
    points: Iterable[FrontierPoint],
    *,
    metric: str,
    title: str,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw a metric against L0: a line and a band a series, and every dictionary as a point.

    Args:
        points: one a trained dictionary; the order of series is that of their first points.
        metric: the metric's name and unit, for the axis ("CE recovered (mean ablation)").
        title: the finding, in one sentence.
        template: name of a Plotly template.

    Returns:
        A figure with L0 on a log axis. Lines are means over seeds, bands 95 % intervals of the mean
        (Student's t), which one seed does not have.

    Raises:
        ValueError: see `frontier_levels`.
    """
    points = list(points)
    figure = go.Figure()
    for number, (name, levels) in enumerate(frontier_levels(points).items()):
        own = [point for point in points if point.series == name]
        figure.add_traces(_series_traces(name, number, levels, own, metric))
    figure.update_layout(
        template=template,
        title={
            "text": f"<b>{title}</b>",
            "subtitle": {"text": "lines: mean over seeds; bands: 95 % interval of the mean (t)"},
        },
        legend={"title": {"text": "architecture"}},
        width=860,
        height=520,
    )
    figure.update_xaxes(
        title="L0 (active features a token, log scale)",
        type="log",
        tickvals=[2.0**power for power in range(-10, 20)],
        ticktext=[f"{2.0**power:g}" for power in range(-10, 20)],
    )
    figure.update_yaxes(title=metric)
    return figure


def _series_traces(
    name: str,
    number: int,
    levels: Sequence[FrontierLevel],
    points: Sequence[FrontierPoint],
    metric: str,
) -> list[go.Scatter]:
    """Band, line and points of one series, shown and hidden together."""
    colour = _COLOURS[number % len(_COLOURS)]
    symbol, dash = _SYMBOLS[number % len(_SYMBOLS)], _DASHES[number % len(_DASHES)]
    n_seeds = levels[0].value.n_seeds
    line = go.Scatter(
        x=[level.l0 for level in levels],
        y=[level.value.mean for level in levels],
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"symbol": symbol, "size": 9},
        name=f"{name} ({n_seeds} seed{'s' if n_seeds > 1 else ''})",
        legendgroup=name,
        hovertemplate=f"{name}: L0 %{{x:.1f}}<br>{metric} %{{y:.4f}}, mean<extra></extra>",
    )
    dots = go.Scatter(
        x=[point.l0 for point in points],
        y=[point.value for point in points],
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 5, "opacity": 0.5},
        customdata=[point.seed for point in points],
        name=name,
        legendgroup=name,
        showlegend=False,
        hovertemplate=f"{name}, seed %{{customdata}}: L0 %{{x:.1f}}<br>{metric} %{{y:.4f}}"
        "<extra></extra>",
    )
    return [*_band(name, colour, levels), line, dots]


def _band(name: str, colour: str, levels: Sequence[FrontierLevel]) -> list[go.Scatter]:
    """The interval of every level as one filled outline; nothing for a single seed."""
    lows = [level.value.low for level in levels if level.value.low is not None]
    highs = [level.value.high for level in levels if level.value.high is not None]
    if not lows:
        return []
    x = [level.l0 for level in levels]
    red, green, blue = hex_to_rgb(colour)
    return [
        go.Scatter(
            x=[*x, *reversed(x)],
            y=[*highs, *reversed(lows)],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.16)",
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name=f"{name}, 95 % interval",
            legendgroup=name,
            showlegend=False,
        )
    ]
