"""The figure of frontiers: size against faithfulness and KL, several families on the same axes."""

from collections.abc import Collection, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from graphs.figure_style import KIND_STYLES, SIGN_STYLES
from graphs.frontier import Frontier
from graphs.frontier_shape import FrontierPoint

__all__ = ["plot_frontiers"]

_COLOURS = (
    KIND_STYLES["feature"].color,
    SIGN_STYLES[-1].color,
    SIGN_STYLES[1].color,
    KIND_STYLES["sublayer"].color,
    "#E69F00",
    "#56B4E9",
)
"""Okabe and Ito's palette: a colour a kind of unit; its families differ in symbol and dash."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down")
_DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot")


class _Look(NamedTuple):
    colour: str
    symbol: str
    dash: str
    shown: bool


def plot_frontiers(
    frontiers: Sequence[Frontier],
    *,
    title: str,
    hidden: Collection[str] = (),
    template: str = "plotly_white",
) -> go.Figure:
    """Draw faithfulness, and below it KL, against size: a curve a family.

    Args:
        frontiers: one a family, all under the same choices but for the unit; named "kind, method",
            families of one method have one symbol.
        title: the finding, in one sentence.
        hidden: families that are drawn only once they are clicked in the legend.
        template: name of a Plotly template.

    Returns:
        A figure with size on a log axis (circuits of no unit are not drawn). A colour stands for a
        kind of unit, dashes and symbols for methods. Ranked circuits have 95 % intervals as bars
        and a ring at their knee, random ones a band; a line shows where a circuit does what the
        model does.

    Raises:
        ValueError: if there is no family, two have one name, their choices differ, or one is hidden
            that is not there.
    """
    _check(frontiers, hidden)
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.06
    )
    kinds = list(dict.fromkeys(family.unit for family in frontiers))
    methods = list(dict.fromkeys(_method(family) for family in frontiers))
    for family in frontiers:
        kind, method = kinds.index(family.unit), methods.index(_method(family))
        look = _look(kind, method, family, hidden)
        for row, value in enumerate(("faithfulness", "kl"), start=1):
            figure.add_traces(_curve(family, value, look), rows=row, cols=1)
        figure.add_traces(_knee(family, look), rows=1, cols=1)
    figure.add_hline(y=1.0, line={"color": "#7f7f7f", "width": 1, "dash": "dot"}, row=1, col=1)  # type: ignore[arg-type]
    _lay_out(figure, frontiers, title, template, bool(hidden))
    return figure


def _check(frontiers: Sequence[Frontier], hidden: Collection[str]) -> None:
    names = [family.family for family in frontiers]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"want families of different names, at least one, got {names}")
    choices = {family.choices for family in frontiers}
    if len(choices) > 1:
        raise ValueError(
            f"families on the same axes must be measured under the same choices, got {choices}"
        )
    unknown = sorted(set(hidden) - set(names))
    if unknown:
        raise ValueError(f"cannot hide {unknown[0]!r}; the families are {', '.join(names)}")


def _method(family: Frontier) -> str:
    """What comes last in a name such as `heads, attribution`."""
    return family.family.rpartition(", ")[2]


def _look(kind: int, method: int, family: Frontier, hidden: Collection[str]) -> _Look:
    colour, shown = _COLOURS[kind % len(_COLOURS)], family.family not in hidden
    if family.intervals == "draws":
        return _Look(colour, "line-ew", "dot", shown)
    return _Look(colour, _SYMBOLS[method % len(_SYMBOLS)], _DASHES[method % len(_DASHES)], shown)


def _lay_out(
    figure: go.Figure, frontiers: Sequence[Frontier], title: str, template: str, some_hidden: bool
) -> None:
    prompts = " or ".join(str(n) for n in sorted({family.n_prompts for family in frontiers}))
    notes = [
        f"bars: 95 % bootstrap intervals over {prompts} prompts that chose nothing; ring: knee",
        "dotted, with a band: 95 % of random circuits of the same size",
    ]
    notes = notes if any(f.intervals == "draws" for f in frontiers) else notes[:1]
    lines = ["; ".join(notes), *wrap(frontiers[0].choices, 120)]
    figure.update_layout(
        template=template,
        title={
            "text": "<br>".join(f"<b>{line}</b>" for line in wrap(title, 105)),
            "subtitle": {"text": "<br>".join(lines)},
            "x": 0.02,
            "xanchor": "left",
            "y": 0.98,
            "yanchor": "top",
        },
        legend={
            "title": {
                "text": f"family (CPR, knee){'; pale: click to show' if some_hidden else ''}"
            },
            "tracegroupgap": 2,
        },
        margin={"t": 130, "l": 80, "r": 20, "b": 70},
        height=760,
    )
    figure.update_xaxes(type="log", dtick=1, showticklabels=True)
    figure.update_xaxes(title="size (units kept, log scale; a unit is at one position)", row=2)
    figure.update_yaxes(title="faithfulness<br>(m(C) − m(∅)) / (m(M) − m(∅))", row=1)
    figure.update_yaxes(title="KL(model ‖ circuit)<br>nats", rangemode="tozero", row=2)


def _curve(family: Frontier, value: str, look: _Look) -> list[go.Scatter]:
    """Every circuit of a family by size; the legend's entry belongs to faithfulness."""
    points = [point for point in family.points if point.size > 0]
    numbers = [getattr(point, value) for point in points]
    sizes = [point.size for point in points]
    random = family.intervals == "draws"
    bars = {
        "array": [n.high - n.value for n in numbers],
        "arrayminus": [n.value - n.low for n in numbers],
        "width": 2,
        "thickness": 1,
    }
    curve = go.Scatter(
        x=sizes,
        y=[n.value for n in numbers],
        mode="lines" if random else "lines+markers",
        line={"color": look.colour, "dash": look.dash, "width": 2},
        marker={"symbol": look.symbol, "size": 7},
        error_y=None if random else bars,
        customdata=[
            (p.faithfulness.value, p.kl.value, p.threshold, p.size / family.n_units) for p in points
        ],
        showlegend=value == "faithfulness",
        hovertemplate=f"<b>{family.family}</b><br>%{{x}} of {family.n_units} ({family.unit}), "
        "%{customdata[3]:.1%}<br>faithfulness %{customdata[0]:.3f}, KL %{customdata[1]:.3g} nats"
        "<br>threshold %{customdata[2]:.3g}<extra></extra>",
        **_common(family, look),
    )
    if not random:
        return [curve]
    return [_band(family, sizes, numbers, look), curve]


def _band(family: Frontier, sizes: list[int], numbers: list[Any], look: _Look) -> go.Scatter:
    red, green, blue = hex_to_rgb(look.colour)
    return go.Scatter(
        x=[*sizes, *reversed(sizes)],
        y=[*(n.high for n in numbers), *(n.low for n in reversed(numbers))],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.14)",
        hoverinfo="skip",
        showlegend=False,
        **_common(family, look),
    )


def _knee(family: Frontier, look: _Look) -> list[go.Scatter]:
    """A ring, and its size beside it; nothing where no circuit stands out, or for random ones."""
    point: FrontierPoint | None = family.knee
    if point is None or family.intervals == "draws":
        return []
    ring = go.Scatter(
        x=[point.size],
        y=[point.faithfulness.value],
        mode="markers",
        marker={"color": look.colour, "symbol": "circle-open", "size": 17, "line": {"width": 2}},
        showlegend=False,
        hoverinfo="skip",
        **_common(family, look),
    )
    return [ring]


def _common(family: Frontier, look: _Look) -> dict[str, Any]:
    """A family is shown and hidden as one; its entry names CPR and the knee."""
    knee = (
        "" if family.knee is None or family.intervals == "draws" else f", knee {family.knee.size}"
    )
    return {
        "name": f"{family.family} ({family.cpr:.2f}{knee})",
        "legendgroup": family.family,
        "visible": True if look.shown else "legendonly",
    }
