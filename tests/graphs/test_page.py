"""The page of a circuit as a file: what it holds, what it refuses, and that nothing gets out."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from attribution.factors import EdgeFactors, PathFactors
from graphs.circuit_graph import CircuitGraph
from graphs.influence import edge_influence, node_influence, normalise_rows
from graphs.node_notes import NodeNotes
from graphs.page import ShownContext, circuit_page
from graphs.proof.estimates import Estimate


def record(page) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="record">(.*?)</script>', page.html)
    return json.loads(text)


def unpack(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag, {}))


def parse(page) -> Tags:
    tags = Tags()
    tags.feed(page.html)
    return tags


def test_columns_and_edges_are_those_of_the_graph(random_graph):
    graph = random_graph(0)
    held = record(circuit_page(graph))
    nodes, edges = held["nodes"], held["edges"]
    assert nodes["id"] == [node.id for node in graph.nodes]
    assert nodes["kind"] == [node.kind for node in graph.nodes]
    np.testing.assert_array_equal(unpack(edges["source"], "<u4"), graph.edge_source)
    np.testing.assert_array_equal(unpack(edges["target"], "<u4"), graph.edge_target)
    np.testing.assert_array_equal(unpack(edges["attribution"], "<f4"), graph.edge_attribution)
    np.testing.assert_allclose(unpack(nodes["influence"], "<f8"), node_influence(graph))
    np.testing.assert_allclose(unpack(edges["influence"], "<f4"), edge_influence(graph), rtol=1e-6)


def test_rows_are_normalised_over_the_whole_graph_even_where_little_is_drawn(random_graph):
    graph = random_graph(1)
    held = record(circuit_page(graph, max_edges=10))
    source, target = (unpack(held["edges"][end], "<u4") for end in ("source", "target"))
    share = np.abs(unpack(held["edges"]["attribution"], "<f4"))
    share = share / unpack(held["edges"]["total"], "<f8")[target]
    normalised = normalise_rows(graph.edge_attribution, graph.edge_target, graph.n_nodes)
    whole = {
        (graph.nodes[s].id, graph.nodes[t].id): n
        for s, t, n in zip(
            graph.edge_source.tolist(),
            graph.edge_target.tolist(),
            normalised.tolist(),
            strict=True,
        )
    }
    ids = held["nodes"]["id"]
    assert len(share) == 10
    for s, t, n in zip(source, target, share, strict=True):
        assert n == pytest.approx(whole[ids[s], ids[t]], rel=1e-6)


def test_errors_are_on_the_page_before_stronger_features(random_graph):
    graph = random_graph(2)
    held = record(circuit_page(graph, max_nodes=4))
    assert sorted(held["nodes"]["kind"]) == ["error", "error", "output", "output"]
    share = float(node_influence(graph)[graph.is_kind("error")].sum())
    assert held["error_share"] == pytest.approx(share)
    assert share > 0


def test_notes_contexts_and_factors_reach_their_rows(chain):
    path = PathFactors((0, 3), 1.5, 0.5, {"ln1.1@1": 2.0}, 4.0, True)
    edge = EdgeFactors(chain.nodes[4], chain.nodes[3], 1.5, (path,), 0.25)
    missing = EdgeFactors(chain.nodes[4], chain.nodes[0], 1.0, (), 1.0)
    held = record(
        circuit_page(
            chain,
            notes={"mlp1.3@1": NodeNotes(label="years", promoted=("33",))},
            contexts={"mlp1.3@1": [ShownContext(tokens=("a", " b"), values=(0.0, 2.0))]},
            edge_details=[edge, missing],
        )
    )
    assert held["nodes"]["name"][3] == "years"
    assert held["nodes"]["notes"] == {"3": {"promoted": ["33"]}}
    assert held["nodes"]["contexts"] == {"3": [{"tokens": ["a", " b"], "values": [0.0, 2.0]}]}
    (row,) = held["edges"]["factors"]
    source, target = (unpack(held["edges"][end], "<u4")[int(row)] for end in ("source", "target"))
    assert (source, target) == (3, 4)
    (factors,) = held["edges"]["factors"].values()
    assert factors["remainder"] == 0.25
    assert factors["paths"] == [
        {
            "through": "head 0.3",
            "activation": 1.5,
            "attention": 0.5,
            "dependent": 0.375,
            "weight": 4.0,
            "invariant": True,
            "value": 1.5,
        }
    ]


def test_stops_are_sorted_and_groups_keep_their_order(chain):
    at = {0.9: Estimate(value=0.8, low=0.7, high=0.9), 0.5: Estimate(value=0.4, low=0.3, high=0.5)}
    groups = {"z": ["mlp1.3@1", "token@0"], "a": ["token@1"]}
    held = record(circuit_page(chain, faithfulness_at=at, groups=groups))
    assert held["stops"] == [
        {"share": 0.5, "value": 0.4, "low": 0.3, "high": 0.5},
        {"share": 0.9, "value": 0.8, "low": 0.7, "high": 0.9},
    ]
    assert held["groups"] == [{"name": "z", "rows": [0, 3]}, {"name": "a", "rows": [1]}]
    assert record(circuit_page(chain))["stops"] is None


def test_a_group_that_is_not_drawn_is_left_out(chain):
    groups = {"gone": ["token@1"], "here": ["output.logit"]}
    held = record(circuit_page(chain, groups=groups, max_nodes=2))
    assert [group["name"] for group in held["groups"]] == ["here"]


def test_the_policy_names_both_scripts_and_allows_nothing_else(chain):
    tags = parse(circuit_page(chain))
    (policy,) = [
        attributes["content"]
        for tag, attributes in tags.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    assert rules["img-src"] == "data: blob:"
    runnable = tags.scripts[1:]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in runnable]
    assert rules["script-src"] == " ".join(f"'sha256-{h}'" for h in hashes)
    assert len(runnable) == 2
    for tag, attributes in tags.tags:
        assert not {"src", "href", "srcset"} & set(attributes), tag


def test_text_from_outside_cannot_leave_its_element(chain):
    evil = "</script><img src=x onerror=alert(1)><!--<script>\u2028$record"
    metadata = chain.metadata.model_copy(
        update={"tokens": (evil,) * 4, "prompt": evil, "model": evil, "target": evil}
    )
    graph = CircuitGraph(
        chain.nodes, chain.edge_target, chain.edge_source, chain.edge_attribution, metadata
    )
    page = circuit_page(
        graph, title=evil, proof={evil: evil}, command=evil, groups={evil: ["token@0"]}
    )
    plain = [tag for tag, _ in parse(circuit_page(chain)).tags]
    assert [tag for tag, _ in parse(page).tags] == plain
    held = record(page)
    assert held["title"] == held["command"] == held["axes"]["tokens"][0] == evil
    assert held["proof"] == [[evil, evil]]


def test_the_file_is_repeatable_and_small(tmp_path, chain):
    one, two = circuit_page(chain), circuit_page(chain)
    one.write_html(tmp_path / "a.html")
    two.write_html(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").stat().st_size < 6_000_000
    assert one.html.count("plotly.js v") == 1


def test_a_notebook_gets_a_frame_without_rights(chain):
    frame = circuit_page(chain, title='say "hi"')._repr_html_()
    assert frame.count("<iframe") == 1
    assert 'sandbox="allow-scripts allow-downloads"' in frame
    tags = Tags()
    tags.feed(frame)
    assert tags.tags[0][1]["srcdoc"] == circuit_page(chain, title='say "hi"').html


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"groups": {"a": ["token@9"]}}, r"group 'a' must name nodes.*got \['token@9'\]"),
        ({"groups": {"a": ["token@0"], "b": ["token@0"]}}, r"one group only, got 'token@0' in 'a'"),
        ({"contexts": {"nobody": []}}, r"contexts must name nodes.*'nobody'"),
        ({"faithfulness_at": {}}, "at least one stop"),
        ({"max_nodes": 0}, "at least the 1 outputs"),
    ],
    ids=["unknown member", "two groups", "unknown context", "no stops", "no room"],
)
def test_what_makes_no_page_is_refused(chain, added, message):
    with pytest.raises(ValueError, match=message):
        circuit_page(chain, **added)


@pytest.mark.parametrize("threshold", [0.0, 1.5, -0.1])
def test_stops_outside_the_unit_interval_are_refused(chain, threshold):
    at = {threshold: Estimate(value=0.5, low=0.4, high=0.6)}
    with pytest.raises(ValueError, match=rf"shares of influence in \(0, 1\], got {threshold}"):
        circuit_page(chain, faithfulness_at=at)


def test_a_context_needs_one_activation_a_token():
    with pytest.raises(ValueError, match="got 1 for 2 tokens"):
        ShownContext(tokens=("a", "b"), values=(1.0,))


def test_numbers_survive_in_float64(random_graph):
    graph = random_graph(5)
    double = CircuitGraph(
        graph.nodes,
        graph.edge_target,
        graph.edge_source,
        graph.edge_attribution.double() / 3,
        graph.metadata,
    )
    total = unpack(record(circuit_page(double))["edges"]["total"], "<f8")
    size = double.edge_attribution.abs()
    for row in range(graph.n_nodes):
        assert total[row] == pytest.approx(float(size[graph.edge_target == row].sum()), rel=1e-12)
    assert torch.equal(graph.edge_target, double.edge_target)
