"""Influence and the two scores, by hand and against dense matrices."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphs import edge_influence, node_influence, non_error_share, replacement_score
from graphs.influence import unexplained_share


def dense_influence(graph, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """N, I and edge scores straight from the formulas: I = w ((1 - N)^-1 - 1)."""
    n = graph.n_nodes
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[graph.edge_target, graph.edge_source] = graph.edge_attribution.double().abs()
    matrix = matrix / matrix.sum(1, keepdim=True).clamp_min(1e-10)
    eye = torch.eye(n, dtype=torch.float64)
    influence = weights @ (torch.linalg.inv(eye - matrix) - eye)
    return matrix, influence, matrix * (influence + weights)[:, None]


def equal_weights(graph) -> Tensor:
    is_output = graph.is_kind("output").double()
    return is_output / is_output.sum()


def test_influence_of_the_chain_by_hand(chain):
    # nodes t0 t1 e0 f o; the output is 3/4 from f, 1/4 from t1; f is 3/4 from t0, 1/4 from e0
    expected = torch.tensor([9 / 16, 4 / 16, 3 / 16, 12 / 16, 0.0], dtype=torch.float64)
    torch.testing.assert_close(node_influence(chain), expected)
    by_edge = torch.tensor([9 / 16, 3 / 16, 12 / 16, 4 / 16], dtype=torch.float64)
    torch.testing.assert_close(edge_influence(chain), by_edge)


def test_scores_of_the_chain_by_hand(chain):
    assert replacement_score(chain) == pytest.approx(13 / 16)
    # mass: o 1, f 12/16, t0 9/16, t1 4/16, e0 3/16 = 44/16; only f has an error share, 1/4
    assert non_error_share(chain) == pytest.approx(1 - (12 / 16 * 1 / 4) / (44 / 16))
    assert unexplained_share(chain) == pytest.approx(3 / 16)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0.05, 1.0))
def test_sparse_equals_dense(random_graph, seed, density):
    graph = random_graph(seed, density=density)
    weights = equal_weights(graph)
    matrix, influence, scores = dense_influence(graph, weights)
    torch.testing.assert_close(node_influence(graph), influence)
    torch.testing.assert_close(edge_influence(graph), scores[graph.edge_target, graph.edge_source])
    unexplained = graph.is_kind("error", "sublayer")
    mass = influence + weights
    share = ((1 - matrix[:, unexplained].sum(1)) * mass).sum() / mass.sum()
    assert non_error_share(graph) == pytest.approx(float(share))


def test_influence_ignores_sign_and_scale_of_a_row(random_graph):
    graph = random_graph(3)
    scale = 1.0 + torch.arange(graph.n_nodes)
    flipped = type(graph)(
        graph.nodes,
        graph.edge_target,
        graph.edge_source,
        -graph.edge_attribution * scale[graph.edge_target],
        graph.metadata,
    )
    torch.testing.assert_close(node_influence(flipped), node_influence(graph), atol=1e-6, rtol=1e-6)


def test_given_weights_are_used_by_size(make_graph):
    graph = make_graph("t0 t1 o.a o.b", {("t0", "o.a"): 2.0, ("t1", "o.b"): -5.0})
    got = node_influence(graph, torch.tensor([-0.7, 0.1]))
    torch.testing.assert_close(got, torch.tensor([0.7, 0.1, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(
        node_influence(graph), torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64)
    )
    with pytest.raises(ValueError, match=r"one number for each of the 2 outputs, got 1"):
        node_influence(graph, torch.tensor([1.0]))


def test_a_deep_chain_reaches_the_bottom(make_graph):
    names = [f"f0.{i}" for i in range(200)]
    edges = {(a, b): 0.01 for a, b in pairwise(names)}
    graph = make_graph(" ".join([*names, "o.a"]), {**edges, (names[-1], "o.a"): 1.0})
    torch.testing.assert_close(
        node_influence(graph)[:-1], torch.ones(200, dtype=torch.float64), atol=0.0, rtol=1e-9
    )


def test_anchors_perfect_and_useless(make_graph):
    perfect = make_graph("t0 e0 f1.1 o.a", {("t0", "f1.1"): 1.0, ("f1.1", "o.a"): 1.0})
    useless = make_graph("t0 e0 f1.1 o.a", {("e0", "f1.1"): 1.0, ("f1.1", "o.a"): 1.0})
    sublayer = make_graph("t0 s1 o.a", {("t0", "o.a"): 1.0, ("s1", "o.a"): 3.0})
    assert (replacement_score(perfect), non_error_share(perfect)) == (1.0, 1.0)
    assert replacement_score(useless) == 0.0
    assert non_error_share(useless) == pytest.approx(1 - 1 / 3)
    assert replacement_score(sublayer) == pytest.approx(0.25)


def test_scores_of_nothing_are_refused(make_graph):
    empty = make_graph("t0 o.a", {})
    with pytest.raises(ValueError, match="reach an output"):
        replacement_score(empty)
    with pytest.raises(ValueError, match="must not all be zero"):
        non_error_share(empty, torch.tensor([0.0]))
