"""Neurons and heads as units: their places, patched runs at both ends, one unit by hand."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from circuits import SubjectModel
from circuits.sites import Site
from graphs.faithfulness import kl_to_model
from graphs.proof import ProofChoices, Trial
from graphs.units import Unit, UnitTrial, random_alike
from graphs.units.places import UnitKind, unit_sites
from graphs.units.running import run_units
from tests import models
from tests.graphs.spliced_models import mixed_spliced

CLEAN = torch.tensor([[1, 2, 3, 4, 5], [1, 6, 3, 7, 5], [1, 2, 9, 4, 5]])
CORRUPTED = torch.tensor([[1, 2, 3, 8, 5], [1, 6, 8, 7, 5], [1, 2, 9, 8, 5]])
KINDS: tuple[UnitKind, ...] = ("heads", "neurons")


@cache
def subject(architecture: str = "gpt2") -> SubjectModel:
    return models.subject(architecture, torch.float64)


def metric(logits):
    return logits[:, 10] - logits[:, 1]


def make(kind: UnitKind, architecture: str = "gpt2", **options) -> UnitTrial:
    return UnitTrial.on_prompts(kind, subject(architecture), CLEAN, CORRUPTED, metric, **options)


def ends(trial: UnitTrial) -> torch.Tensor:
    flags = torch.ones(2, len(trial.units), dtype=torch.bool)
    flags[1] = False
    return flags


# --- sites --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_heads_and_neurons_are_read_and_edited_where_they_are(architecture):
    model, layer = subject(architecture), 1
    sites = [Site(kind, layer) for kind in ("z", "mlp_post", "attn_out", "mlp_raw_out")]
    found = model.read(CLEAN, sites)
    z, neurons, attended, written = (found[site] for site in sites)
    heads = model.heads(layer)
    assert z.shape == (*CLEAN.shape, *heads.W_O.shape[:2])
    if model.norm("ln1_post", layer) is None:
        whole = torch.einsum("bphe,hed->bpd", z, heads.W_O) + heads.b_O
        torch.testing.assert_close(attended, whole, rtol=1e-9, atol=1e-9)
    assert neurons.shape[:2] == CLEAN.shape
    assert (written - written[:1, :1]).abs().max() > 1e-3

    def mlp(value):
        edits = {sites[1]: lambda _: value}
        return model.run(CLEAN, edits=edits, capture=[sites[3]])[1][sites[3]]

    torch.testing.assert_close(mlp(neurons), written, rtol=1e-12, atol=1e-12)
    twice = mlp(2 * neurons) - mlp(neurons)
    torch.testing.assert_close(twice, written - mlp(0 * neurons), rtol=1e-9, atol=1e-9)
    for site, behind in ((sites[0], sites[2]), (sites[1], sites[3])):
        off = {site: torch.zeros_like}
        _, found = model.run(CLEAN, edits=off, capture=[behind])
        assert (found[behind] - found[behind][:1, :1]).abs().max() < 1e-12


def test_sites_of_a_kind_are_in_the_order_of_computation():
    heads = [str(site) for site in unit_sites(subject(), "heads")]
    assert heads[:5] == ["embed0", "z0", "mlp_raw_out0", "z1", "mlp_raw_out1"]
    neurons = [str(site) for site in unit_sites(subject(), "neurons")]
    assert neurons == ["embed0", "mlp_post0", "mlp_post1", "mlp_post2"]


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="units must be one of neurons, heads, got 'layers'"):
        unit_sites(subject(), "layers")  # type: ignore[arg-type]


# --- the two ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_kept_is_the_model_and_none_the_corrupted_run(kind, architecture):
    trial = make(kind, architecture)
    model = subject(architecture)
    full, corrupted = (model.run(tokens)[0][:, -1] for tokens in (CLEAN, CORRUPTED))
    outcome = trial.measure(ends(trial))
    torch.testing.assert_close(trial.model_metric, metric(full), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outcome.metric[0], metric(full), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outcome.metric[1], metric(corrupted), rtol=1e-9, atol=1e-9)
    assert outcome.kl[0].abs().max() < 1e-12
    torch.testing.assert_close(outcome.kl[1], kl_to_model(full, corrupted), rtol=1e-7, atol=1e-9)
    assert (metric(full) - metric(corrupted)).abs().min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_are_those_of_feature_circuits(kind):
    spliced = mixed_spliced()
    features = Trial.on_prompts(
        ProofChoices(value="corrupted", errors="as chosen"), spliced, CLEAN, CORRUPTED, metric
    )
    plain = UnitTrial.on_prompts(kind, spliced.model, CLEAN, CORRUPTED, metric)
    flags = torch.tensor([True, False])[:, None].expand(2, len(features.units))
    want, got = features.measure(flags), plain.measure(ends(plain))
    torch.testing.assert_close(got.metric, want.metric, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.kl, want.kl, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plain.model_metric, features.model_metric, rtol=1e-9, atol=1e-9)


# --- units --------------------------------------------------------------------------------------


def test_units_are_what_differs_on_some_pair():
    """The prompts differ at positions 2 (the second pair) and 3, so nothing before can change."""
    heads = make("heads").units
    tokens = [unit for unit in heads if unit.part == "token"]
    assert tokens == [Unit(Site("embed"), pos, 0) for pos in (2, 3)]
    layers, n_heads, n_pos = 3, 4, 3
    assert len(heads) == len(tokens) + layers * n_pos * (n_heads + 1)
    assert {unit.pos for unit in heads} == {2, 3, 4}
    assert [str(unit) for unit in heads[:4]] == ["token@2", "token@3", "head0.0@2", "head0.1@2"]
    assert str(heads[-1]) == "mlp2@4"
    assert len(set(map(str, heads))) == len(heads)
    neurons = make("neurons").units
    assert str(neurons[2]) == "neuron0.0@2"
    width = subject().read(CLEAN, [Site("mlp_post", 0)])[Site("mlp_post", 0)].shape[-1]
    assert len(neurons) == len(tokens) + layers * n_pos * width


def test_a_neuron_that_is_the_same_is_no_unit(monkeypatch):
    model, dead = subject(), Site("mlp_post", 1)
    run = model.run

    def with_dead_neuron(tokens, *, edits=None, capture=()):
        def kill(value):
            value = value.clone()
            value[..., 5] = 0.25
            return value if edits is None or dead not in edits else edits[dead](value)

        return run(tokens, edits={**(edits or {}), dead: kill}, capture=capture)

    monkeypatch.setattr(model, "run", with_dead_neuron)
    trial = UnitTrial.on_prompts("neurons", model, CLEAN, CORRUPTED, metric)
    of_layer = {unit.row for unit in trial.units if unit.site == dead}
    assert of_layer == set(range(128)) - {5}
    outcome = trial.measure(ends(trial))
    want = torch.stack([metric(with_dead_neuron(t)[0][:, -1]) for t in (CLEAN, CORRUPTED)])
    torch.testing.assert_close(outcome.metric, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["token@3", "head1.2@3", "mlp0@2", "mlp2@4"])
def test_patching_one_unit_is_one_edit(name):
    _check_one_edit(make("heads"), name)


@pytest.mark.parametrize("name", ["neuron0.7@3", "neuron2.100@4"])
def test_patching_one_neuron_is_one_edit(name):
    _check_one_edit(make("neurons"), name)


def _check_one_edit(trial, name):
    unit = next(unit for unit in trial.units if str(unit) == name)
    value = subject().read(CORRUPTED, [unit.site])[unit.site]
    parts = unit.part in ("head", "neuron")
    place = (slice(None), unit.pos, unit.row) if parts else (slice(None), unit.pos)

    def edit(clean):
        clean = clean.clone()
        clean[place] = value[place]
        return clean

    logits = subject().run(CLEAN, edits={unit.site: edit})[0][:, -1]
    kept = torch.ones(1, len(trial.units), dtype=torch.bool)
    kept[0, trial.units.index(unit)] = False
    outcome = trial.measure(kept)
    torch.testing.assert_close(outcome.metric[0], metric(logits), rtol=1e-9, atol=1e-9)
    assert (outcome.metric[0] - trial.model_metric).abs().max() > 1e-6


def test_what_is_no_unit_stays_live():
    """In a table of one neuron alone, patching it is patching it in the whole table."""
    trial = make("neurons")
    alone = replace(trial, units=[unit for unit in trial.units if str(unit) == "neuron0.7@3"])
    of_all = torch.tensor([str(unit) != "neuron0.7@3" for unit in trial.units])[None]
    nothing = torch.zeros(1, 1, dtype=torch.bool)
    want = trial.measure(of_all).metric
    torch.testing.assert_close(alone.measure(nothing).metric, want, rtol=1e-9, atol=1e-9)


def test_kept_units_are_recomputed():
    """With the tokens patched and all heads and MLPs kept, the run is the corrupted one."""
    trial = make("heads")
    kept = torch.tensor([unit.part != "token" for unit in trial.units])[None]
    corrupted = subject().run(CORRUPTED)[0][:, -1]
    torch.testing.assert_close(
        trial.measure(kept).metric[0], metric(corrupted), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
def test_circuits_do_not_depend_on_how_many_run_at_once(kind):
    one, many = make(kind, max_bytes=1), make(kind)
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(7, len(many.units), generator=generator) < 0.6
    kept |= torch.tensor([unit.part == "token" for unit in many.units])
    calls = []
    for trial in (one, many):
        outcome = trial.measure(kept)
        calls.append(outcome)
        assert outcome.metric.shape == outcome.kl.shape == (7, 3)
    torch.testing.assert_close(calls[0].metric, calls[1].metric, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(calls[0].kl, calls[1].kl, rtol=1e-8, atol=1e-10)
    assert len(set(calls[0].metric[:, 0].tolist())) == 7


def test_one_call_stays_within_the_memory_that_it_may_take(monkeypatch):
    trial = make("neurons", max_bytes=3 * make("neurons")._bytes_per_circuit())
    sizes = []

    def counted(model, tokens, other, keep):
        sizes.append(len(keep[Site("mlp_post", 0)]))
        return run_units(model, tokens, other, keep)

    monkeypatch.setattr("graphs.units.trial.run_units", counted)
    trial.measure(torch.ones(7, len(trial.units), dtype=torch.bool))
    assert sizes == [3, 3, 1]


@pytest.mark.usefixtures("unchecked")
def test_bad_prompts_are_refused():
    with pytest.raises(ValueError, match=r"line up token by token, got shapes \(3, 5\) and \(3, 4"):
        UnitTrial.on_prompts("heads", subject(), CLEAN, CORRUPTED[:, :4], metric)
    with pytest.raises(ValueError, match="no unit differs"):
        UnitTrial.on_prompts("heads", subject(), CLEAN, CLEAN, metric)
    with pytest.raises(ValueError, match=r"want 47 flags a circuit, got 46"):
        make("heads").measure(torch.ones(1, 46, dtype=torch.bool))


def test_a_model_that_hides_its_neurons_is_refused(monkeypatch):
    model = subject()
    run = model.run

    def hiding(tokens, *, edits=None, capture=()):
        return run(tokens, edits=edits, capture=[s for s in capture if s != Site("mlp_post", 1)])

    monkeypatch.setattr(model, "run", hiding)
    with pytest.raises(ValueError, match="does not show mlp_post1"):
        UnitTrial.on_prompts("neurons", model, CLEAN, CORRUPTED, metric)


# --- random circuits ----------------------------------------------------------------------------


def test_random_circuits_have_as_many_units_of_every_place():
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(60) % 3
    stay = torch.arange(60) < 6
    kept = torch.rand(60, generator=generator) < 0.4
    drawn = random_alike(kept, place, stay, n=400, seed=1)
    assert drawn.shape == (400, 60)
    assert torch.equal(drawn[:, stay], kept[stay].expand(400, 6))
    for number in range(3):
        members = (place == number) & ~stay
        size = int(kept[members].sum())
        assert drawn[:, members].sum(1).unique().tolist() == [size]
        share = drawn[:, members].double().mean(0)
        assert (share - size / int(members.sum())).abs().max() < 0.12
    assert torch.equal(drawn, random_alike(kept, place, stay, n=400, seed=1))
    assert not torch.equal(drawn, random_alike(kept, place, stay, n=400, seed=2))
    assert len({tuple(row) for row in drawn.tolist()}) > 390


def test_no_draw_is_refused():
    flags = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least one draw, got n = 0"):
        random_alike(flags, torch.zeros(2, dtype=torch.long), flags, n=0, seed=0)
