"""The figure of frontiers: size against faithfulness, several families on the same axes."""

from collections.abc import Sequence
from textwrap import wrap

import plotly.graph_objects as go

from graphs.figure_style import KIND_STYLES, SIGN_STYLES
from graphs.frontier import Frontier, FrontierPoint

__all__ = ["plot_frontiers"]

_COLOURS = (
    KIND_STYLES["feature"].color,
    SIGN_STYLES[-1].color,
    SIGN_STYLES[1].color,
    KIND_STYLES["sublayer"].color,
    "#E69F00",
    "#56B4E9",
    "#333333",
)
"""Okabe and Ito's palette; a family also has its own symbol and dash."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down")
_DASHES = ("solid", "dash", "dot", "dashdot")


def plot_frontiers(
    frontiers: Sequence[Frontier], *, title: str, template: str = "plotly_white"
) -> go.Figure:
    """Draw faithfulness against size: a point a circuit, a line along each Pareto front.

    Args:
        frontiers: one a family, all under the same choices.
        title: the finding, in one sentence.
        template: name of a Plotly template.

    Returns:
        A figure with size on a log axis (circuits of no unit are not drawn), 95 % intervals as
        bars, each family's knee ringed, and a line where a circuit does what the model does.

    Raises:
        ValueError: if there is no family, two have one name, or their choices differ.
    """
    _check(frontiers)
    figure = go.Figure()
    for number, family in enumerate(frontiers):
        figure.add_traces(_family_traces(number, family))
    figure.add_hline(y=1.0, line={"color": "#7f7f7f", "width": 1, "dash": "dot"})
    units = " or ".join(dict.fromkeys(family.unit for family in frontiers))
    prompts = sorted({family.n_prompts for family in frontiers})
    counted = " or ".join(str(n) for n in prompts)
    figure.update_layout(
        template=template,
        title={
            "text": f"<b>{title}</b>",
            "subtitle": {
                "text": f"bars: 95 % bootstrap intervals over {counted} prompts; ring: knee"
                f"<br>{'<br>'.join(wrap(frontiers[0].choices, 130))}"
            },
        },
        legend={"title": {"text": "family (CPR)"}},
        margin={"t": 120},
        width=960,
        height=560,
    )
    figure.update_xaxes(title=f"size ({units}, log scale)", type="log")
    figure.update_yaxes(title="faithfulness (m(C) − m(∅)) / (m(M) − m(∅))")
    return figure


def _check(frontiers: Sequence[Frontier]) -> None:
    names = [family.family for family in frontiers]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"want families of different names, at least one, got {names}")
    choices = {family.choices for family in frontiers}
    if len(choices) > 1:
        raise ValueError(
            f"families on the same axes must be measured under the same choices, got {choices}"
        )


def _family_traces(number: int, family: Frontier) -> list[go.Scatter]:
    """Line along the front, every circuit, and the knee; shown and hidden together."""
    colour = _COLOURS[number % len(_COLOURS)]
    symbol = _SYMBOLS[number % len(_SYMBOLS)]
    name = family.family
    drawn = [point for point in family.points if point.size > 0]
    front = [point for point in family.front if point.size > 0]
    line = go.Scatter(
        **_places(front),
        mode="lines",
        line={"color": colour, "dash": _DASHES[number % len(_DASHES)], "width": 2},
        name=name,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    values = [point.faithfulness for point in drawn]
    dots = go.Scatter(
        **_places(drawn),
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 8},
        error_y={
            "array": [f.high - f.value for f in values],
            "arrayminus": [f.value - f.low for f in values],
            "width": 2,
            "thickness": 1,
        },
        customdata=[(point.threshold, point.kl.value) for point in drawn],
        name=f"{name} ({family.cpr:.3f})",
        legendgroup=name,
        hovertemplate=f"{name}: %{{x}} {family.unit}<br>faithfulness %{{y:.3f}}"
        "<br>KL %{customdata[1]:.3g} nats<br>threshold %{customdata[0]:.3g}<extra></extra>",
    )
    ring = go.Scatter(
        **_places([family.knee]),
        mode="markers",
        marker={"color": colour, "symbol": "circle-open", "size": 17, "line": {"width": 2}},
        name=f"{name}, knee",
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    return [line, dots, ring]


def _places(points: Sequence[FrontierPoint]) -> dict[str, list[float]]:
    return {
        "x": [float(point.size) for point in points],
        "y": [point.faithfulness.value for point in points],
    }
