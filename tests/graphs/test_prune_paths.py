"""Pruning to the strongest paths: exactly their nodes and edges."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from attribution import LogitDifference, Path, attribute, top_paths
from graphs import CircuitGraph, average_graphs, build_graph
from graphs.prune_paths import path_scores, prune_paths
from tests import models


def _path(graph: CircuitGraph, names: str, value: float) -> Path:
    ids = [node.id for node in graph.nodes]
    return Path(tuple(graph.nodes[ids.index(name)] for name in names.split()), value)


def _edges(graph: CircuitGraph) -> set[tuple[str, str]]:
    return set(graph.digraph.edges)


def test_by_hand(make_graph: Callable[..., CircuitGraph]) -> None:
    graph = make_graph(
        "t0 t1 e0 f0.1 f1.3 o.a o.b",
        {
            ("t0", "f0.1"): 1.0,
            ("t0", "f1.3"): 2.0,
            ("f0.1", "f1.3"): 1.0,
            ("e0", "f1.3"): 1.0,
            ("f1.3", "o.a"): 2.0,
            ("f0.1", "o.a"): 3.0,
            ("t1", "o.b"): 4.0,
        },
    )
    paths = [
        _path(graph, "token@0 mlp0.1@1 output.a", 1.0),
        _path(graph, "token@0 mlp1.3@1 output.a", -3.0),
        _path(graph, "error.mlp0@1 mlp1.3@1 output.a", 2.0),
    ]
    two = prune_paths(graph, paths=paths, k=2)
    assert _edges(two) == {
        ("token@0", "mlp1.3@1"),
        ("error.mlp0@1", "mlp1.3@1"),
        ("mlp1.3@1", "output.a"),
    }
    assert [n.id for n in two.nodes] == [
        *("token@0", "error.mlp0@1", "mlp1.3@1", "output.a", "output.b"),
    ]
    assert two.metadata.notes["pruned_by"] == "the 2 strongest of 3 paths"
    assert two.digraph.edges["mlp1.3@1", "output.a"]["attribution"] == 2.0
    none = prune_paths(graph, paths=paths, k=0)
    assert [n.id for n in none.nodes] == ["output.a", "output.b"]
    three = prune_paths(graph, paths=paths, k=3)
    assert _edges(three) - _edges(two) == {("token@0", "mlp0.1@1"), ("mlp0.1@1", "output.a")}
    assert path_scores(paths) == {
        "token@0": 3.0,
        "mlp0.1@1": 1.0,
        "mlp1.3@1": 3.0,
        "error.mlp0@1": 2.0,
        "output.a": 3.0,
    }


def test_ties_fall_to_the_earlier_path(make_graph: Callable[..., CircuitGraph]) -> None:
    graph = make_graph("t0 t1 o.a", {("t0", "o.a"): 1.0, ("t1", "o.a"): -1.0})
    paths = [_path(graph, "token@1 output.a", -1.0), _path(graph, "token@0 output.a", 1.0)]
    assert _edges(prune_paths(graph, paths=paths, k=1)) == {("token@1", "output.a")}


@pytest.mark.parametrize("k", [1, 7, 40])
def test_paths_of_two_prompts(k: int) -> None:
    """Nested, and just what is on the best paths of both together."""
    spliced = models.spliced("gpt2", "transcoders")
    prompts = [models.TOKENS, models.TOKENS.flip(0)]
    traces = [attribute(spliced, tokens, LogitDifference(5, 9)) for tokens in prompts]
    graph = average_graphs([build_graph(trace) for trace in traces])
    paths = [path for trace in traces for path in top_paths(trace, 0, k=30).paths]
    circuit = prune_paths(graph, paths=paths, k=k)
    best = sorted(paths, key=lambda path: abs(path.value), reverse=True)[:k]
    assert _edges(circuit) == {(a.id, b.id) for path in best for a, b in pairwise(path.nodes)}
    assert {node.id for node in circuit.nodes} == {n.id for path in best for n in path.nodes}
    for source, target, record in circuit.digraph.edges(data=True):
        assert record == graph.digraph.edges[source, target]
    larger = prune_paths(graph, paths=paths, k=k + 1)
    assert _edges(circuit) <= _edges(larger)


def test_bad_input(chain: CircuitGraph) -> None:
    paths = [_path(chain, "token@0 mlp1.3@1 output.logit", 1.0)]
    for k in (-1, 2):
        with pytest.raises(ValueError, match=f"between 0 and the 1 paths given, got {k}"):
            prune_paths(chain, paths=paths, k=k)
    wrong = [_path(chain, "token@0 output.logit", 1.0)]
    with pytest.raises(ValueError, match=r"the graph has no edge token@0 -> output\.logit"):
        prune_paths(chain, paths=wrong, k=1)


def test_a_node_the_graph_lacks_is_no_other(make_graph: Callable[..., CircuitGraph]) -> None:
    """An edge from the last row into the row before must not stand in for it."""
    graph = make_graph("o.a f0.1 t0", {("t0", "o.a"): 1.0, ("f0.1", "o.a"): 1.0})
    other = make_graph("t1 f0.1 o.a", {("t1", "f0.1"): 1.0})
    with pytest.raises(ValueError, match=r"the graph has no edge token@1 -> mlp0\.1@1"):
        prune_paths(graph, paths=[_path(other, "token@1 mlp0.1@1", 1.0)], k=1)
