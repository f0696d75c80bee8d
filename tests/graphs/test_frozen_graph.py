"""Running a graph: closed-form answers by hand, and agreement with a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.nodes import Node, NodeTable
from graphs.frozen_graph import FrozenGraph, node_level
from tests.graphs.frozen_graphs import random_graph

_TOKEN = Node(kind="token", layer=-1, site="embed", pos=0)
_LOW = Node(kind="feature", layer=0, site="mlp", pos=0, feature=1)
_HIGH = Node(kind="feature", layer=1, site="mlp", pos=0, feature=2)
_OUT = Node(kind="output", layer=2, site="logit", pos=0)


def _by_hand(threshold: float = 0.0) -> FrozenGraph:
    """token -3-> low (bias -1, so 2) -4-> high (bias 1, so 5) -10-> out; low -6-> out; out 16.

    Removed, the token carries 1 to `low`, which has activation 1 on the other prompt, and `high`
    0.5: the edges from them carry half and a tenth of what they carried.
    """
    clean = torch.tensor([[3.0, 4.0, 10.0, 6.0]], dtype=torch.float64)
    patched = torch.tensor([[1.0, 2.0, 1.0, 3.0]], dtype=torch.float64)
    values = torch.tensor([[0.0, 2.0, 5.0, 16.0]], dtype=torch.float64)
    active = torch.tensor([[0.0, 2.0, 5.0, 0.0]], dtype=torch.float64)
    return FrozenGraph(
        NodeTable([_TOKEN, _LOW, _HIGH, _OUT]),
        torch.tensor([1, 2, 3, 3]),
        torch.tensor([0, 1, 2, 1]),
        clean,
        patched,
        values,
        active,
        torch.full_like(values, threshold),
    )


@pytest.mark.parametrize(
    ("kept", "low", "high", "out"),
    [
        ([1, 1, 1, 1], 2.0, 5.0, 16.0),
        # low: 2 - 3 + 1 = 0, so it is off: high loses 4, out 6 and 10 * 4 / 5
        ([0, 1, 1, 1], 0.0, 1.0, 2.0),
        ([1, 0, 1, 1], 2.0, 3.0, 12.0),
        ([1, 1, 0, 1], 2.0, 5.0, 7.0),
        ([1, 1, 1, 0], 2.0, 5.0, 13.0),
        ([0, 0, 1, 0], 0.0, 3.0, 9.0),
        ([0, 0, 0, 0], 0.0, 3.0, 4.0),
    ],
)
def test_by_hand(kept: list[int], low: float, high: float, out: float) -> None:
    outputs, activations = _by_hand().run(torch.tensor([kept], dtype=torch.bool))
    assert activations[0, 0].tolist() == [0.0, low, high, pytest.approx(out - 16.0)]
    assert outputs[0, 0].tolist() == [pytest.approx(out)]


def test_a_feature_under_its_threshold_is_off() -> None:
    kept = torch.tensor([[True, False, True, True]])
    assert _by_hand(3.5).run(kept)[0].item() == 16.0 - 10.0
    assert _by_hand(2.9).run(kept)[0].item() == 12.0


def test_the_whole_graph_is_exact() -> None:
    graph = random_graph(3, 10, 100)
    outputs, activations = graph.run(torch.ones(1, 100, dtype=torch.bool))
    assert torch.equal(outputs[0], graph.value[:, graph.outputs])
    assert torch.equal(activations[0], graph.activation)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_run_is_the_formula(seed: int, n_circuits: int) -> None:
    graph = random_graph(3, 6, 60, seed=seed)
    kept = torch.rand(n_circuits, 60, generator=torch.Generator().manual_seed(seed)) < 0.7
    outputs, activations = graph.run(kept)
    order = sorted(range(len(graph.nodes)), key=lambda i: node_level(graph.nodes[i]))
    for circuit in range(n_circuits):
        for prompt in range(3):
            now = graph.activation[prompt].clone()
            for node in order:
                value = graph.value[prompt, node].clone()
                for edge in (graph.edge_target == node).nonzero()[:, 0].tolist():
                    source, carried = graph.edge_source[edge], graph.clean[prompt, edge]
                    value -= carried
                    if not kept[circuit, edge]:
                        value += graph.patched[prompt, edge]
                    elif graph.activation[prompt, source] > 0:
                        value += carried * now[source] / graph.activation[prompt, source]
                    else:
                        value += carried
                if graph.nodes[node].kind == "feature":
                    now[node] = value if value > graph.threshold[prompt, node] else 0.0
                elif graph.nodes[node].kind == "output":
                    torch.testing.assert_close(outputs[circuit, prompt, 0], value)
            features = torch.tensor([node.kind == "feature" for node in graph.nodes])
            torch.testing.assert_close(activations[circuit, prompt][features], now[features])


def test_edges_run_upwards() -> None:
    graph = _by_hand()
    with pytest.raises(
        ValueError, match=r"from a lower level to a higher one, got mlp0.1@0 -> token@0"
    ):
        FrozenGraph(
            graph.nodes,
            graph.edge_source,
            graph.edge_target,
            graph.clean,
            graph.patched,
            graph.value,
            graph.activation,
            graph.threshold,
        )
