"""The figure of predictions: every number of it, and that it is the same each time."""

import math
from pathlib import Path

import pytest
import torch

from attribution import Node
from graphs import NodeNotes, write_html
from graphs.interventions.effects import Effects
from graphs.interventions.effects_figure import group_name, plot_effects


def node(kind: str, pos: int, feature: int = -1) -> Node:
    layer = -1 if kind == "token" else 0
    site = "embed" if kind == "token" else "mlp"
    return Node(kind=kind, layer=layer, site=site, pos=pos, feature=feature)  # type: ignore[arg-type]


FEATURES = [node("feature", pos, 7) for pos in range(8)]
GROUPS = ((FEATURES[0],), (node("token", 1),), (FEATURES[1], FEATURES[2]), (FEATURES[3],))


def effects(*, live: tuple[float, ...] = (-0.5, 2.0, 30.0, 1.0)) -> Effects:
    """Four groups, two prompts, two outputs; the second output is ten times the first."""

    def side(*values: float) -> torch.Tensor:
        column = torch.tensor(values).double()[:, None] * torch.tensor([1.0, 10.0])
        return torch.stack([column * 0.5, column * 1.5])

    return Effects(
        groups=GROUPS,
        outputs=("logit <a>", "other"),
        direct=side(-1.0, 0.0, 1.0, 2.0),
        total=side(-2.0, 0.25, 4.0, 1.0),
        frozen=side(-2.0, 0.5, 3.0, 1.0),
        live=side(*live),
        switched=torch.tensor([[0, 1, 2, 3], [2, 1, 0, 3]]),
        ablation="zero",
    )


UNIT = 1.5
"""Median size of -2, 1/4, 4, 1; -2, 1/2, 3, 1; -1/2, 2, 30, 1."""


def points(figure, column: int) -> dict[str, tuple[float, float]]:
    """Name of a group -> its predicted and observed effect, read off the axes."""
    axis = "x" if column == 1 else "x2"
    found = {}
    for trace in figure.data:
        if trace.mode == "markers" and trace.xaxis == axis:
            for name, x, y in zip(trace.customdata, trace.x, trace.y, strict=True):
                found[name] = (UNIT * math.sinh(x), UNIT * math.sinh(y))
    return found


def test_points_are_the_effects() -> None:
    figure = plot_effects(effects(), title="t")
    names = [group_name(group) for group in GROUPS]
    assert names == ["mlp0.7@0", "token@1", "mlp0.7@1,mlp0.7@2", "mlp0.7@3"]
    total = (-2.0, 0.25, 4.0, 1.0)
    for column, observed in ((1, (-2.0, 0.5, 3.0, 1.0)), (2, (-0.5, 2.0, 30.0, 1.0))):
        found = points(figure, column)
        for name, x, y in zip(names, total, observed, strict=True):
            assert found[name] == pytest.approx((x, y))
    direct = points(plot_effects(effects(), title="t", predicted="direct"), 1)
    assert set(direct) == set(names)


def test_panels_share_axes_and_have_a_diagonal() -> None:
    figure = plot_effects(effects(), title="t")
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [trace.xaxis for trace in lines] == ["x", "x2"]
    for line in lines:
        assert line.x == line.y
        assert line.x == pytest.approx((-math.asinh(30 / UNIT), math.asinh(30 / UNIT)))
    assert figure.layout.xaxis2.matches == figure.layout.xaxis.matches == "x"
    assert figure.layout.yaxis2.matches == figure.layout.yaxis.matches == "y"
    ticks = dict(zip(figure.layout.xaxis.ticktext, figure.layout.xaxis.tickvals, strict=True))
    assert list(ticks) == ["-30", "-10", "-3", "0", "3", "10", "30"]
    assert ticks["-10"] == pytest.approx(math.asinh(-10 / UNIT))
    assert "all paths" in figure.layout.xaxis.title.text


def test_kinds_are_told_apart_once_in_the_legend() -> None:
    figure = plot_effects(effects(), title="t")
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert shown == ["observed = predicted", "token embedding", "feature", "group of nodes"]
    colours = {trace.marker.color for trace in figure.data if trace.mode == "markers"}
    assert len(colours) == 3


def test_hovers_say_all_four_numbers() -> None:
    notes = {"mlp0.7@0": NodeNotes(label="reads <b>")}
    figure = plot_effects(effects(), title="a < b", notes=notes)
    (hover,) = [
        trace.hovertext[0]
        for trace in figure.data
        if trace.name == "feature" and trace.xaxis == "x2"
    ]
    assert hover.split("<br>") == [
        "<b>reads &lt;b&gt;</b>",
        "mlp0.7@0",
        "predicted, direct edges -1",
        "predicted, all paths -2",
        "observed, frozen -2",
        "observed, real model -0.5",
        "features that went on or off in the frozen model: 1",
    ]
    assert figure.layout.title.text == "<b>a &lt; b</b>"
    assert "4 nodes and groups" in figure.layout.title.subtitle.text
    assert "on 2 prompts; changes of logit &lt;a&gt;" in figure.layout.title.subtitle.text


def test_titles_say_how_well_they_agree() -> None:
    found = effects().agreement("total", "live")
    titles = [note.text for note in plot_effects(effects(), title="t").layout.annotations]
    assert f"Spearman {found.spearman:.2f}, Pearson {found.pearson:.2f}" in titles[1]
    assert f"mean gap {found.mean_absolute_error:.3g}" in titles[1]
    constant = plot_effects(effects(live=(1.0,) * 4), title="t")
    assert constant.layout.annotations[1].text == "the real model"


def test_another_output() -> None:
    figure = plot_effects(effects(), title="t", output=1)
    assert "other" in figure.layout.xaxis.title.text
    assert list(figure.layout.xaxis.ticktext)[-3:] == ["30", "100", "300"]
    with pytest.raises(ValueError, match=r"output must be from 0 to 1 \(logit <a>, other\), got 2"):
        plot_effects(effects(), title="t", output=2)


def test_nothing_happens() -> None:
    still = effects()
    zero = torch.zeros_like(still.live)
    figure = plot_effects(
        Effects(still.groups, still.outputs, zero, zero, zero, zero, still.switched, "zero"),
        title="t",
    )
    assert set(points(figure, 1).values()) == {(0.0, 0.0)}


def test_long_groups_are_cut() -> None:
    assert group_name(tuple(FEATURES)).endswith("mlp0.7@5 and 2 more")
    assert group_name(tuple(FEATURES[:6])).endswith("mlp0.7@5")


def test_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    pages = []
    for name in ("a.html", "b.html"):
        write_html(plot_effects(effects(), title="t"), tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert b"<script src=" not in pages[0]
