"""The figure of predictions: what edges foretold of each ablation, against what happened.

Most effects are small and a few are large, so both axes show asinh(effect / s), with s the median
size: linear about 0, logarithmic beyond, and the diagonal stays straight.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from attribution.nodes import Node
from graphs.figure_style import KIND_STYLES, KindStyle
from graphs.figure_text import escape, node_name, wrap
from graphs.interventions.effects import Effects, Observed, Predicted
from graphs.node_notes import NodeNotes

__all__ = ["group_name", "plot_effects"]

_PANELS: tuple[tuple[Observed, str], ...] = (
    ("frozen", "attention, norms and errors frozen"),
    ("live", "the real model"),
)
_GROUP = KindStyle("group of nodes", "hexagram", "#56B4E9")
_WIDTH, _HEIGHT, _TOP = 1120, 620, 150
_SIDES = {"direct": "direct edges", "total": "all paths"}
_HOVERED: tuple[tuple[Predicted | Observed, str], ...] = (
    ("direct", "predicted, direct edges"),
    ("total", "predicted, all paths"),
    ("frozen", "observed, frozen"),
    ("live", "observed, real model"),
)
_MOST_LISTED = 6


def plot_effects(
    effects: Effects,
    *,
    title: str,
    predicted: Predicted = "total",
    output: int = 0,
    notes: Mapping[str, NodeNotes] | None = None,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw predicted against observed effects, a point a node or group, mean over the prompts.

    Args:
        effects: from `measure_effects`.
        title: the finding, in one sentence.
        predicted: along direct edges, or over all paths.
        output: which of the outputs.
        notes: node id -> names, for hovers. None: ids only.
        template: name of a Plotly template.

    Returns:
        Two panels, frozen and live, on the same axes, with the diagonal on which predictions come
        true. Traces carry the names of groups in `customdata`.

    Raises:
        ValueError: if there is no such output.
    """
    if not 0 <= output < len(effects.outputs):
        raise ValueError(
            f"output must be from 0 to {len(effects.outputs) - 1} ({', '.join(effects.outputs)}), "
            f"got {output}"
        )
    titles = [_panel_title(effects, predicted, output, *panel) for panel in _PANELS]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.08)
    sides: tuple[Predicted | Observed, ...] = (predicted, "frozen", "live")
    sizes = [abs(x) for side in sides for x in effects.mean(side, output).tolist() if x]
    unit = median(sizes) if sizes else 1.0
    for column, (side, _) in enumerate(_PANELS, 1):
        figure.add_trace(_diagonal(sizes, unit, column == 1), row=1, col=column)
        for trace in _points(effects, (predicted, side), output, notes or {}, unit, column == 1):
            figure.add_trace(trace, row=1, col=column)
    _set_frame(figure, effects, output, title, template)
    _set_axes(figure, effects.outputs[output], _SIDES[predicted], sizes, unit)
    return figure


def _panel_title(
    effects: Effects, predicted: Predicted, output: int, side: Observed, words: str
) -> str:
    try:
        found = effects.agreement(predicted, side, output)
    except ValueError:  # one side is constant: nothing to correlate
        return words
    return (
        f"{words}<br><span style='font-size:12px'>Spearman {found.spearman:.2f}, Pearson "
        f"{found.pearson:.2f}, same sign {found.same_sign:.0%}, mean gap "
        f"{found.mean_absolute_error:.3g}</span>"
    )


def _warped(values: Sequence[float], unit: float) -> list[float]:
    return [math.asinh(value / unit) for value in values]


def _diagonal(sizes: Sequence[float], unit: float, legend: bool) -> go.Scatter:
    largest = max(sizes, default=1.0)
    ends = _warped([-largest, largest], unit)
    return go.Scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": "#7f7f7f", "width": 1, "dash": "dot"},
        name="observed = predicted",
        legendgroup="diagonal",
        showlegend=legend,
        hoverinfo="skip",
    )


def _points(
    effects: Effects,
    sides: tuple[Predicted, Observed],
    output: int,
    notes: Mapping[str, NodeNotes],
    unit: float,
    legend: bool,
) -> list[go.Scatter]:
    """One trace a kind."""
    x, y = (_warped(effects.mean(side, output).tolist(), unit) for side in sides)
    by_kind: dict[str, list[int]] = {}
    for i, group in enumerate(effects.groups):
        by_kind.setdefault(group[0].kind if len(group) == 1 else "group", []).append(i)
    traces = []
    for kind, style in (*KIND_STYLES.items(), ("group", _GROUP)):
        if kind not in by_kind:
            continue
        rows = by_kind[kind]
        traces.append(
            go.Scatter(
                x=[x[i] for i in rows],
                y=[y[i] for i in rows],
                mode="markers",
                marker={
                    "color": style.color,
                    "symbol": style.symbol,
                    "size": 9,
                    "line": {"color": style.border, "width": 1},
                },
                hovertext=[_hover(effects, i, output, notes) for i in rows],
                hoverinfo="text",
                customdata=[group_name(effects.groups[i]) for i in rows],
                name=style.legend,
                legendgroup=kind,
                showlegend=legend,
            )
        )
    return traces


def group_name(group: tuple[Node, ...]) -> str:
    """Ids with commas between, as a group is given; of a long one the first, and how many more.

    Example:
        >>> group_name((Node(kind="token", layer=-1, site="embed", pos=3),))
        'token@3'
    """
    ids = [node.id for node in group]
    more = len(ids) - _MOST_LISTED
    return ",".join(ids[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _hover(effects: Effects, i: int, output: int, notes: Mapping[str, NodeNotes]) -> str:
    group = effects.groups[i]
    names = [escape(node_name(node, notes.get(node.id))) for node in group[:_MOST_LISTED]]
    values = [f"{words} {float(effects.mean(side, output)[i]):+.4g}" for side, words in _HOVERED]
    switched = float(effects.switched[:, i].double().mean())
    values.append(f"features that went on or off in the frozen model: {switched:.4g}")
    return "<br>".join([f"<b>{', '.join(names)}</b>", escape(group_name(group)), *values])


def _set_frame(figure: go.Figure, effects: Effects, output: int, title: str, template: str) -> None:
    n_prompts, name = len(effects.switched), effects.outputs[output]
    small = (
        f"{len(effects.groups)} nodes and groups, each ablated alone (to {effects.ablation}) on "
        f"{n_prompts} prompt{'s' if n_prompts > 1 else ''}; changes of {name}"
    )
    figure.update_layout(
        template=template,
        title={
            "text": f"<b>{escape(title)}</b>",
            "subtitle": {"text": "<br>".join(wrap(small, 150))},
        },
        legend={"orientation": "h", "y": -0.17},
        margin={"t": _TOP, "l": 70, "r": 30},
        width=_WIDTH,
        height=_HEIGHT,
        hoverlabel={"align": "left"},
    )


def _set_axes(
    figure: go.Figure, name: str, words: str, sizes: Sequence[float], unit: float
) -> None:
    ticks = _ticks(max(sizes, default=1.0), unit)
    scale = {"tickvals": _warped(ticks, unit), "ticktext": [f"{tick:g}" for tick in ticks]}
    figure.update_xaxes(title=f"predicted change of {escape(name)} ({words})", matches="x", **scale)
    figure.update_yaxes(matches="y", **scale)
    figure.update_yaxes(title=f"observed change of {escape(name)}", col=1)


def _ticks(largest: float, unit: float) -> list[float]:
    """0, and 1 and 3 times powers of ten from the median size to the largest, with both signs."""
    first, last = math.floor(math.log10(unit)), math.floor(math.log10(largest))
    sizes = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in (1, 3)]
    shown = [size for size in sizes if unit <= size <= largest]
    return [*(-size for size in reversed(shown)), 0.0, *shown]
