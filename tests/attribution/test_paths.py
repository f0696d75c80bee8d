"""The strongest paths, against a list of all paths."""

import time
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import LogitDifference, Trace, attribute
from attribution.effects.influence import leaf_sources, linear_flow, signed_influence
from attribution.effects.paths import Path, TopPaths, best_onward, top_paths
from tests import models
from tests.attribution.traces import hand_trace, random_trace
from tests.models import TOKENS

CHAIN_EDGES = {
    ("t0", "f0.5"): 3.0,
    ("e0", "f0.5"): -1.0,
    ("f0.5", "f1.3"): 3.0,
    ("t1", "f1.3"): 1.0,
    ("f1.3", "o.logit"): -2.0,
    ("f0.5", "o.logit"): 1.5,
    ("t1", "o.logit"): 0.4,
}


def chain() -> Trace:
    values = {"f0.5": 2.0, "f1.3": 4.0, "o.logit": -0.1}
    return hand_trace("t0 t1 e0 f0.5 f1.3", "o.logit f0.5 f1.3", values, CHAIN_EDGES)


def ids(path: Path) -> list[str]:
    return [node.id for node in path.nodes]


def every_path(trace: Trace, row: int, begin: list[int]) -> dict[tuple[str, ...], float]:
    """All paths that carry anything, by name, with their values: plain recursion."""
    edges = trace.blocks.dense()
    row_of = {node.id: i for i, node in enumerate(trace.targets)}
    paths = {}

    def walk(at: int, names: tuple[str, ...], value: float) -> None:
        for column in edges[at].nonzero()[:, 0].tolist():
            node = trace.sources[column]
            carried = value * float(edges[at, column])
            trail = (node.id, *names)
            if column in begin:
                paths[trail] = carried
            if node.id in row_of:
                walk(row_of[node.id], trail, carried / node.activation)

    walk(row, (trace.targets[row].id,), 1.0)
    return paths


def same_as_brute_force(found: TopPaths, want: dict[tuple[str, ...], float], k: int) -> None:
    got = {tuple(ids(path)): path.value for path in found.paths}
    assert len(got) == len(found.paths) == min(k, len(want))
    for name, value in got.items():
        assert value == pytest.approx(want[name], rel=1e-12)
    sizes = [abs(path.value) for path in found.paths]
    strongest = sorted(map(abs, want.values()), reverse=True)
    assert sizes == pytest.approx(strongest[:k], rel=1e-12)
    assert found.total == pytest.approx(sum(want.values()), rel=1e-9, abs=1e-9)
    assert found.total_size == pytest.approx(sum(strongest), rel=1e-9, abs=1e-9)


def test_paths_of_the_chain_by_hand():
    found = top_paths(chain(), "output.logit", k=4)
    # through f0: 1.5 / 2 * (3, -1); through f1: -2 / 4 * (1 from t1); through both:
    # -2 / 4 * 3 / 2 * (3, -1) = (-2.25, 0.75); t1 directly 0.4
    first, second, *rest = found.paths
    assert {abs(first.value), abs(second.value)} == {2.25}
    both = first if first.value < 0 else second
    assert ids(both) == ["token@0", "mlp0.5@1", "mlp1.3@1", "output.logit"]
    assert {path.value for path in (first, second)} == {2.25, -2.25}
    assert {path.value for path in rest} == {0.75, -0.75}
    assert found.total == pytest.approx(-0.1)
    assert found.total_size == pytest.approx(2.25 * 2 + 0.75 * 2 + 0.5 + 0.4)
    assert found.covered == pytest.approx(0.0)
    assert found.covered_share == pytest.approx(6.0 / 6.9)


def test_a_path_may_pass_other_sources_and_end_at_a_feature():
    found = top_paths(chain(), "mlp1.3@1", sources=["mlp0.5@1", "token@0"], k=9)
    assert [(path.value, ids(path)[0]) for path in found.paths] in (
        [(4.5, "token@0"), (3.0, "mlp0.5@1")],
    )
    direct = top_paths(chain(), 0, sources=["mlp1.3@1"], k=9)
    assert [path.value for path in direct.paths] == [-2.0]
    assert (direct.total, direct.total_size, direct.covered_share) == (-2.0, 2.0, 1.0)


def test_no_path_at_all():
    found = top_paths(chain(), "mlp0.5@1", sources=["mlp1.3@1"])
    assert found == TopPaths((), 0.0, 0.0)
    assert found.covered_share == 1.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 40), ties=st.booleans())
def test_best_first_equals_brute_force(seed: int, k: int, ties: bool):
    trace = random_trace(seed, ties=ties)
    want = every_path(trace, 0, leaf_sources(trace))
    same_as_brute_force(top_paths(trace, 0, k=k), want, k)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans(), data=st.data())
def test_any_sources_and_any_target(seed: int, ties: bool, data: st.DataObject):
    trace = random_trace(seed, ties=ties)
    row = data.draw(st.integers(0, len(trace.targets) - 1))
    order = data.draw(st.permutations(range(len(trace.sources))))
    begin = list(order[: data.draw(st.integers(1, len(order)))])
    k = data.draw(st.integers(1, 30))
    found = top_paths(trace, row, sources=begin, k=k)
    same_as_brute_force(found, every_path(trace, row, begin), k)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_best_continuation_is_that_of_the_best_path(seed: int):
    trace = random_trace(seed)
    begin = leaf_sources(trace)
    flow = linear_flow(trace)
    begins = torch.zeros(len(trace.sources), dtype=torch.float64)
    begins[begin] = 1.0
    best = best_onward(flow, begins)
    for row in trace.targets.where(kind="feature"):
        node = trace.targets[row]
        paths = every_path(trace, row, begin).values()
        want = max(map(abs, paths), default=0.0) / abs(node.activation)
        assert float(best[trace.sources.row(node.id)]) == pytest.approx(want, rel=1e-12)
    assert torch.equal(best[begin], torch.ones(len(begin), dtype=torch.float64))


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_paths_of_a_model(dtype: torch.dtype):
    spliced = models.spliced("gpt2", "mixed", dtype)
    trace = attribute(spliced, TOKENS, LogitDifference([3], [4]))
    found = top_paths(trace, 0, k=300)
    sizes = [abs(path.value) for path in found.paths]
    assert len({tuple(ids(path)) for path in found.paths}) == 300
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(sizes))
    # Random weights: paths add up to millions and nearly cancel, which float32 cannot follow.
    if dtype == torch.float64:
        assert found.total == pytest.approx(float(trace.target_values[0]), rel=1e-8)
    assert 0 < found.covered_share < 1
    for path in found.paths[::20]:
        rows = [trace.targets.row(node.id) for node in path.nodes[1:]]
        columns = [trace.sources.row(node.id) for node in path.nodes[:-1]]
        steps = [float(trace.edges[r, c]) for r, c in zip(rows, columns, strict=True)]
        want = prod(steps) / prod(node.activation for node in path.nodes[1:-1])
        assert path.value == pytest.approx(want, rel=1e-5 if dtype == torch.float32 else 1e-12)
    weakest, begin = sizes[-1], leaf_sources(trace)
    direct = {ids(p)[0] for p in found.paths if len(p.nodes) == 2}
    for column in begin:  # no direct path that is stronger than the weakest was missed
        if abs(float(trace.edges[0, column])) > weakest * (1 + 1e-6):
            assert trace.sources[column].id in direct


def test_twenty_paths_take_no_time():
    trace = attribute(models.spliced("gpt2", "transcoders"), TOKENS, LogitDifference([3], [4]))
    start = time.process_time()
    top_paths(trace, 0, k=20)
    assert time.process_time() - start < 1.0


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_paths(chain(), 0, k=0)
    with pytest.raises(ValueError, match=r"no node 'output\.x' among 3"):
        top_paths(chain(), "output.x")
    with pytest.raises(ValueError, match="no node 77 among 5"):
        top_paths(chain(), 0, sources=[77])


def test_the_total_is_the_signed_influence():
    trace = random_trace(3)
    leaves = leaf_sources(trace)
    total = signed_influence(trace, targets=[1], sources=leaves).sum()
    assert top_paths(trace, 1, k=1).total == pytest.approx(float(total), rel=1e-12)
