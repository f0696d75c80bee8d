"""Proof on live spliced models: anchors under every choice, and a redundant pair by hand."""

import pytest
import torch
import transformers

from attribution.nodes import Node
from circuits import Intervention, SplicedModel, Transcoder, load_model
from graphs.controls import random_circuits, tokens_only
from graphs.faithfulness import faithfulness
from graphs.most_active import top_active
from graphs.proof import Proof, ProofChoices, Trial, beside_controls, prove
from graphs.proof.beside import TOKENS_ONLY
from graphs.proof.knockouts import greedy_knockouts, knockout_gaps, random_knockouts
from graphs.proof.minimality import removal_harms
from graphs.proof.runners import live_nodes, make_runner
from graphs.scorer import CircuitRunner
from tests.graphs.spliced_models import N_FEATURES, mixed_spliced

CLEAN = torch.tensor([[1, 2, 3, 4, 5], [1, 6, 3, 7, 5], [1, 2, 9, 4, 5], [1, 6, 9, 7, 5]])
CORRUPTED = torch.tensor([[1, 8, 3, 4, 5], [1, 9, 3, 7, 5], [1, 8, 9, 4, 5], [1, 9, 9, 7, 5]])
CHOSE = torch.tensor([[1, 2, 3, 4, 6], [1, 6, 3, 4, 5]])
CHOSE_CORRUPTED = torch.tensor([[1, 8, 3, 4, 6], [1, 8, 3, 4, 5]])
NO_TOKENS = ("features", "MLPs")


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return mixed_spliced()


def _metric(logits):
    return logits[:, 10] - logits[:, 1]  # lower on every corrupted prompt


def _choices(value="corrupted", **others) -> ProofChoices:
    others = {"errors": "as chosen"} | others
    component = ("features", "tokens", "MLPs") if value == "corrupted" else NO_TOKENS
    return ProofChoices(value=value, **{"component": component} | others)


KEPT = _choices(errors="kept")


def _trial(spliced, choices, **options) -> Trial:
    other = {"corrupted": CORRUPTED, "mean": CORRUPTED[:3], "zero": None}[choices.value]
    return Trial.on_prompts(choices, spliced, CLEAN, other, _metric, **options)


def _flags(n, *rows):
    flags = torch.zeros(len(rows), n, dtype=torch.bool)
    for row, members in zip(flags, rows, strict=True):
        row[list(members)] = True
    return flags


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("positions", ["each", "all"])
def test_all_kept_is_the_model_and_none_the_corrupted_run(spliced, direction, positions):
    trial = _trial(spliced, _choices(direction=direction, positions=positions))
    n = len(trial.units)
    outcome = trial.measure(_flags(n, range(n), ()))
    full = spliced.model.run(CLEAN)[0][:, -1]
    corrupted = spliced.model.run(CORRUPTED)[0][:, -1]
    expected = torch.stack([_metric(full), _metric(corrupted)])
    torch.testing.assert_close(outcome.metric, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trial.model_metric, _metric(full), rtol=1e-9, atol=1e-9)
    assert outcome.kl[0].abs().max() < 1e-12
    assert outcome.kl[1].min() > 1e-4


@pytest.mark.parametrize("value", ["mean", "zero"])
def test_all_kept_is_the_model_without_a_corruption(spliced, value):
    trial = _trial(spliced, _choices(value))
    n = len(trial.units)
    outcome = trial.measure(_flags(n, range(n), ()))
    torch.testing.assert_close(outcome.metric[0], trial.model_metric, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outcome.metric[1], _metric(trial.runner.empty_logits))
    assert (outcome.metric[1] - outcome.metric[0]).abs().max() > 1e-2
    assert not any(node.kind == "token" for node in trial.units)


@pytest.mark.parametrize("value", ["corrupted", "mean", "zero"])
def test_ablating_one_top_feature_is_the_intervention(spliced, value):
    """Against `SplicedModel.run`, at the last dictionary and position, prompt by prompt."""
    trial = _trial(spliced, _choices(value))
    site = spliced.write_site("mlp.2")
    acts = {"clean": spliced.state(CLEAN), "other": spliced.state(CORRUPTED)}
    on = acts["clean"].activations[site][:, 4]
    other = acts["other"].activations[site][:, 4]
    wanted = {"corrupted": other, "mean": other[:3].mean(0).expand(4, N_FEATURES), "zero": 0 * on}[
        value
    ]
    feature = int(((wanted - on) * (on != 0)).abs().sum(0).argmax())
    ids = [node.id for node in trial.units]
    unit = ids.index(f"mlp2.{feature}@4")
    logits = []
    for row in range(len(CLEAN)):
        new = float(wanted[row, feature] if on[row, feature] != 0 else on[row, feature])
        change = Intervention("mlp.2", feature, "set", new, [4])
        run = spliced.run(CLEAN[row : row + 1], "exact", interventions=[change])
        logits.append(run.logits[0, -1])
    kept = _flags(len(ids), set(range(len(ids))) - {unit})
    metric = trial.measure(kept).metric[0]
    torch.testing.assert_close(metric, _metric(torch.stack(logits)), rtol=1e-9, atol=1e-9)
    assert (metric - trial.model_metric).abs().max() > 1e-4


def test_denoising_one_bottom_feature_is_the_intervention_on_the_corrupted_run(spliced):
    """A feature that only the clean prompt uses is restored too."""
    trial = _trial(spliced, _choices(direction="denoising"))
    site = spliced.write_site("mlp.2")
    on = spliced.state(CLEAN).activations[site][:, 4]
    off = spliced.state(CORRUPTED).activations[site][:, 4]
    only_clean = (on != 0) & (off == 0)
    row, feature = only_clean.nonzero()[0].tolist()
    change = Intervention("mlp.2", feature, "set", float(on[row, feature]), [4])
    run = spliced.run(CORRUPTED[row : row + 1], "exact", interventions=[change])
    ids = [node.id for node in trial.units]
    metric = trial.measure(_flags(len(ids), [ids.index(f"mlp2.{feature}@4")])).metric[0, row]
    torch.testing.assert_close(metric, _metric(run.logits[:, -1])[0], rtol=1e-9, atol=1e-9)
    corrupted = _metric(spliced.model.run(CORRUPTED)[0][:, -1])[row]
    assert (metric - corrupted).abs() > 1e-6


def test_errors_kept_or_dropped(spliced):
    chosen, kept, dropped = (
        _trial(spliced, _choices(errors=e)) for e in ("as chosen", "kept", "dropped")
    )
    units = chosen.units
    is_error = torch.tensor([node.kind == "error" for node in units])
    assert bool(is_error.any())
    for trial in (kept, dropped):
        assert [n.id for n in trial.units] == [n.id for n in units if n.kind != "error"]
    half = torch.arange(len(units)) % 2 == 0
    by_hand = chosen.measure(torch.stack([half | is_error, half & ~is_error])).metric
    own = half[~is_error][None]
    torch.testing.assert_close(kept.measure(own).metric[0], by_hand[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dropped.measure(own).metric[0], by_hand[1], rtol=1e-9, atol=1e-9)
    assert (by_hand[0] - by_hand[1]).abs().max() > 1e-3


def test_components_left_out_stay_live(spliced):
    trial = _trial(spliced, _choices(component=("features",), errors="kept"))
    assert {node.kind for node in trial.units} == {"feature"}
    all_units = _trial(spliced, _choices())
    live = torch.tensor([node.kind != "feature" for node in all_units.units])
    none = _flags(len(trial.units), ())
    torch.testing.assert_close(
        trial.measure(none).metric, all_units.measure(live[None]).metric, rtol=1e-9, atol=1e-9
    )


def test_a_unit_at_all_positions_is_its_nodes_together(spliced):
    each, together = (_trial(spliced, _choices(positions=p)) for p in ("each", "all"))
    keys = [(n.kind, n.site, n.layer, n.feature) for n in together.units]
    assert len(set(keys)) == len(keys) < len(each.units)
    kept = torch.arange(len(keys)) % 3 == 0
    spread = torch.tensor(
        [bool(kept[keys.index((n.kind, n.site, n.layer, n.feature))]) for n in each.units]
    )
    torch.testing.assert_close(
        together.measure(kept[None]).metric, each.measure(spread[None]).metric
    )
    flags, _ = together.circuit(each.units, spread)
    assert torch.equal(flags, kept)
    one = [n for n in each.units if n.kind == "token"][:1]
    flags, _ = together.circuit(one, torch.tensor([True]))
    assert int(flags.sum()) == 1


def test_little_memory_gives_the_same(spliced):
    large, small = _trial(spliced, _choices()), _trial(spliced, _choices(), max_bytes=1)
    sizes = []
    run = small.runner.logits
    n = len(large.units)
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(5, n, generator=generator) < 0.5

    def counting(nodes, flags):
        sizes.append(len(flags))
        return run(nodes, flags)

    object.__setattr__(small.runner, "logits", counting)
    a, b = large.measure(kept), small.measure(kept)
    torch.testing.assert_close(a.metric, b.metric, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.kl, b.kl, rtol=1e-7, atol=1e-9)
    assert sizes == [1] * 5


def test_faithfulness_is_that_of_the_existing_function(spliced):
    trial = _trial(spliced, _choices())
    kept = torch.tensor([node.layer < 2 for node in trial.nodes])
    proof = _prove(trial, trial.nodes, kept)
    runner = CircuitRunner.on_prompts(spliced, CLEAN, CORRUPTED)
    with_fixed = kept | (trial.unit < 0)
    known = faithfulness(runner, trial.nodes, _metric, kept=with_fixed)
    assert proof.faithfulness.value == pytest.approx(known.faithfulness, rel=1e-9)
    assert proof.kl_circuit.value == pytest.approx(known.kl, rel=1e-7)
    assert proof.metric_model.value == pytest.approx(known.metric_model, rel=1e-9)
    circuit, _ = trial.circuit(trial.nodes, kept)
    runs = trial.measure(torch.stack([circuit, ~circuit, circuit & ~circuit]))
    inside, without, empty = runs.metric.mean(1).tolist()
    model = float(trial.model_metric.mean())
    assert len({inside, without, empty, model}) == 4
    no_tokens = kept & torch.tensor([node.kind != "token" for node in trial.nodes])
    other = _prove(trial, trial.nodes, no_tokens)
    assert other.necessity_all_features.value == pytest.approx(proof.necessity_all_features.value)
    is_token = torch.tensor([node.kind == "token" for node in trial.units])
    apart = trial.measure(torch.stack([~circuit | is_token, is_token])).metric.mean(1).tolist()
    assert len({*apart, without, empty, model}) == 5
    for number, expected in (
        (proof.necessity_features, (model - apart[0]) / (model - empty)),
        (proof.necessity_all_features, (model - apart[1]) / (model - empty)),
        (proof.metric_circuit, inside),
        (proof.metric_without, without),
        (proof.metric_empty, empty),
        (proof.completeness, (without - empty) / (model - empty)),
        (proof.necessity, (model - without) / (model - empty)),
        (proof.kl_without, float(runs.kl[1].mean())),
    ):
        assert number.value == pytest.approx(expected, rel=1e-9)


FEW = {"n_random": 3, "n_greedy": 1, "n_candidates": 2, "n_contexts": 0, "n_resamples": 50}


def _choosing(trial) -> Trial:
    """Under the choices of `trial`, on prompts that are not its own."""
    clean, other = CHOSE, CHOSE_CORRUPTED
    if trial.runner.spliced.model.n_layers == 1:  # the model with a redundant pair
        clean, other = torch.tensor([[1, 4], [7, 4]]), None
    return Trial.on_prompts(trial.choices, trial.runner.spliced, clean, other, trial.metric)


def _prove(trial, nodes, kept, **options) -> Proof:
    options = FEW | {"choosing": _choosing(trial), "metric_name": "logit difference"} | options
    return prove(trial, nodes, kept, **options)


def test_the_full_circuit_is_faithful_complete_and_necessary(spliced):
    trial = _trial(spliced, _choices(positions="all"))
    proof = _prove(trial, trial.nodes, torch.ones(len(trial.nodes), dtype=torch.bool))
    for number, value in (
        (proof.faithfulness, 1.0),
        (proof.completeness, 0.0),
        (proof.necessity, 1.0),
        (proof.kl_circuit, 0.0),
    ):
        assert number.value == pytest.approx(value, abs=1e-9)
    assert all(k.worst.value == k.mean.value == 0.0 for k in proof.knockouts)
    assert proof.size == proof.n_units == len(trial.units)
    assert proof.metric_without.value == pytest.approx(proof.metric_empty.value, abs=1e-9)
    assert proof.kl_without.value == pytest.approx(proof.kl_empty.value, abs=1e-9)


# A model whose MLP is two ReLU features, known by hand: see `_pair_model`.


def _pair_model(weights: tuple[float, ...], d_model: int = 8) -> SplicedModel:
    """One block whose attention hardly counts: every feature fires on token 4, writes the answer 3.

    The MLP is ReLU, so a transcoder with its weights has no error. The final norm divides by the
    size of the residual stream: one strong feature and two of them give the same logits.
    """
    n = len(weights)
    config = transformers.GPT2Config(
        vocab_size=d_model,
        n_embd=d_model,
        n_layer=1,
        n_head=1,
        n_inner=n,
        n_positions=4,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    block = model.transformer.h[0]
    state = torch.eye(d_model)
    W_in = torch.stack([state[4]] * n, 1)
    W_out = torch.stack([w * (state[3] - state[6]) for w in weights])
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(state)
        model.lm_head.weight.copy_(state)
        block.mlp.c_fc.weight.copy_(W_in)
        block.mlp.c_fc.bias.zero_()
        block.mlp.c_proj.weight.copy_(W_out)
        block.mlp.c_proj.bias.zero_()
    zeros = torch.zeros(n), torch.zeros(d_model)
    dictionary = Transcoder(W_in, W_out, *zeros)
    return SplicedModel(load_model(model, dtype=torch.float64), {"mlp.0": dictionary})


def _answer(logits):
    return logits[:, 3] - logits[:, 6]


def _pair_trial(weights, **others) -> Trial:
    choices = ProofChoices(value="zero", errors="kept", component=("features",), **others)
    prompts = torch.tensor([[0, 4], [2, 4], [5, 4]])
    return Trial.on_prompts(choices, _pair_model(weights), prompts, None, _answer)


FEATURES = [
    Node(kind="feature", layer=0, site="mlp", pos=1, feature=i, activation=1.0) for i in range(3)
]


def test_a_redundant_pair_is_not_minimal_alone_but_needed_together():
    trial = _pair_trial((1e6, 1e6))
    assert [node.id for node in trial.units] == ["mlp0.0@1", "mlp0.1@1"]
    both = torch.ones(2, dtype=torch.bool)
    proof = _prove(trial, FEATURES[:2], both, n_contexts=8)
    harms = {h.node: h for h in proof.minimality.nodes}
    assert all(abs(h.alone.value) < 1e-6 for h in harms.values())
    assert all(h.largest == pytest.approx(1.0, abs=1e-6) for h in harms.values())
    assert proof.minimality.needed_alone.value == 0.0
    assert proof.minimality.needed.value == 1.0
    one = _prove(trial, FEATURES[:2], torch.tensor([True, False]))
    assert one.faithfulness.value == pytest.approx(1.0, abs=1e-6)
    assert one.completeness.value == pytest.approx(1.0, abs=1e-6)  # the twin does it all
    assert one.necessity.value == pytest.approx(0.0, abs=1e-6)
    by_class = {k.search: k for k in one.knockouts}["by class"]
    assert by_class.worst.value == pytest.approx(-1.0, abs=1e-6)
    assert by_class.worst_nodes == ("mlp0.0@1",)


def test_contexts_of_minimality_are_further_random_knockouts(spliced):
    trial = _trial(spliced, _choices(positions="all"))
    kept = torch.tensor([node.layer in (-1, 2) for node in trial.nodes])
    found = _prove(trial, trial.nodes, kept, n_contexts=2, seed=5).minimality
    circuit, _ = trial.circuit(trial.nodes, kept)
    contexts = random_knockouts(circuit, n=2, seed=6)
    contexts = torch.cat([torch.zeros_like(circuit)[None], contexts])
    _, harms = removal_harms(trial.measure, circuit, contexts)
    share = harms.mean(-1) / float((trial.model_metric - _empty(trial)).mean())
    largest = share.gather(0, share.abs().argmax(0, keepdim=True))[0]
    assert [h.largest for h in found.nodes] == pytest.approx(largest.tolist(), rel=1e-7, abs=1e-9)
    assert [h.alone.value for h in found.nodes] == pytest.approx(share[0].tolist(), abs=1e-9)


def test_greedy_knockouts_are_searched_where_the_circuit_was_chosen(spliced):
    """Against the search by hand, its K carried over to the units of the proving prompts."""
    for positions in ("each", "all"):
        trial = _trial(spliced, _choices(positions=positions))
        choosing = _choosing(trial)
        kept = torch.tensor([node.layer in (-1, 1, 2) for node in trial.nodes])
        steps = {"n_greedy": 2, "n_candidates": 50, "seed": 4}
        ours = {k.search: k for k in _prove(trial, trial.nodes, kept, **steps).knockouts}["greedy"]
        there, _ = choosing.circuit(trial.nodes, kept)
        sets = greedy_knockouts(choosing.measure, there, n_steps=2, n_candidates=50, seed=4)
        here, _ = trial.circuit(trial.nodes, kept)
        carried = torch.zeros(2, len(here), dtype=torch.bool)
        for row, found in zip(carried, sets, strict=True):
            taken = {_key(u, positions) for u, f in zip(choosing.units, found, strict=True) if f}
            row[[_key(u, positions) in taken for u in trial.units]] = True
        assert torch.equal(trial.carry(choosing, sets), carried)
        gaps = knockout_gaps(trial.measure, here, carried).mean(1)
        proof = gaps / float((trial.model_metric - _empty(trial)).mean())
        assert ours.n_sets == 2
        assert ours.mean.value == pytest.approx(float(proof.abs().mean()), rel=1e-9)
        assert abs(ours.worst.value) == pytest.approx(float(proof.abs().max()), rel=1e-9)
        own = greedy_knockouts(trial.measure, here, n_steps=2, n_candidates=50, seed=4)
        assert not torch.equal(own, carried)  # the search would have found others here


def test_knockouts_found_elsewhere_stay_inside_the_circuit(spliced):
    """A unit may be in the circuit by a position where it is idle on the prompts that prove."""
    trial = _trial(spliced, _choices(positions="all"))
    choosing = _choosing(trial)
    units, there = ([_key(u, "all") for u in t.units] for t in (trial, choosing))
    every_third = torch.arange(len(units)) % 3 == 0
    taken = {unit for unit, flag in zip(units, every_third.tolist(), strict=True) if flag}
    back = choosing.carry(trial, every_third[None])[0]
    assert back.tolist() == [unit in taken for unit in there]
    here = {node.id for node in trial.nodes}
    elsewhere = torch.tensor([n.id not in here or n.kind == "token" for n in choosing.nodes])
    circuit, _ = trial.circuit(choosing.nodes, elsewhere)
    chosen, _ = choosing.circuit(choosing.nodes, elsewhere)
    options = {"n_greedy": 30, "n_candidates": 1, "seed": 2}
    proof = _prove(trial, choosing.nodes, elsewhere, **options)
    sets = greedy_knockouts(choosing.measure, chosen, n_steps=30, n_candidates=1, seed=2)
    carried = trial.carry(choosing, sets)
    assert bool((carried & ~circuit).any())
    gaps = knockout_gaps(trial.measure, circuit, carried & circuit).mean(1)
    share = gaps / float((trial.model_metric - _empty(trial)).mean())
    found = {k.search: k for k in proof.knockouts}["greedy"]
    assert found.mean.value == pytest.approx(float(share.abs().mean()), rel=1e-9)


def test_features_of_two_sites_of_a_layer_are_two_units(spliced):
    sae, transcoder = (
        spliced.placements[spliced.write_site(s)].dictionary for s in ("attn_out.1", "mlp.0")
    )
    both = SplicedModel(spliced.model, {"attn_out.1": sae, "mlp.1": transcoder})
    each, together = (_trial(both, _choices(positions=p)) for p in ("each", "all"))
    keys = [_key(unit, "all") for unit in together.units]
    assert set(keys) == {_key(unit, "all") for unit in each.units}
    assert {unit.site for unit in together.units if unit.kind == "feature"} == {"attn_out", "mlp"}


def _key(unit, positions):
    return unit.id if positions == "each" else (unit.kind, unit.site, unit.layer, unit.feature)


def _empty(trial):
    return trial.measure(torch.zeros(1, len(trial.units), dtype=torch.bool)).metric[0]


def test_progress_ends_at_the_cost_that_is_stated(spliced):
    trial = _trial(spliced, _choices(positions="all"))
    kept = torch.tensor([node.layer in (-1, 2) for node in trial.nodes])
    seen, of_controls = [], []
    options = {"n_random": 3, "n_greedy": 2, "n_candidates": 3, "n_contexts": 2}
    proof = _prove(trial, trial.nodes, kept, progress=lambda *at: seen.append(at), **FEW | options)
    n_classes = {k.search: k.n_sets for k in proof.knockouts}["by class"]
    stated = 5 + 2 * (3 + n_classes + 2) + 3 * (proof.size + 1) + 2 * 2 * 3
    assert seen[-1] == (stated, stated)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    table = beside_controls(
        proof, trial, trial.nodes, kept, n_random=4, progress=lambda *at: of_controls.append(at)
    )
    n = sum(control.n_circuits for control in table.controls)
    assert of_controls[-1] == (1 + 2 * n, 1 + 2 * n)
    assert table.control(TOKENS_ONLY) == table.controls[2]
    with pytest.raises(ValueError, match="got 'none'; there are 'random, same size per layer'"):
        table.control("none")


def test_an_idle_unit_is_found_by_minimality_and_a_lone_one_is_needed():
    trial = _pair_trial((1e6, 0.0))
    proof = _prove(trial, FEATURES, torch.tensor([True, True, True]), n_contexts=4)
    harms = {h.node: h.alone.value for h in proof.minimality.nodes}
    assert harms == {"mlp0.0@1": pytest.approx(1.0), "mlp0.1@1": pytest.approx(0.0)}
    assert proof.minimality.smallest_node == "mlp0.1@1"
    assert proof.minimality.needed_alone.value == proof.minimality.needed.value == 0.5
    assert (proof.size, proof.n_idle) == (2, 1)
    assert proof.completeness.value == pytest.approx(0.0, abs=1e-9)
    assert proof.necessity.value == pytest.approx(1.0)


def test_options_reach_the_record():
    trial = _pair_trial((1e6, 1e6))
    both = torch.ones(2, dtype=torch.bool)
    options = {"n_random": 5, "n_greedy": 2, "n_contexts": 4, "threshold": 1.5, "n_resamples": 20}
    proof = _prove(trial, FEATURES[:2], both, metric_name="difference", seed=7, **options)
    searches = {k.search: k.n_sets for k in proof.knockouts}
    assert searches == {"random": 5, "by class": 1, "greedy": 2}
    assert (proof.metric_name, proof.n_resamples, proof.seed) == ("difference", 20, 7)
    assert (proof.minimality.threshold, proof.minimality.n_contexts) == (1.5, 4)
    assert proof.minimality.needed.value == 0.0
    assert (proof.n_prompts, proof.n_units, proof.n_idle) == (3, 2, 0)
    second = _prove(trial, FEATURES[:2], torch.tensor([False, True]))
    assert [h.node for h in second.minimality.nodes] == ["mlp0.1@1"]


def test_controls(spliced):
    trial = _trial(spliced, _choices(positions="all"))
    kept = torch.tensor(
        [n.layer in (-1, 2) and (n.kind != "feature" or n.feature % 2 == 0) for n in trial.nodes]
    )
    proof = _prove(trial, trial.nodes, kept, seed=3)
    everything = torch.ones(2, len(trial.nodes), dtype=torch.bool)
    everything[1] = kept
    table = beside_controls(
        proof,
        trial,
        trial.nodes,
        kept,
        controls={"all, and itself": everything, "itself": kept[None]},
        n_random=4,
    )
    random, active, tokens, given, itself = table.controls
    assert (itself.faithfulness, itself.completeness) == (proof.faithfulness, proof.completeness)
    assert (itself.metric, itself.kl) == (proof.metric_circuit, proof.kl_circuit)
    assert itself.as_faithful == 1.0
    assert (random.n_circuits, random.size) == (4, proof.size)
    own, _ = trial.circuit(trial.nodes, kept)
    drawn = trial.measure(random_circuits(trial.units, own, n=4, seed=3))
    assert random.metric.value == pytest.approx(float(drawn.metric.mean()), rel=1e-9)
    assert random.kl.value == pytest.approx(float(drawn.kl.mean()), rel=1e-7)
    of_active = trial.measure(top_active(trial.units, own)[None]).metric[0].mean()
    assert active.metric.value == pytest.approx(float(of_active))
    assert active.size == proof.size
    of_tokens = trial.measure(tokens_only(trial.units, own)[None]).metric[0].mean()
    assert tokens.metric.value == pytest.approx(float(of_tokens))
    assert given.size == (proof.n_units + proof.size) / 2
    assert given.metric.value == pytest.approx(
        (proof.metric_model.value + proof.metric_circuit.value) / 2, abs=1e-9
    )
    assert given.completeness.value == pytest.approx(proof.completeness.value / 2, abs=1e-9)
    assert given.kl.value == pytest.approx(proof.kl_circuit.value / 2, abs=1e-9)
    ends = sorted((1.0, proof.faithfulness.value))
    assert given.faithfulness_range == pytest.approx(tuple(ends))
    assert given.as_faithful == (1.0 if proof.faithfulness.value <= 1 else 0.5)
    text = table.markdown()
    assert "tokens only" in text
    assert str(proof.choices) in text
    with pytest.raises(ValueError, match="trial and circuit of the proof"):
        beside_controls(proof, trial, trial.nodes, ~kept)


def test_live_nodes_name_everything_a_patch_can_reach(spliced):
    runner = make_runner(_choices(), spliced, CLEAN, CORRUPTED)
    nodes = live_nodes(_choices(), runner)
    kinds = [node.kind for node in nodes]
    assert kinds.count("token") == 5
    assert kinds.count("error") == 15
    assert kinds.count("sublayer") == 5
    state = spliced.state(CLEAN)
    in_use = sum(int((a != 0).any(0).sum()) for a in state.activations.values())
    assert kinds.count("feature") == in_use
    site = spliced.write_site("mlp.2")
    means = {n.id: n.activation for n in nodes if n.layer == 2 and n.kind == "feature"}
    on = state.activations[site]
    assert means == {
        f"mlp2.{i}@{pos}": pytest.approx(float(on[:, pos, i].mean()))
        for pos, i in (on != 0).any(0).nonzero().tolist()
    }
    backwards = _trial(spliced, _choices(direction="denoising"))
    known = {n.id: n.activation for n in backwards.nodes}
    assert {i: known[i] for i in means} == means
    together = {
        n.feature: n for n in _trial(spliced, _choices(positions="all")).units if n.layer == 2
    }
    each = [n for n in _trial(spliced, _choices()).units if n.layer == 2 and n.kind == "feature"]
    of_one = each[0].feature
    added = sum(n.activation for n in each if n.feature == of_one)
    assert together[of_one].activation == pytest.approx(added)


def _rows(spliced, rows) -> Trial:
    """A trial on some of the prompts that prove."""
    return Trial.on_prompts(_choices(), spliced, CLEAN[rows], CORRUPTED[rows], _metric)


def test_prompts_that_chose_are_refused(spliced):
    trial = _trial(spliced, _choices())
    kept = torch.ones(len(trial.nodes), dtype=torch.bool)
    with pytest.raises(ValueError, match=r"2 of 4 are \(the first in row 1\)"):
        _prove(trial, trial.nodes, kept, choosing=_rows(spliced, [3, 1]))


@pytest.mark.usefixtures("unchecked")
def test_bad_trials(spliced):
    with pytest.raises(ValueError, match=r"ablates nodes, got unit 'edge'; .* `graphs.live_circ"):
        _trial(spliced, _choices(unit="edge"))
    with pytest.raises(ValueError, match="none can be ablated"):
        Trial.on_prompts(_choices(), spliced, CLEAN, CLEAN, _metric)
    with pytest.raises(ValueError, match="line up"):
        Trial.on_prompts(_choices(), spliced, CLEAN, CORRUPTED[:, :4], _metric)
    with pytest.raises(ValueError, match="as long as"):
        Trial.on_prompts(_choices("mean"), spliced, CLEAN, CORRUPTED[:, :4], _metric)
    with pytest.raises(ValueError, match="give `other`"):
        Trial.on_prompts(_choices("mean"), spliced, CLEAN, None, _metric)
    with pytest.raises(ValueError, match="other=None"):
        Trial.on_prompts(_choices("zero"), spliced, CLEAN, CORRUPTED, _metric)
    trial = _trial(spliced, _choices())
    with pytest.raises(ValueError, match="one flag a node"):
        trial.circuit(trial.units, torch.ones(2, dtype=torch.bool))
    nothing = torch.zeros(len(trial.nodes), dtype=torch.bool)
    with pytest.raises(ValueError, match="the prompts that prove; was it found on prompts"):
        _prove(trial, trial.nodes, nothing)
    with pytest.raises(ValueError, match=r"want a choosing trial with .*errors as chosen"):
        _prove(trial, trial.nodes, ~nothing, choosing=_choosing(_trial(spliced, KEPT)))
    longer = torch.tensor([n.pos == 4 for n in trial.nodes])
    shorter = Trial.on_prompts(
        _choices(), spliced, CHOSE[:, :4], CHOSE_CORRUPTED[:, :4], lambda logits: logits[:, 0]
    )
    with pytest.raises(ValueError, match="the prompts that chose; was it found on prompts"):
        _prove(trial, trial.nodes, longer, choosing=shorter)
