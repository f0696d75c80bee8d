"""Faithfulness: anchors, patched runs against independent runs, and controls."""

from dataclasses import replace

import pytest
import torch

from attribution import LogitDifference, attribute
from attribution.nodes import Node
from circuits import Intervention, Site, SplicedModel
from circuits.patching import Keep, mean_values, run_patched, zero_values
from graphs.controls import random_circuits, tokens_only
from graphs.faithfulness import faithfulness, normalised
from graphs.measures import kl_to_model
from graphs.scorer import CircuitRunner
from tests.graphs.spliced_models import N_FEATURES, mixed_spliced

CLEAN = torch.tensor([[1, 2, 3, 4, 5], [1, 6, 3, 7, 5]])
CORRUPTED = torch.tensor([[1, 8, 3, 4, 5], [1, 9, 3, 7, 5]])


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return mixed_spliced()


@pytest.fixture(scope="module")
def runner(spliced: SplicedModel) -> CircuitRunner:
    return CircuitRunner.on_prompts(spliced, CLEAN, CORRUPTED)


@pytest.fixture(scope="module")
def universe(spliced: SplicedModel) -> list[Node]:
    nodes = {}
    for row in CLEAN:
        trace = attribute(spliced, row, LogitDifference(3, 4), feature_rows=False)
        nodes |= {node.id: node for node in trace.sources}
    return list(nodes.values())


def _metric(logits):
    return logits[:, 3] - logits[:, 4]


def test_everything_kept_is_the_model_and_nothing_kept_is_the_corrupted_prompt(runner, universe):
    kept = torch.stack([torch.ones(len(universe)), torch.zeros(len(universe))]).bool()
    full, empty = runner.logits(universe, kept)
    torch.testing.assert_close(full, runner.full_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(empty, runner.empty_logits, rtol=1e-9, atol=1e-9)
    assert (full - empty).abs().max() > 1e-3


def test_patching_one_feature_is_the_intervention(spliced, runner, universe):
    """Against `SplicedModel.run` in exact mode, which adds the change of a feature to the output.

    The last dictionary is patched, so that errors above it, held here and live there, do not
    differ.
    """
    site = spliced.write_site("mlp.2")
    pos = 4
    delta = (runner.other.activations[site] - runner.clean.activations[site])[0, pos]
    is_on = runner.clean.activations[site][:, pos].min(0).values > 0
    feature = int((delta.abs() * is_on).argmax())
    kept = torch.tensor(
        [
            not (n.site == "mlp" and n.layer == 2 and (n.pos, n.feature) == (pos, feature))
            for n in universe
        ]
    )
    assert int((~kept).sum()) == 1
    logits = runner.logits(universe, kept[None])[0, 0]
    value = float(runner.other.activations[site][0, pos, feature])
    change = Intervention("mlp.2", feature, "set", value, [pos])
    expected = spliced.run(CLEAN[:1], "exact", interventions=[change]).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert (logits - runner.full_logits[0]).abs().max() > 1e-6


def test_anchors(runner, universe):
    everything = faithfulness(runner, universe, _metric)
    nothing = faithfulness(runner, [], _metric)
    assert everything.faithfulness == pytest.approx(1.0)
    assert everything.kl == pytest.approx(0.0, abs=1e-9)
    assert nothing.faithfulness == pytest.approx(0.0, abs=1e-9)
    assert everything.metric_empty == pytest.approx(nothing.metric_circuit)


def test_resamples_without_a_prompt_that_counts_are_left_out(spliced, universe):
    """One prompt of two is not corrupted: drawn alone it gives no ratio."""
    runner = CircuitRunner.on_prompts(spliced, CLEAN, torch.stack([CLEAN[0], CORRUPTED[1]]))
    kept = torch.tensor([node.layer < 1 for node in universe])
    found = faithfulness(runner, universe, _metric, kept=kept)
    assert 0.01 < abs(found.faithfulness) < 0.99
    assert found.interval == pytest.approx((found.faithfulness, found.faithfulness))


def test_the_seed_is_that_of_the_resamples(runner, universe):
    kept = torch.tensor([node.layer < 1 for node in universe])
    intervals = [
        faithfulness(runner, universe, _metric, kept=kept, n_bootstrap=3, seed=seed).interval
        for seed in (0, 0, 1, 2, 3)
    ]
    assert intervals[0] == intervals[1]
    assert len(set(intervals)) > 1


def test_normalised_is_a_ratio_of_means():
    model, empty = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])
    assert normalised(torch.tensor([0.5, 2.0]), model, empty) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="choose a corruption"):
        normalised(model, empty, empty)


def test_kl_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    expected = 0.5 * torch.log(torch.tensor(0.5 / 0.9)) + 0.5 * torch.log(torch.tensor(0.5 / 0.1))
    assert float(kl_to_model(p.log(), q.log())) == pytest.approx(float(expected))


@pytest.mark.usefixtures("unchecked")
def test_misaligned_prompts(spliced):
    with pytest.raises(ValueError, match="line up"):
        CircuitRunner.on_prompts(spliced, CLEAN, CORRUPTED[:, :4])


def test_random_circuits_match_in_size_and_keep_tokens(universe):
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(len(universe), generator=generator) < 0.3
    drawn = random_circuits(universe, kept, n=5, seed=0)

    def sizes(flags):
        counts: dict[tuple, int] = {}
        for node, flag in zip(universe, flags.tolist(), strict=True):
            key = (node.kind, node.site, node.layer)
            counts[key] = counts.get(key, 0) + flag
        return counts

    assert all(sizes(circuit) == sizes(kept) for circuit in drawn)
    is_token = torch.tensor([node.kind == "token" for node in universe])
    assert all(torch.equal(circuit[is_token], kept[is_token]) for circuit in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, random_circuits(universe, kept, n=5, seed=0))
    assert torch.equal(tokens_only(universe, kept), kept & is_token)


@pytest.mark.parametrize("kind", ["feature", "error", "sublayer"])
def test_random_circuits_draw_every_kind(kind):
    nodes = [
        Node(kind=kind, layer=0, site="mlp", pos=pos, feature=0 if kind == "feature" else -1)
        for pos in range(4)
    ]
    drawn = random_circuits(nodes, torch.tensor([True, False, False, False]), n=40, seed=0)
    assert drawn.sum(1).tolist() == [1] * 40
    assert bool(drawn.any(0).all())


def test_zero_ablation_writes_the_decoder_bias_and_the_skip(spliced, runner):
    n = runner.clean.n_pos
    nothing = Keep(
        features={w: torch.zeros(1, n, N_FEATURES, dtype=torch.bool) for w in spliced.placements},
        errors={w: torch.zeros(1, n, dtype=torch.bool) for w in spliced.placements},
    )
    zero = zero_values(spliced, runner.clean)
    only_top = {w: p for w, p in spliced.placements.items() if w.layer == 2}
    (top,) = only_top.values()
    bias = {
        w: (lambda y, b=p.dictionary.b_dec: b.expand_as(y))
        for w, p in spliced.placements.items()
        if w not in only_top
    }
    _, seen = spliced.model.run(CLEAN, edits=bias, capture=[top.read])
    skip = seen[top.read] @ top.dictionary.W_skip + top.dictionary.b_dec
    expected, _ = spliced.model.run(CLEAN, edits=bias | {top.write: lambda _: skip})
    # Features that are off on the clean prompt stay live; call all of them on to patch them all.
    all_on = {w: torch.ones_like(v) for w, v in runner.clean.activations.items()}
    everything_on = replace(runner.clean, activations=all_on)
    logits = run_patched(spliced, everything_on, zero, nothing)[0]
    torch.testing.assert_close(logits, expected[:, -1], rtol=1e-9, atol=1e-9)


def test_mean_values_average_over_prompts(spliced, runner):
    mean = mean_values(spliced, runner.clean, runner.clean)
    write = next(iter(spliced.placements))
    by_hand = (runner.clean.errors[write][0] + runner.clean.errors[write][1]) / 2
    torch.testing.assert_close(mean.errors[write][0], by_hand)
    torch.testing.assert_close(mean.errors[write][1], by_hand)
    assert torch.equal(mean.embed, runner.clean.values[Site("embed")])


def test_patchable_nodes_are_those_that_differ(runner, universe):
    flags = dict(zip((n.id for n in universe), runner.patchable(universe).tolist(), strict=True))
    assert flags["token@1"]
    assert not flags["token@0"]
    assert not any(flag for i, flag in flags.items() if i.startswith(("bias", "position")))
    assert not any(flags[n.id] for n in universe if n.pos == 0)
    kept = torch.tensor([flags[n.id] for n in universe])
    logits = runner.logits(universe, kept[None])[0]
    torch.testing.assert_close(logits, runner.full_logits, rtol=1e-9, atol=1e-9)
