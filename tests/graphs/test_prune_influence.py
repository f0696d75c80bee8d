"""Influence pruning, by hand and against a dense reference; the method table."""

import pytest
import torch
from torch import Tensor

from graphs import prune, prune_influence
from graphs.prune_influence import influence_cut


def dense_cut(scores: Tensor, threshold: float) -> Tensor:
    ranked = scores.flatten().sort(descending=True).values
    share = ranked.cumsum(0) / ranked.sum()
    return ranked[min(int((share < threshold).sum()), len(ranked) - 1)]


def dense_normalise(matrix: Tensor) -> Tensor:
    return matrix.abs() / matrix.abs().sum(1, keepdim=True).clamp_min(1e-10)


def dense_sum(matrix: Tensor, weights: Tensor) -> Tensor:
    total, power = torch.zeros_like(weights), weights @ matrix
    while power.any():
        total, power = total + power, power @ matrix
    return total


def dense_prune(graph, node_threshold: float, edge_threshold: float) -> tuple[Tensor, Tensor]:
    """The published two-step rule on a square matrix: kept nodes, kept cells."""
    n = graph.n_nodes
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[graph.edge_target, graph.edge_source] = graph.edge_attribution.double()
    weights = graph.is_kind("output").double()
    weights = weights / weights.sum()
    fixed, is_feature = graph.is_kind("token", "output"), graph.is_kind("feature")
    influence = dense_sum(dense_normalise(matrix), weights)
    node = (influence >= dense_cut(influence, node_threshold)) | fixed
    pruned = matrix * node[:, None] * node[None, :]
    normalised = dense_normalise(pruned)
    scores = normalised * (dense_sum(normalised, weights) + weights)[:, None]
    edge = (scores >= dense_cut(scores, edge_threshold)) & (pruned != 0)
    before = torch.zeros_like(node)
    while not torch.equal(before, node):
        before = node.clone()
        node = node & (fixed | edge.any(0)) & (~is_feature | edge.any(1))
        edge = edge & node[:, None] & node[None, :]
    return node, edge


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.7), (0.3, 0.4), (0.95, 0.6)])
def test_equals_the_dense_rule(random_graph, seed, thresholds):
    graph = random_graph(seed, n_features=18, density=0.4)
    node, edge = dense_prune(graph, *thresholds)
    circuit = prune_influence(graph, node_threshold=thresholds[0], edge_threshold=thresholds[1])
    ids = [n.id for n in graph.nodes]
    assert [n.id for n in circuit.nodes] == [ids[i] for i in node.nonzero().flatten()]
    expected = {(ids[s], ids[t]) for t, s in edge.nonzero().tolist()}
    assert set(circuit.digraph.edges) == expected


def test_nodes_by_hand(make_graph):
    # influences 0.6 0.3 0.1: the first two reach 0.8; the token stays at 0
    graph = make_graph(
        "t0 e0 b0 s1 o.a", {("e0", "o.a"): 6.0, ("b0", "o.a"): -3.0, ("s1", "o.a"): 1.0}
    )
    circuit = prune_influence(graph, node_threshold=0.8, edge_threshold=1.0)
    assert [n.id for n in circuit.nodes] == ["token@0", "error.mlp0@1", "bias.mlp0", "output.a"]
    assert circuit.edge_attribution.tolist() == [6.0, -3.0]


def test_edges_are_scored_after_renormalising(make_graph):
    # influences 0.9 0.72 0.18 0.1: e0 goes. Edges are then 1, 0.8 and 0.2, so that 0.9 of them are
    # in the first two; before, 0.9, 0.72, 0.18 and 0.1, of which 0.88 would have taken three
    graph = make_graph(
        "t0 b0 e0 f1.1 o.a",
        {("t0", "f1.1"): 4.0, ("b0", "f1.1"): 1.0, ("e0", "o.a"): 1.0, ("f1.1", "o.a"): 9.0},
    )
    circuit = prune_influence(graph, node_threshold=0.94, edge_threshold=0.88)
    assert set(circuit.digraph.edges) == {("token@0", "mlp1.1@1"), ("mlp1.1@1", "output.a")}


def test_dangling_chains_go_until_stable(make_graph):
    # cutting t0 -> f0.1 leaves f0.1 without input, and then f1.2
    graph = make_graph(
        "t0 t1 f0.1 f1.2 o.a",
        {("t0", "f0.1"): 1.0, ("f0.1", "f1.2"): 1.0, ("f1.2", "o.a"): 1.0, ("t1", "o.a"): 9.0},
    )
    circuit = prune_influence(graph, node_threshold=1.0, edge_threshold=0.6)
    assert [n.id for n in circuit.nodes] == ["token@0", "token@1", "output.a"]
    assert set(circuit.digraph.edges) == {("token@1", "output.a")}


def test_thresholds_of_one_keep_all_that_reaches_an_output(make_graph):
    edges = {("t0", "f0.1"): 1.0, ("f0.1", "o.a"): 1e-7, ("e0", "o.a"): 1e7, ("t0", "f1.9"): 1.0}
    graph = make_graph("t0 e0 f0.1 f1.9 o.a", edges)
    circuit = prune_influence(graph, node_threshold=1.0, edge_threshold=1.0)
    assert [n.id for n in circuit.nodes] == ["token@0", "error.mlp0@1", "mlp0.1@1", "output.a"]
    assert circuit.n_edges == 3


def test_notes_say_what_was_lost_and_the_input_is_untouched(chain):
    once = prune(chain, node_threshold=0.9)
    assert once.metadata.notes == {
        "pruned_by": "influence (nodes 0.9, edges 0.98)",
        "pruned_from": "5 nodes and 4 edges",
        "unexplained_before": "18.8%",
    }
    twice = prune(once, edge_threshold=0.5).metadata.notes
    assert twice["pruned_from"] == "5 nodes and 4 edges"
    assert twice["pruned_by"] == (
        "influence (nodes 0.9, edges 0.98), then influence (nodes 0.8, edges 0.5)"
    )
    assert chain.metadata.notes == {}


def test_a_graph_without_edges_keeps_tokens_and_outputs(make_graph):
    circuit = prune_influence(make_graph("t0 f0.1 e0 o.a", {}))
    assert [n.id for n in circuit.nodes] == ["token@0", "output.a"]


@pytest.mark.parametrize("option", ["node_threshold", "edge_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_out_of_range_are_refused(chain, option, value):
    with pytest.raises(ValueError, match=r"share in \[0, 1\]"):
        prune_influence(chain, **{option: value})


def test_the_cut_is_where_the_share_is_first_reached():
    scores = torch.tensor([0.2, 0.5, 0.0, 0.3], dtype=torch.float64)
    assert influence_cut(scores, 0.5) == 0.5
    assert influence_cut(scores, 0.51) == 0.3
    assert influence_cut(scores, 0.8) == 0.3
    assert influence_cut(scores, 1.0) == 0.2
    assert influence_cut(torch.zeros(3), 0.8) == 0.0


def test_unknown_methods_are_refused_with_the_known_ones(chain):
    with pytest.raises(ValueError, match=r"one of \[.*'influence'.*\], got 'magic'"):
        prune(chain, method="magic")
