"""The response of the outputs to one target: what a run of the whole graph gives, in few passes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool
from torch import Tensor

from attribution.nodes import Node, NodeTable
from graphs.frozen_graph import FrozenGraph
from graphs.output_response import OutputResponse, Standing, Step, reachable
from tests.graphs.frozen_graphs import random_graph


def _steps(graph: FrozenGraph, kept: Bool[Tensor, " edge"], level: int) -> list[Step]:
    """Kept edges into targets above a level, level by level."""
    is_feature = torch.tensor([node.kind == "feature" for node in graph.nodes])
    mine = kept & is_feature[graph.edge_source] & (graph.levels[graph.edge_target] > level)
    edges = mine.nonzero()[:, 0]
    edges = edges[graph.edge_target[edges].argsort(stable=True)]
    into = graph.levels[graph.edge_target[edges]]
    found = []
    for height in into.unique():
        at = edges[into == height]
        ends = graph.edge_source[at].numpy(), graph.edge_target[at].numpy()
        found.append(Step(*ends, graph.slopes[:, at].numpy()))
    return found


def _response(
    graph: FrozenGraph, kept: Bool[Tensor, " edge"], target: int
) -> tuple[OutputResponse, Standing]:
    shift, change = graph.stand(kept[None])
    standing = Standing(shift[0], change[0])
    steps = _steps(graph, kept, int(graph.levels[target]))
    return OutputResponse(graph, standing, reachable(steps, target, len(graph.nodes))), standing


def _without(
    graph: FrozenGraph, kept: Bool[Tensor, " edge"], target: int, seed: int
) -> Bool[Tensor, "circuit edge"]:
    """Circuits that lack some more of the edges into one target; the first lacks none."""
    generator = torch.Generator().manual_seed(seed)
    removed = torch.rand(6, graph.n_edges, generator=generator) < torch.rand(
        6, 1, generator=generator
    )
    removed[0] = False
    return kept & ~(removed & (graph.edge_target == target))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.5, 0.9, 1.0]))
def test_it_is_what_the_whole_graph_does(seed: int, share: float) -> None:
    graph = random_graph(4, 6, 90, seed=seed)
    kept = torch.rand(90, generator=torch.Generator().manual_seed(seed)) < share
    target = int(graph.edge_target[seed % 90])
    circuits = _without(graph, kept, target, seed)
    shifts, changes = graph.stand(circuits)
    response, standing = _response(graph, kept, target)
    for _ in range(2):  # the second time from pieces that are known
        found = response.outputs(shifts[..., target])
        wanted = graph.run(circuits)[0].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11)
    response.settle(shifts[3][:, target])
    np.testing.assert_allclose(standing.shift, shifts[3], atol=1e-11)
    np.testing.assert_allclose(standing.change, changes[3], atol=1e-11)


def _chain(threshold: float = 0.5) -> FrozenGraph:
    """token -> low (2) -> high (5, off under the threshold) -> out; low passes on 3 a unit, high 2.

    out = 2 high + 1 low, high = 3 low - 1.
    """
    nodes = [
        Node(kind="token", layer=-1, site="embed", pos=0),
        Node(kind="feature", layer=0, site="mlp", pos=0, feature=1),
        Node(kind="feature", layer=1, site="mlp", pos=0, feature=2),
        Node(kind="output", layer=2, site="logit", pos=0),
        Node(kind="output", layer=2, site="other", pos=0),
    ]
    thresholds = torch.tensor([[torch.inf, 0.0, threshold, 0.0, 0.0]], dtype=torch.float64)
    return FrozenGraph(
        NodeTable(nodes),
        torch.tensor([1, 2, 3, 3]),
        torch.tensor([0, 1, 2, 1]),
        torch.tensor([[2.0, 6.0, 10.0, 2.0]], dtype=torch.float64),
        torch.zeros(1, 4, dtype=torch.float64),
        torch.tensor([[0.0, 2.0, 5.0, 12.0, 1.0]], dtype=torch.float64),
        torch.tensor([[0.0, 2.0, 5.0, 0.0, 0.0]], dtype=torch.float64),
        thresholds,
    )


@pytest.mark.parametrize(
    ("low", "out"),
    [(2.0, 12.0), (3.0, 19.0), (1.0, 5.0), (0.6, 2.2), (0.5, 0.5), (0.4, 0.4), (-1.0, 0.0)],
)
def test_by_hand(low: float, out: float) -> None:
    """`high` goes off where 3 low - 1 <= 0.5, that is from low = 0.5 down; `low` below 0."""
    response, _ = _response(_chain(), torch.ones(4, dtype=torch.bool), 1)
    for shift in (low - 2.0, 1.5 - 2.0, low - 2.0):
        found = response.outputs(np.array([[shift]]))[0, 0]
        assert found.tolist() == pytest.approx([out if shift == low - 2.0 else 8.5, 1.0])


def test_one_pass_serves_as_long_as_nothing_turns_on_or_off(monkeypatch) -> None:
    passes = []
    spread = OutputResponse._spread
    monkeypatch.setattr(
        OutputResponse, "_spread", lambda self, at: passes.append(at) or spread(self, at)
    )
    response, standing = _response(_chain(), torch.ones(4, dtype=torch.bool), 1)
    response.outputs(np.zeros((1, 1)))
    assert len(passes) == 0
    response.outputs(np.linspace(-1.4, 2.0, 30)[:, None])
    assert len(passes) == 1
    response.outputs(np.array([[-0.7], [1.1]]))
    response.settle(np.array([-1.0]))
    assert len(passes) == 1
    assert standing.change[0].tolist() == pytest.approx([0.0, -1.0, -3.0, -7.0, 0.0])
    assert standing.shift[0].tolist() == pytest.approx([0.0, -1.0, -3.0, -7.0, 0.0])
    again, _ = _response(_chain(), torch.ones(4, dtype=torch.bool), 1)
    again.outputs(np.array([[-1.0], [-1.9], [-1.8]]))
    assert len(passes) == 3
    again.settle(np.array([-0.5]))
    assert len(passes) == 4


def test_a_node_that_reaches_nothing() -> None:
    graph = _chain()
    response, standing = _response(graph, torch.tensor([True, False, True, False]), 1)
    before = standing.change.copy()
    assert response.outputs(np.array([[1.0]])).tolist() == [[[0.0, 1.0]]]
    response.settle(np.array([1.0]))
    assert (standing.change - before)[0].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def _two_prompts(jump: float) -> FrozenGraph:
    """The chain twice, with `high` off its activation by `jump` as soon as anything moves."""
    chain = _chain()
    twice = {
        name: getattr(chain, name).expand(2, -1).clone()
        for name in ("clean", "patched", "value", "activation", "threshold")
    }
    twice["value"][:, 2] += jump
    return dataclasses.replace(chain, **twice)


def test_a_prompt_that_stays_where_it_is_needs_no_pass(monkeypatch) -> None:
    response, standing = _response(_two_prompts(0.0), torch.ones(4, dtype=torch.bool), 1)
    response.outputs(np.array([[0.5, -1.9]]))  # beyond where `high` goes off
    monkeypatch.setattr(OutputResponse, "_spread", None)
    response.settle(np.array([0.25, 0.0]))
    moved = [0.0, 0.25, 0.75, 1.75, 0.0]
    assert standing.change.tolist() == [pytest.approx(moved), [0.0] * 5]


def test_a_prompt_that_has_not_moved_is_not_in_a_piece() -> None:
    response, _ = _response(_two_prompts(0.25), torch.ones(4, dtype=torch.bool), 1)
    jumped = pytest.approx([12.0 + 7 * 0.5 + 2 * 0.25, 1.0])
    assert response.outputs(np.array([[0.5, 0.0]])).tolist() == [[jumped, [12.0, 1.0]]]
    assert response.outputs(np.array([[0.0, 0.5]])).tolist() == [[[12.0, 1.0], jumped]]


def test_reach_is_level_by_level() -> None:
    graph = _chain()
    reach = reachable(_steps(graph, torch.ones(4, dtype=torch.bool), 0), 1, 5)
    assert reach.nodes.tolist() == [1, 2, 3]
    assert [step.source.tolist() for step in reach.steps] == [[0], [1, 0]]
    assert [(place.start, place.stop) for place in reach.places] == [(1, 2), (2, 3)]
