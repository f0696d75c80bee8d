"""ACDC over edges: exactly the sequential algorithm's answer, and answers known by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.acdc_edges import acdc_edges, edge_order, output_gap, output_kl
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
