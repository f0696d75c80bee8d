"""The figure of a circuit and its HTML file."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import plotly.io as pio
import pytest

from graphs import NodeNotes, plot_circuit, write_html
from graphs.figure_edges import edge_curves

ROOT = Path(__file__).parents[2]


def by_group(figure, prefix: str) -> list:
    return [trace for trace in figure.data if trace.legendgroup.startswith(prefix)]


def all_text(figure) -> str:
    parts = [figure.layout.title.text, figure.layout.title.subtitle.text]
    for trace in figure.data:
        parts += [*(trace.hovertext or ()), *(trace.text or ())]
    parts += [annotation.text for annotation in figure.layout.annotations]
    return "\n".join(str(part) for part in parts)


def test_every_node_is_drawn_once_by_kind(random_graph):
    graph = random_graph(0)
    figure = plot_circuit(graph)
    drawn = [i for trace in by_group(figure, "nodes") for i in trace.customdata]
    assert sorted(drawn) == sorted(node.id for node in graph.nodes)
    symbols = {trace.legendgroup: trace.marker.symbol for trace in by_group(figure, "nodes")}
    assert symbols["nodes feature"] == "circle"
    assert symbols["nodes token"] == "square"
    assert len(set(symbols.values())) == len(symbols) == 7


def test_every_edge_is_drawn_once_by_sign(random_graph):
    graph = random_graph(1)
    figure = plot_circuit(graph)
    signed = {(s, t): np.sign(a) for s, t, a in graph.digraph.edges(data="attribution")}
    for sign in (1, -1):
        group = by_group(figure, f"edges{sign:+d}")
        hovers = [trace for trace in group if trace.mode == "markers"]
        pairs = {tuple(pair) for trace in hovers for pair in trace.customdata}
        assert pairs == {pair for pair, s in signed.items() if s == sign}
        lines = [trace for trace in group if trace.mode == "lines"]
        n_gaps = sum(int(np.isnan(np.asarray(line.x)).sum()) for line in lines)
        assert n_gaps == len(pairs)
        assert sum(trace.showlegend is True for trace in group) == 1
        assert len({trace.line.color for trace in lines}) == 1
    assert len(figure.data) <= 7 + 2 * 5


def test_the_legend_has_one_heading_over_each_part(random_graph):
    figure = plot_circuit(random_graph(1))
    headed = [trace for trace in figure.data if trace.legendgrouptitle.text]
    assert {trace.legendgroup for trace in headed} == {"edges+1", "nodes position"}
    for trace in headed:
        rivals = [t for t in by_group(figure, trace.legendgroup[:5]) if t.showlegend is not False]
        assert (trace.legendrank or 0) == min(t.legendrank or 0 for t in rivals)


def test_stronger_edges_are_wider(make_graph):
    graph = make_graph("t0 t1 o.a", {("t0", "o.a"): 100.0, ("t1", "o.a"): 1.0})
    lines = [t for t in by_group(plot_circuit(graph), "edges") if t.mode == "lines"]
    assert len(lines) == 2
    assert lines[0].line.width < lines[1].line.width
    assert lines[0].opacity < lines[1].opacity


def test_hover_tells_what_is_known(chain):
    notes = {
        "mlp1.3@1": NodeNotes(
            label="years", deembedding=(" 17", "<b>"), promoted=("33",), suppressed=("02",)
        )
    }
    figure = plot_circuit(chain, notes=notes)
    (features,) = by_group(figure, "nodes feature")
    assert list(features.text) == ["\u00a0years"]
    assert features.hovertext[0].split("<br>") == [
        "<b>years</b>",
        "feature 3 of mlp in layer 1 at token 1 “ The”",
        "activation 1.5",
        "influence 75.00% of the output",
        "reads (de-embedding): “ 17” “&lt;b&gt;”",
        "promotes: “33”",
        "suppresses: “02”",
    ]
    negative = next(t for t in by_group(figure, "edges-1") if t.mode == "markers")
    assert negative.hovertext[0].split("<br>") == [
        "<b>error mlp0</b> → <b>years</b>",
        "error.mlp0@1 → mlp1.3@1",
        "attribution -1",
        "influence 18.75% of the output",
    ]


def test_text_from_outside_is_escaped(chain):
    evil = "<script>x</script>"
    metadata = chain.metadata.model_copy(
        update={"tokens": (evil, evil, evil, evil), "prompt": evil, "model": evil}
    )
    graph = type(chain)(
        chain.nodes, chain.edge_target, chain.edge_source, chain.edge_attribution, metadata
    )
    figure = plot_circuit(
        graph,
        notes={"mlp1.3@1": NodeNotes(label=evil, promoted=(evil,))},
        title=evil,
        proof={evil: evil},
    )
    assert "<script>" not in all_text(figure)
    assert not any("<script" in tick for tick in figure.layout.xaxis.ticktext)
    assert "&lt;script&gt;" in all_text(figure)
    assert "&amp;lt;" not in all_text(figure)


def test_title_proof_and_what_is_left_out_are_written(random_graph):
    graph = random_graph(2)
    figure = plot_circuit(
        graph, title="It works", proof={"faithfulness": "0.93"}, max_nodes=8, max_edges=3
    )
    assert figure.layout.title.text == "<b>It works</b>"
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert re.search(rf"showing 8 of {graph.n_nodes} nodes, \d+\.\d% of node influence", subtitle)
    assert re.search(rf"showing 3 of {graph.n_edges} edges, \d+\.\d% of edge influence", subtitle)
    assert "faithfulness: 0.93" in figure.layout.annotations[0].text
    assert sum(len(trace.customdata) for trace in by_group(figure, "nodes")) == 8
    outputs = by_group(figure, "nodes output")[0]
    assert list(outputs.customdata) == ["output.a", "output.b"]


def test_without_a_proof_there_is_no_panel_and_all_is_said_to_be_shown(chain):
    figure = plot_circuit(chain)
    assert not figure.layout.annotations
    assert "all 5 nodes shown; all 4 edges shown; 18.8%" in figure.layout.title.subtitle.text
    assert figure.layout.title.text == "<b>What drives logit in toy</b>"


def test_a_pruned_graph_says_what_it_was(chain):
    pruned = chain.with_notes(pruned_from="9 nodes and 8 edges", unexplained_before="40.0%")
    subtitle = plot_circuit(pruned).layout.title.subtitle.text.replace("<br>", " ")
    assert "pruned from 9 nodes and 8 edges" in subtitle
    assert "40.0% before pruning" in subtitle


def test_axes_name_tokens_and_layers(random_graph):
    layout = plot_circuit(random_graph(0)).layout
    assert [tick.split("<br>")[0] for tick in layout.xaxis.ticktext] == [
        "<i>biases</i>",
        "&lt;|bos|&gt;",
        "The",
        "year",
        "⏎",
    ]
    assert list(layout.yaxis.ticktext) == ["inputs", "layer 0", "layer 1", "layer 2", "output"]


def test_the_figure_is_deterministic_and_sets_no_template(random_graph):
    before = pio.templates.default
    graph = random_graph(4)
    assert plot_circuit(graph).to_json() == plot_circuit(graph).to_json()
    assert pio.templates.default == before
    dark = plot_circuit(graph, template="plotly_dark")
    assert dark.layout.template != plot_circuit(graph).layout.template


def test_a_graph_without_edges_is_drawn(make_graph):
    figure = plot_circuit(make_graph("t0 o.a", {}))
    assert {trace.legendgroup for trace in figure.data} == {"nodes token", "nodes output"}


def test_limits_out_of_range_are_refused(random_graph):
    with pytest.raises(ValueError, match=r"at least the 2 outputs.*got 1 and 5"):
        plot_circuit(random_graph(0), max_nodes=1, max_edges=5)
    with pytest.raises(ValueError, match="got 9 and -1"):
        plot_circuit(random_graph(0), max_nodes=9, max_edges=-1)


def test_curves_end_at_their_nodes_and_start_upwards():
    ends = np.array([[0.0, 0.0, 100.0, 50.0], [5.0, 0.0, 5.0, 80.0]])
    curves = edge_curves(ends, 21)
    np.testing.assert_allclose(curves[:, 0], ends[:, :2])
    np.testing.assert_allclose(curves[:, -1], ends[:, 2:])
    assert (np.diff(curves[..., 1], axis=1) > 0).all()
    assert curves[1, 10, 0] < 5.0 - 5.0  # swings clear of what lies between
    straight = edge_curves(ends, 2)
    np.testing.assert_allclose(straight.reshape(2, 4), ends)


def test_html_is_self_contained_repeatable_and_titled(tmp_path, chain):
    figure = plot_circuit(chain, title="A <finding> & more")
    write_html(figure, tmp_path / "a.html")
    write_html(figure, tmp_path / "b.html")
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    assert "<title>A &lt;finding&gt; &amp; more</title>" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert len(page) < 8_000_000


def test_a_full_disk_leaves_no_html(tmp_path, chain, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_html(plot_circuit(chain), tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_graphs_leaves_plotly_alone_and_names_mean_functions():
    code = """
import sys, graphs, graphs.prune
from graphs.prune import METHODS
assert "plotly" not in sys.modules
assert "transformer_lens" not in sys.modules
missing = [name for name in graphs.__all__ if not callable(getattr(graphs, name))]
assert not missing, missing
assert "plotly" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
