"""ACDC over edges: exactly the sequential algorithm's answer, and answers known by hand."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.nodes import Node, NodeTable
from graphs.acdc_edges import acdc_edges, edge_order, output_gap, output_kl, walk_order
from graphs.frozen_graph import FrozenGraph
from tests.graphs.frozen_graphs import one_at_a_time, random_graph


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from([0.0, 0.01, 0.1, 0.5, 2.0]),
    batch=st.sampled_from([1, 3, 64]),
)
def test_the_answer_is_the_sequential_one(seed: int, threshold: float, batch: int) -> None:
    graph = random_graph(3, 8, 90, seed=seed)
    score = output_gap(graph.value[:, graph.outputs])
    found = acdc_edges(graph, score=score, threshold=threshold, batch=batch)
    assert torch.equal(found, one_at_a_time(graph, score, threshold))


def test_start_and_candidates() -> None:
    graph = random_graph(3, 8, 90, seed=3)
    score = output_gap(graph.value[:, graph.outputs])
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(90, generator=generator) < 0.8
    fixed = torch.rand(90, generator=generator) < 0.2
    found = acdc_edges(graph, score=score, threshold=0.1, start=start, candidates=~fixed)
    assert not found[~start].any()
    assert found[start & fixed].all()
    assert (found != start).any()
    kept, current = start.clone(), float(score(graph.run(start[None])[0])[0])
    for edge in edge_order(graph):
        if not (start & ~fixed)[edge]:
            continue
        tried = kept.clone()
        tried[edge] = False
        value = float(score(graph.run(tried[None])[0])[0])
        if value - current < 0.1:
            kept, current = tried, value
    assert torch.equal(found, kept)
    assert torch.equal(start, torch.rand(90, generator=torch.Generator().manual_seed(0)) < 0.8)


def test_thresholds_bound_the_answer() -> None:
    graph = random_graph(3, 8, 90, seed=5)
    score = output_gap(graph.value[:, graph.outputs])
    assert not acdc_edges(graph, score=score, threshold=1e9).any()
    kept = acdc_edges(graph, score=score, threshold=0.05)
    n_removed = int((~kept).sum())
    assert float(score(graph.run(kept[None])[0])[0]) <= 0.05 * n_removed
    with pytest.raises(ValueError, match=r"want threshold >= 0 and batch >= 1, got -1"):
        acdc_edges(graph, score=score, threshold=-1.0)
    with pytest.raises(ValueError, match=r"got 0.1 and 0"):
        acdc_edges(graph, score=score, threshold=0.1, batch=0)


def test_the_walk_goes_from_the_output_back() -> None:
    graph = random_graph(3, 8, 90, seed=1)
    targets = graph.levels[graph.edge_target[edge_order(graph)]].tolist()
    assert targets == sorted(targets, reverse=True)
    assert sorted(edge_order(graph)) == list(range(90))


def test_scores_by_hand() -> None:
    full = torch.tensor([[0.0, 0.0]]).double()
    outputs = torch.tensor([[[0.0, 0.0]], [[1.0, -3.0]]]).double()
    assert output_gap(full)(outputs).tolist() == [0.0, 2.0]
    p = torch.tensor([1.0, -3.0]).double().softmax(0)
    by_hand = float((0.5 * (0.5 / p).log()).sum())
    assert output_kl(full)(outputs).tolist() == [0.0, pytest.approx(by_hand)]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_the_order_is_the_one_it_says(seed: int) -> None:
    graph = random_graph(3, 12, 120, seed=seed)
    nodes, levels = graph.nodes, graph.levels.tolist()
    ends = list(zip(graph.edge_target.tolist(), graph.edge_source.tolist(), strict=True))

    def key(edge: int) -> tuple[int | bool, ...]:
        t, s = ends[edge]
        is_feature = nodes[s].kind == "feature"
        height = levels[s] if is_feature else 4 * nodes[s].layer + 3
        return -levels[t], -nodes[t].pos, t, is_feature, -height, -nodes[s].pos, s

    assert walk_order(graph).tolist() == edge_order(graph) == sorted(range(120), key=key)


@pytest.mark.parametrize("batch", [1, 64])
def test_wrong_guesses_cost_calls_not_answers(batch: int) -> None:
    """A score that refuses every other removal: half of all guesses are wrong."""
    graph = random_graph(1, 1, 9, n_prompts=1, seed=0)
    full = graph.value[:, graph.outputs]
    calls = []

    def score(outputs: torch.Tensor) -> torch.Tensor:
        calls.append(len(outputs))
        return ((outputs - full) * 1e6).sin().mean((1, 2))

    found = acdc_edges(graph, score=score, threshold=0.1, batch=batch)
    n_calls = len(calls)
    assert torch.equal(found, one_at_a_time(graph, score, 0.1))
    assert 0 < int(found.sum()) < 9
    assert n_calls <= 9 + 2


def test_numbers_that_are_not_finite_are_refused() -> None:
    graph = random_graph(1, 2, 12, seed=0)
    for name, place in (("clean", "edge"), ("patched", "edge"), ("value", "node")):
        bad = getattr(graph, name).clone()
        bad[1, 3] = torch.nan
        with pytest.raises(ValueError, match=rf"{name} must be finite, got nan .*{place}\] = \[1"):
            dataclasses.replace(graph, **{name: bad})


def test_a_pattern_of_refusals_is_guessed_at_once() -> None:
    """Forty tokens feed the output; removing one in two makes the score worse by one."""
    tokens = [Node(kind="token", layer=-1, site="embed", pos=pos) for pos in range(40)]
    output = Node(kind="output", layer=0, site="logit", pos=39)
    row, ones = torch.arange(40), torch.ones(1, 40, dtype=torch.float64)
    worse = row % 2 == 0
    value = torch.zeros(1, 41, dtype=torch.float64)
    graph = FrozenGraph(
        NodeTable([*tokens, output]),
        torch.full((40,), 40),
        row,
        ones,
        torch.where(worse, 2.0, 0.0).double()[None],
        value,
        value,
        value,
    )
    calls = []

    def score(outputs: torch.Tensor) -> torch.Tensor:
        calls.append(len(outputs))
        return outputs.mean((1, 2))

    assert torch.equal(acdc_edges(graph, score=score, threshold=0.5), worse)
    assert len(calls) <= 4
