"""ACDC over nodes: the sequential algorithm's answer, on scores known by hand and on a model."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import LogitDifference, attribute
from attribution.nodes import Node, NodeTable
from graphs.build import build_graph
from graphs.circuit_graph import CircuitGraph, GraphMetadata
from graphs.faithfulness import kl_to_model
from graphs.prune import prune
from graphs.prune_acdc import acdc_order, removable
from graphs.scorer import CircuitRunner
from tests.graphs.spliced_models import mixed_spliced


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


# --- on the live model --------------------------------------------------------------------------

CLEAN = torch.tensor([[1, 2, 3, 4, 5], [1, 6, 3, 7, 5]])
CORRUPTED = torch.tensor([[1, 8, 3, 4, 5], [1, 9, 3, 7, 5]])
PLACES = [
    Node(kind="token", layer=-1, site="embed", pos=1),
    Node(kind="token", layer=-1, site="embed", pos=3),
    Node(kind="error", layer=0, site="mlp", pos=2),
    Node(kind="sublayer", layer=1, site="mlp", pos=3),
    Node(kind="error", layer=1, site="attn_out", pos=4),
    Node(kind="error", layer=2, site="mlp", pos=4),
    Node(kind="bias", layer=0, site="mlp", pos=-1),
]


def _runner() -> CircuitRunner:
    return CircuitRunner.on_prompts(mixed_spliced(), CLEAN, CORRUPTED)


def _fresh(runner: CircuitRunner, nodes: Sequence[Node], kept: torch.Tensor) -> torch.Tensor:
    """By a runner that has run nothing yet, several at once, so that nothing is held."""
    again = CircuitRunner(runner.spliced, runner.clean, runner.other, runner.empty_logits)
    return again.logits(nodes, torch.cat([kept, ~kept]))[: len(kept)]


@pytest.fixture(scope="module")
def live() -> tuple[CircuitRunner, CircuitGraph]:
    runner = _runner()
    trace = attribute(runner.spliced, CLEAN[0], LogitDifference(3, 4))
    graph = build_graph(trace)
    keep = runner.patchable(graph.nodes) | graph.is_kind("position", "bias", "output")
    return runner, graph.select(keep)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_logits_do_not_depend_on_what_was_run_before(live, seed: int):
    """Circuits alone and several at once, over two node tables, near each other and far."""
    runner, graph = live
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(graph.n_nodes, generator=generator) < 0.7
    for _ in range(6):
        nodes = list(graph.nodes)
        share = 10 ** -float(3 * torch.rand((), generator=generator))
        kept = kept ^ (torch.rand(graph.n_nodes, generator=generator) < share)
        n = int(torch.randint(1, 4, (), generator=generator))
        rows = kept.repeat(n, 1)
        rows[1:] ^= torch.rand(n - 1, graph.n_nodes, generator=generator) < share
        if bool(torch.rand((), generator=generator) < 0.3):
            nodes, rows = nodes[::-1], rows.flip(1)
        got = runner.logits(nodes, rows)
        torch.testing.assert_close(got, _fresh(runner, nodes, rows), rtol=1e-10, atol=1e-10)


def test_the_circuit_is_that_of_whole_runs(live):
    """And of the sequential algorithm, at several thresholds, with fewer layers run."""
    runner, graph = live
    graph = prune(graph, method="influence", node_threshold=0.8)
    runs = CircuitRunner(runner.spliced, runner.clean, runner.other, runner.empty_logits)

    def score(kept):
        return kl_to_model(runner.full_logits, runs.logits(graph.nodes, kept)).mean(-1)

    def whole(kept):
        return kl_to_model(runner.full_logits, _fresh(runner, graph.nodes, kept)).mean(-1)

    worst = float(kl_to_model(runner.full_logits, runner.empty_logits).mean())
    sizes = []
    for share in (1e-4, 1e-2):
        found = prune(graph, method="acdc", score=score, threshold=share * worst, batch=8)
        everything = torch.ones(graph.n_nodes, dtype=torch.bool)
        want = _sequential(acdc_order(graph), everything, whole, share * worst)
        assert [node.id for node in found.nodes] == [node.id for node in graph.select(want).nodes]
        sizes.append(found.n_nodes)
    assert graph.n_nodes > sizes[0] > sizes[1] > 2
    assert runs.tally.share < 0.75


def test_what_is_run_is_counted():
    """By hand, on 2 prompts and 3 layers."""
    runner, kept = _runner(), torch.ones(7, dtype=torch.bool)
    n_rows = n_blocks = 0

    def without(*rows: int) -> torch.Tensor:
        flags = kept.clone()
        flags[list(rows)] = False
        return flags

    assert runner.tally.share == 1.0
    steps = [
        ([without()], 3),  # nothing is held yet
        ([without(5), without()], 1),  # the last layer
        ([without(3, 5), without(4), without()], 2),
        ([without(2)], 3),  # layer 0, and it is held
        ([without(2, 5), without(2, 3)], 2),
        ([without(), without(2)], 3),
        ([without(2, 6)], 1),  # a bias cannot be patched
        ([without(0)], 3),  # a token
        ([without(0)], 1),  # nothing is different
    ]
    for n_calls, (circuits, blocks) in enumerate(steps, 1):
        runner.logits(PLACES, torch.stack(circuits))
        n_rows += 2 * len(circuits)
        n_blocks += 2 * len(circuits) * blocks
        tally = runner.tally
        assert (tally.calls, tally.rows, tally.blocks) == (n_calls, n_rows, n_blocks)
        assert tally.share == pytest.approx(n_blocks / (3 * n_rows))
    assert _runner().tally.calls == 0


def test_the_same_flags_over_other_nodes_are_another_circuit():
    runner, one = _runner(), torch.ones(1, 1, dtype=torch.bool)
    found = []
    for nodes in (PLACES[2:3], PLACES[5:6], PLACES[:1]):
        found.append(runner.logits(nodes, one))
        torch.testing.assert_close(found[-1], _fresh(runner, nodes, one), rtol=1e-10, atol=1e-10)
    assert (found[1] - found[0]).abs().max() > 1e-3
