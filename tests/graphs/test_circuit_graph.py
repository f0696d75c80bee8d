"""The circuit graph: what it refuses, its views, and its file."""

import errno
import json
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.nodes import Node, NodeTable
from graphs import CircuitGraph, GraphMetadata

META = GraphMetadata(model="toy", prompt="a", tokens=("a",), n_layers=1, target="logit")


def feature(index: int, activation: float = 1.0) -> Node:
    return Node(kind="feature", layer=0, site="mlp", pos=0, feature=index, activation=activation)


OUTPUT = Node(kind="output", layer=1, site="logit", pos=0)


def graph_of(
    nodes: list[Node], target: list[int], source: list[int], values: list[float]
) -> CircuitGraph:
    long = torch.long
    return CircuitGraph(
        nodes=NodeTable(nodes),
        edge_target=torch.tensor(target, dtype=long),
        edge_source=torch.tensor(source, dtype=long),
        edge_attribution=torch.tensor(values, dtype=torch.float32),
        metadata=META,
    )


def assert_same(a: CircuitGraph, b: CircuitGraph) -> None:
    assert list(a.nodes) == list(b.nodes)
    assert a.metadata == b.metadata
    assert torch.equal(a.edge_target, b.edge_target)
    assert torch.equal(a.edge_source, b.edge_source)
    assert a.edge_attribution.dtype == b.edge_attribution.dtype
    assert torch.equal(a.edge_attribution, b.edge_attribution)


@pytest.mark.parametrize(
    ("nodes", "target", "source", "values", "message"),
    [
        ([feature(0), OUTPUT], [2], [0], [1.0], r"edge_target must hold rows 0\.\.1"),
        ([feature(0), OUTPUT], [1], [-1], [1.0], r"edge_source must hold rows 0\.\.1"),
        ([feature(0), OUTPUT], [1], [0], [float("nan")], "got nan on mlp0.0@0 -> output.logit"),
        ([feature(0), OUTPUT], [1], [0], [float("inf")], "attributions must be finite"),
        ([feature(0, float("inf")), OUTPUT], [1], [0], [1.0], "activations must be finite"),
        ([feature(0), OUTPUT], [1, 1], [0, 0], [1.0, 2.0], "more than once"),
        (
            [feature(0), feature(1), OUTPUT],
            [1, 0, 2],
            [0, 1, 0],
            [1.0] * 3,
            "must not form a cycle",
        ),
        ([feature(0), OUTPUT], [0], [0], [1.0], "must not form a cycle"),
        ([feature(0), feature(1)], [1], [0], [1.0], "at least one node of kind 'output'"),
    ],
)
def test_invalid_graphs_are_refused(nodes, target, source, values, message):
    with pytest.raises(ValueError, match=message):
        graph_of(nodes, target, source, values)


@pytest.mark.filterwarnings("ignore")
def test_ragged_columns_and_half_precision_are_refused():
    nodes, one = NodeTable([feature(0), OUTPUT]), torch.tensor([1])
    with pytest.raises(Exception, match=r"vectors of one length|shape|Float"):
        CircuitGraph(nodes, one, torch.tensor([0, 0]), torch.tensor([1.0]), META)
    with pytest.raises(ValueError, match="float32 or float64"):
        CircuitGraph(nodes, one, torch.tensor([0]), torch.tensor([1.0]).half(), META)
    with pytest.raises(ValueError, match="int64"):
        CircuitGraph(nodes, one.int(), torch.tensor([0]), torch.tensor([1.0]), META)


def test_a_graph_without_edges_is_valid():
    graph = graph_of([OUTPUT], [], [], [])
    assert (graph.n_nodes, graph.n_edges) == (1, 0)
    assert graph.outputs == (OUTPUT,)


def test_digraph_runs_source_to_target_with_records(chain):
    digraph = chain.digraph
    assert digraph is chain.digraph
    assert digraph.edges["error.mlp0@1", "mlp1.3@1"] == {"attribution": -1.0}
    assert digraph.nodes["mlp1.3@1"]["activation"] == 1.5
    assert digraph.nodes["mlp1.3@1"]["kind"] == "feature"
    assert digraph.number_of_edges() == 4
    assert digraph.graph["model"] == "toy"


def test_subgraph_is_induced_and_leaves_the_original(chain):
    part = chain.subgraph(["output.logit", "mlp1.3@1", "token@1"])
    assert [node.id for node in part.nodes] == ["token@1", "mlp1.3@1", "output.logit"]
    assert sorted(part.digraph.edges(data="attribution")) == [
        ("mlp1.3@1", "output.logit", 1.5),
        ("token@1", "output.logit", 0.5),
    ]
    assert chain.n_nodes == 5


def test_subgraph_refuses_unknown_ids_and_lost_outputs(chain):
    with pytest.raises(ValueError, match=r"mlp9\.9@9"):
        chain.subgraph(["output.logit", "mlp9.9@9"])
    with pytest.raises(ValueError, match="at least one node of kind 'output'"):
        chain.subgraph(["token@1"])


def test_with_notes_adds_and_keeps(chain):
    assert chain.with_notes(a="1").with_notes(b="2").metadata.notes == {"a": "1", "b": "2"}
    assert chain.metadata.notes == {}


def test_a_million_edges_in_thirty_levels_are_valid():
    n = 1500
    level = torch.arange(n + 1) * 30 // n
    target, source = (level[:, None] > level[None, :]).nonzero(as_tuple=True)
    nodes = [feature(i) for i in range(n)] + [OUTPUT]
    graph = CircuitGraph(NodeTable(nodes), target, source, torch.ones(len(target)), META)
    assert graph.n_edges > 1_000_000


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=6), text=st.text(), activation=finite)
def test_round_trip_loses_nothing(tmp_path_factory, values, text, activation):
    n = len(values)
    nodes = [feature(i, activation) for i in range(n)] + [OUTPUT]
    graph = graph_of(nodes, [n] * n, list(range(n)), values)
    metadata = META.model_copy(update={"tokens": (text,), "notes": {text: text}})
    graph = CircuitGraph(
        graph.nodes, graph.edge_target, graph.edge_source, graph.edge_attribution, metadata
    )
    path = tmp_path_factory.mktemp("graph") / "graph.json"
    graph.save(path)
    assert_same(CircuitGraph.load(path), graph)


def test_round_trip_in_float64_and_of_random_graphs(tmp_path, make_graph, random_graph):
    third = make_graph("t0 o.a", {("t0", "o.a"): 1 / 3}, torch.float64)
    for graph in (third, random_graph(0), random_graph(1)):
        graph.save(tmp_path / "graph.json")
        assert_same(CircuitGraph.load(tmp_path / "graph.json"), graph)


def test_file_is_versioned_sorted_and_repeatable(tmp_path, chain):
    chain.save(tmp_path / "a.json")
    chain.save(tmp_path / "b.json")
    text = (tmp_path / "a.json").read_text()
    assert text == (tmp_path / "b.json").read_text()
    document = json.loads(text)
    assert document["version"] == 1
    assert text.strip() == json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert document["nodes"][3]["id"] == "mlp1.3@1"


def edit(path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "should be circuit graph version 1, got version 2"),
        (lambda d: d.pop("version"), "without one"),
        (lambda d: d.pop("nodes"), r"missing or unknown: \['nodes'\]"),
        (lambda d: d.update(extra=1), r"missing or unknown: \['extra'\]"),
        (lambda d: d["nodes"][0].update(kind="neuron"), "field 'kind'"),
        (lambda d: d["nodes"][0].update(id="other"), "columns say 'token@0'"),
        (lambda d: d["nodes"][0].pop("id"), "KeyError: 'id'"),
        (lambda d: d["metadata"].pop("model"), "field 'model'"),
        (lambda d: d["edges"].pop("source"), "KeyError: 'source'"),
        (lambda d: d["edges"]["source"].__setitem__(0, 1.5), "whole row numbers"),
        (lambda d: d["edges"]["source"].__setitem__(0, 99), "edge_source must hold rows"),
        (lambda d: d["edges"]["source"].pop(), "must be of one length"),
        (lambda d: d["edges"]["attribution"].__setitem__(0, "x"), "not a well-formed"),
        (lambda d: d.update(dtype="float16"), "KeyError: 'float16'"),
        (lambda d: d.update(nodes=[]), "at least one node of kind 'output'|edge_"),
    ],
)
def test_malformed_files_are_refused(tmp_path, chain, change, message):
    path = tmp_path / "graph.json"
    chain.save(path)
    edit(path, change)
    with pytest.raises(ValueError, match=message):
        CircuitGraph.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files_are_refused(tmp_path, chain, share):
    path = tmp_path / "graph.json"
    chain.save(path)
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(ValueError, match="cut off"):
        CircuitGraph.load(path)


def test_pickles_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "graph.pkl"
    path.write_bytes(pickle.dumps({"version": 1}))
    with pytest.raises(ValueError, match="should be UTF-8 JSON"):
        CircuitGraph.load(path)
    with pytest.raises(FileNotFoundError):
        CircuitGraph.load(tmp_path / "none.json")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, chain, monkeypatch):
    path = tmp_path / "graph.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*free space.*graph\.json"):
        chain.save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["graph.json"]


def test_a_missing_folder_is_named(tmp_path, chain):
    with pytest.raises(OSError, match=r"check the folder.*nowhere"):
        chain.save(tmp_path / "nowhere" / "graph.json")


def test_interruption_removes_the_temporary_file(tmp_path, chain, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        chain.save(tmp_path / "graph.json")
    assert list(tmp_path.iterdir()) == []
