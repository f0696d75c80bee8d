"""ACDC over nodes: the sequential algorithm's answer, on scores known by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attribution.nodes import Node, NodeTable
from graphs.circuit_graph import CircuitGraph, GraphMetadata
from graphs.prune import prune
from graphs.prune_acdc import acdc_order, removable


def _sequential(order, kept, score, threshold):
    """The algorithm as the paper tells it, one removal at a time."""
    current, best = kept.clone(), float(score(kept[None])[0])
    for row in order:
        tried = current.clone()
        tried[row] = False
        new = float(score(tried[None])[0])
        if new - best < threshold:
            current, best = tried, new
    return current


def _graph() -> CircuitGraph:
    token = Node(kind="token", layer=-1, site="embed", pos=0)
    bias = Node(kind="bias", layer=0, site="mlp", pos=-1)
    features = [
        Node(kind="feature", layer=layer, site="mlp", pos=0, feature=i, activation=1.0)
        for layer in (0, 1)
        for i in (0, 1)
    ]
    output = Node(kind="output", layer=2, site="logit", pos=0)
    nodes = NodeTable([token, bias, *features, output])
    sources = torch.tensor([0, 1, 2, 3, 4, 5])
    return CircuitGraph(
        nodes,
        torch.full((6,), 6),
        sources,
        torch.arange(1.0, 7.0),
        GraphMetadata(model="m", prompt="a", tokens=("a",), n_layers=2, target="logit"),
    )


def test_order_runs_from_the_output_back_and_skips_what_cannot_be_patched():
    graph = _graph()
    ids = [graph.nodes[row].id for row in acdc_order(graph)]
    assert ids == ["mlp1.0@0", "mlp1.1@0", "mlp0.0@0", "mlp0.1@0", "token@0"]


def test_errors_are_tried_before_features_of_their_layer():
    feature = Node(kind="feature", layer=0, site="mlp", pos=5, feature=3, activation=1.0)
    error = Node(kind="error", layer=0, site="mlp", pos=1)
    output = Node(kind="output", layer=1, site="logit", pos=5)
    tokens = tuple("abcdef")
    graph = CircuitGraph(
        NodeTable([feature, error, output]),
        torch.tensor([2, 2]),
        torch.tensor([0, 1]),
        torch.ones(2),
        GraphMetadata(model="m", prompt="a", tokens=tokens, n_layers=1, target="logit"),
    )
    assert acdc_order(graph) == [1, 0]


def test_keeps_exactly_the_nodes_that_matter():
    graph = _graph()
    worth = torch.tensor([5.0, 0.0, 0.001, 2.0, 0.0, 3.0, 0.0])

    def score(kept):
        return ((~kept) * worth).sum(1)

    circuit = prune(graph, method="acdc", score=score, threshold=0.01)
    assert [node.id for node in circuit.nodes] == [
        "token@0",
        "bias.mlp0",
        "mlp0.1@0",
        "mlp1.1@0",
        "output.logit",
    ]
    assert circuit.n_edges == 4
    assert graph.n_nodes == 7


def test_of_two_redundant_nodes_the_first_tried_dies():
    graph = _graph()

    def score(kept):
        return (~(kept[:, 4] | kept[:, 5])).double()

    ids = {node.id for node in prune(graph, method="acdc", score=score, threshold=0.5).nodes}
    assert "mlp1.0@0" not in ids
    assert "mlp1.1@0" in ids


@given(seed=st.integers(0, 10_000), batch=st.integers(1, 9), threshold=st.floats(0.0, 0.3))
def test_speculation_gives_the_sequential_answer(seed: int, batch: int, threshold: float):
    generator = torch.Generator().manual_seed(seed)
    n = 12
    pair = torch.randn(n, n, generator=generator, dtype=torch.float64)

    def score(kept):
        gone = (~kept).double()
        return ((gone @ pair) * gone).sum(1) / n

    order = torch.randperm(n, generator=generator).tolist()
    kept = torch.ones(n, dtype=torch.bool)
    fast = removable(order, kept, score=score, threshold=threshold, batch=batch)
    assert torch.equal(fast, _sequential(order, kept, score, threshold))


def test_a_run_of_acceptances_costs_few_calls():
    calls = []

    def score(kept):
        calls.append(len(kept))
        return torch.zeros(len(kept))

    removable(
        list(range(64)), torch.ones(64, dtype=torch.bool), score=score, threshold=1.0, batch=16
    )
    assert len(calls) <= 9


@pytest.mark.parametrize(("threshold", "batch"), [(-0.1, 4), (0.1, 0)])
def test_bad_options(threshold: float, batch: int):
    with pytest.raises(ValueError, match="threshold >= 0 and batch >= 1"):
        prune(
            _graph(),
            method="acdc",
            score=lambda k: k.sum(1).float(),
            threshold=threshold,
            batch=batch,
        )
