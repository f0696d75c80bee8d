"""Which rows are computed: all, the best first with a bound, in batches, in little memory."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import LogitDifference, TopLogits, Trace, attribute, attribute_batch
from attribution.best_first import arriving_influence
from attribution.edges import Edges
from circuits import SplicedModel
from tests import models
from tests.models import D_MODEL

TOKENS = models.TOKENS


def spliced(mixture: str = "transcoders", architecture: str = "gpt2") -> SplicedModel:
    return models.spliced(architecture, mixture, torch.float64)


def influence(trace: Trace) -> torch.Tensor:
    """Of every source, by powers of the normalised matrix; weights as for `TopLogits`."""
    edges = trace.edges.abs()
    edges = edges / edges.sum(1, keepdim=True)
    n_outputs = len(trace.outputs)
    weights = torch.tensor([readout.weight for readout in trace.outputs], dtype=torch.float64)
    step = (weights / weights.sum()) @ edges[:n_outputs]
    columns = [trace.sources.row(node.id) for node in trace.targets[n_outputs:]]
    total = step.clone()
    while step.any():
        step = step[columns] @ edges[n_outputs:]
        total += step
    return total


@pytest.mark.parametrize("mixture", ["transcoders", "skip", "residual", "mixed"])
def test_best_first_rows_are_rows_of_the_whole(mixture: str):
    model = spliced(mixture)
    whole = attribute(model, TOKENS, TopLogits())
    part = attribute(model, TOKENS, TopLogits(), max_feature_rows=30)
    assert len(part.targets) == len(whole.outputs) + 30
    assert part.sources.row(part.sources[-1].id) == len(whole.sources) - 1
    rows = [whole.targets.row(node.id) for node in part.targets]
    assert rows == sorted(rows)
    assert torch.allclose(part.edges, whole.edges[rows], rtol=1e-12, atol=1e-14)
    assert torch.equal(part.target_values, whole.target_values[rows])


@pytest.mark.parametrize("n_rows", [0, 5, 40, 80])
def test_the_bound_on_what_is_left_out_holds(n_rows: int):
    model = spliced()
    exact = influence(attribute(model, TOKENS, TopLogits()))
    part = attribute(model, TOKENS, TopLogits(), max_feature_rows=n_rows)
    missing = exact - influence(part)
    assert missing.max() <= part.left_out + 1e-12
    assert missing.min() > -1e-12
    assert part.left_out > 0
    # All of it arrives somewhere: the mass at features without a row is what is left out.
    with_row = {node.id for node in part.targets}
    waiting = [
        i
        for i, node in enumerate(part.sources)
        if node.kind == "feature" and node.id not in with_row
    ]
    assert float(influence(part)[waiting].sum()) == pytest.approx(part.left_out, rel=1e-9)


def test_more_rows_leave_less_out():
    model = spliced()
    left = [
        attribute(model, TOKENS, TopLogits(), max_feature_rows=n).left_out for n in (0, 20, 60, 140)
    ]
    assert left == sorted(left, reverse=True)
    assert attribute(model, TOKENS, TopLogits(), max_feature_rows=10**6).left_out == 0.0


def test_the_best_rows_come_first():
    """The first feature taken up is the one that most influence arrives at."""
    model = spliced()
    outputs = attribute(model, TOKENS, TopLogits(), feature_rows=False)
    arriving = influence(outputs)
    features = outputs.sources.where(kind="feature")
    best = max(features, key=lambda i: float(arriving[i]))
    one = attribute(model, TOKENS, TopLogits(), max_feature_rows=1)
    assert one.targets[-1].id == outputs.sources[best].id


@pytest.mark.parametrize("architecture", ["gpt2", "neox_parallel", "gemma2"])
def test_arriving_influence_equals_matrix_powers(architecture: str):
    trace = attribute(spliced("mixed", architecture), TOKENS, TopLogits())
    features = torch.tensor(trace.sources.where(kind="feature"))
    weights = torch.tensor([readout.weight for readout in trace.outputs], dtype=torch.float64)
    got = arriving_influence(trace.blocks.blocks, weights, features, len(trace.sources))
    want = influence(trace) * float(weights.sum())
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", ["exact", "replace"])
def test_a_batch_gives_the_same_traces(mode):
    model = spliced("mixed")
    prompts = [TOKENS, TOKENS.flip(0), TOKENS[:4], TOKENS[1:5], TOKENS]
    batch = list(attribute_batch(model, prompts, LogitDifference(3, 4), mode=mode, batch_size=2))
    assert len(batch) == len(prompts)
    for prompt, trace in zip(prompts, batch, strict=True):
        alone = attribute(model, prompt, LogitDifference(3, 4), mode=mode)
        assert torch.equal(trace.tokens, prompt)
        assert [n.id for n in trace.sources] == [n.id for n in alone.sources]
        assert torch.allclose(trace.edges, alone.edges, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mixture", ["transcoders", "skip", "residual", "mixed"])
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_replace_explains_the_model_on_reconstructions(architecture: str, mixture: str):
    model = spliced(mixture, architecture)
    trace = attribute(model, TOKENS, LogitDifference(3, 4), mode="replace")
    logits = model.run(TOKENS[None], "replace").logits[0, -1]
    if not model.model.logit_softcap:
        assert float(trace.target_values[0]) == pytest.approx(float(logits[3] - logits[4]))
    assert trace.conservation_error() < 1e-9
    assert trace.mode == "replace"
    errors = trace.sources.where(kind="error")
    # Errors are zero but at BOS, which no dictionary was trained on; these tokens have none.
    assert not (model.model.bos_token == TOKENS).any()
    assert trace.edges[:, errors].abs().max() < 1e-9 * trace.edges.abs().max()
    exact = attribute(model, TOKENS, LogitDifference(3, 4))
    assert exact.edges[:, exact.sources.where(kind="error")].abs().max() > 1e-3


@given(st.integers(0, 3000))
@settings(max_examples=12, deadline=None)
def test_any_memory_gives_the_same_edges(rows_of_memory: int):
    model = spliced("mixed")
    whole = attribute(model, TOKENS, LogitDifference(3, 4))
    little = attribute(
        model, TOKENS, LogitDifference(3, 4), memory=2 * 8 * D_MODEL * rows_of_memory
    )
    assert torch.allclose(whole.edges, little.edges, rtol=1e-11, atol=1e-13)


def test_zeros_that_causality_leaves_are_not_stored():
    trace = attribute(spliced(), TOKENS, TopLogits())
    size = trace.blocks.shape[0] * trace.blocks.shape[1]
    assert trace.edges.count_nonzero() <= trace.blocks.n_stored < 0.6 * size


@pytest.fixture
def blocks() -> Edges:
    return attribute(spliced("mixed"), TOKENS, TopLogits()).blocks


def test_blocks_act_as_the_matrix(blocks: Edges):
    dense = blocks.dense()
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, dense.shape[0], generator=generator, dtype=torch.float64)
    right = torch.randn(dense.shape[1], 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(blocks.left(left), left @ dense)
    assert torch.allclose(blocks.right(right), dense @ right)
    assert torch.allclose(blocks.row_sums(), dense.sum(1))
    assert torch.equal(blocks.row_maxima(), dense.abs().amax(1))
    assert torch.equal(blocks.rows([5, 0, 3, 5]), dense[[5, 0, 3, 5]])
    assert torch.equal(blocks.row(7), dense[7])
    assert torch.equal(blocks.rows([-1, len(dense) - 1]), dense[[-1, -1]])
    assert blocks.rows([]).shape == (0, dense.shape[1])
    target, source, values = blocks.nonzero()
    want_target, want_source = dense.nonzero(as_tuple=True)
    assert torch.equal(target, want_target)
    assert torch.equal(source, want_source)
    assert torch.equal(values, dense[target, source])
    assert torch.equal(Edges.from_dense(dense).dense(), dense)


def test_blocks_are_disjoint(blocks: Edges):
    seen = torch.zeros(blocks.shape, dtype=torch.int)
    for block in blocks.blocks:
        assert len(block.targets.unique()) == len(block.targets)
        seen[block.targets[:, None], block.sources] += 1
    assert int(seen.max()) == 1


def test_progress_counts_every_row():
    calls = []
    trace = attribute(
        spliced(), TOKENS, TopLogits(), progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (len(trace.targets), len(trace.targets))
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(calls))


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_a_target_of_nothing_leaves_nothing_out(dtype: torch.dtype):
    model = models.spliced("gpt2", "transcoders", dtype)
    targets = [LogitDifference(3, 3), LogitDifference(3, 4)]
    assert 0 < attribute(model, TOKENS, targets, max_feature_rows=10).left_out < 1
    assert attribute(model, TOKENS, LogitDifference(3, 3), max_feature_rows=10).left_out == 0.0


def test_a_mode_that_does_not_exist_is_refused(unchecked: None):
    with pytest.raises(ValueError, match="mode 'exact' or 'replace', got 'Replace'"):
        attribute(spliced(), TOKENS, mode="Replace")  # type: ignore[arg-type]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(attribute_batch(spliced(), [TOKENS], batch_size=0))


def test_a_negative_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="max_feature_rows must not be negative, got -1"):
        attribute(spliced(), TOKENS, max_feature_rows=-1)
