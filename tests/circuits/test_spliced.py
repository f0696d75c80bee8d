"""The spliced model: its three modes, interventions, and what it refuses to splice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits import Dictionary, Intervention, Site, SplicedModel
from circuits.interventions import intervene
from tests import models
from tests.models import ARCHITECTURES, D_MODEL, MIXTURES, N_FEATURES, TOKENS

BATCH = torch.stack([TOKENS, TOKENS.flip(0)])


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_and_frozen_give_the_original_logits(architecture: str, mixture: str):
    """`frozen` recomputes every step; random dictionaries amplify rounding, hence float64."""
    spliced = models.spliced(architecture, mixture)
    original, _ = spliced.model.run(BATCH)
    assert torch.equal(spliced.run(BATCH, "exact").logits, original)
    spliced = models.spliced(architecture, mixture, torch.float64)
    state = spliced.state(BATCH)
    assert close(state.logits, original.double(), 2e-5)
    assert close(spliced.run(BATCH, "frozen").logits, state.logits, 1e-9)
    held = spliced.run(BATCH, "frozen", state=state, hold_features=True)
    assert close(held.logits, state.logits, 1e-10)


@pytest.mark.parametrize("architecture", ["llama_gqa", "gpt2"])
def test_replace_is_a_plain_forward_hook(architecture: str):
    transcoders = {0: models.transcoder("relu", seed=1), 2: models.transcoder("topk", skip=True)}
    plain = models.hf_model(architecture)
    for layer, dictionary in transcoders.items():
        block = plain.transformer.h[layer] if architecture == "gpt2" else plain.model.layers[layer]
        block.mlp.register_forward_hook(lambda _, args, __, d=dictionary: d(args[0]))
    with torch.no_grad():
        want = plain(BATCH).logits
    spliced = SplicedModel(models.subject(architecture), transcoders)
    assert close(spliced.run(BATCH, "replace").logits, want, 1e-5)
    assert not close(spliced.run(BATCH, "exact").logits, want, 1e-2)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "neox_parallel"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_a_perfect_sae_changes_nothing_and_a_useless_one_much(architecture: str, site: str):
    model = models.subject(architecture)
    original, _ = model.run(BATCH)
    perfect = SplicedModel(model, {f"{site}.1": models.perfect_sae(site)})
    assert close(perfect.run(BATCH, "replace").logits, original, 1e-5)
    useless = SplicedModel(model, {f"{site}.1": models.sae(site)})
    assert not close(useless.run(BATCH, "replace").logits, original, 1e-2)


@pytest.mark.parametrize("mixture", ["skip", "mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_is_affine(architecture: str, mixture: str):
    """In float64, the second difference along any change of features is 0 (design, 2.2)."""
    spliced = models.spliced(architecture, mixture, torch.float64)
    tokens = TOKENS[None]
    state = spliced.state(tokens)
    cap = spliced.model.logit_softcap

    def logits(step: float) -> Tensor:
        changes = [
            Intervention(write, feature, "add", step, positions=[1, 4])
            for write in spliced.placements
            for feature in range(4)
        ]
        run = spliced.run(tokens, "frozen", state=state, hold_features=True, interventions=changes)
        return cap * torch.atanh(run.logits / cap) if cap else run.logits

    base, one, two = logits(0.0), logits(0.02), logits(0.04)
    assert (one - base).abs().max() > 1e-3
    assert (two - 2 * one + base).abs().max() < 1e-9 * two.abs().max()


def test_frozen_holds_the_state_of_another_prompt():
    spliced = models.spliced("llama_gqa", "skip", torch.float64)
    here, there = TOKENS[None], TOKENS.flip(0)[None]
    state = spliced.state(here)
    held = spliced.run(there, "frozen", state=state, hold_features=True).logits
    free = spliced.run(there, "exact").logits
    assert not close(held, free, 1e-3)
    assert not close(held, state.logits, 1e-3)


@pytest.mark.parametrize("mode", ["replace", "exact", "frozen"])
@pytest.mark.parametrize("write", [Site("mlp_raw_out", 1), Site("resid_post", 0)])
def test_interventions_change_the_one_feature_they_name(mode, write: Site):
    sae = models.sae("resid_post", "relu")
    dictionary = models.transcoder("relu") if write.kind == "mlp_raw_out" else sae
    spliced = SplicedModel(models.subject("gpt2"), {write: dictionary})
    base = spliced.run(BATCH, mode)
    active = base.activations[write][0, 2].argmax()
    changes: list[tuple[Any, float, Callable[[Tensor], Tensor]]] = [
        ("ablate", 7.0, lambda a: 0 * a),
        ("set", 3.0, lambda a: 0 * a + 3.0),
        ("scale", -2.0, lambda a: -2.0 * a),
        ("add", 1.5, lambda a: a + 1.5),
    ]
    for kind, value, want in changes:
        change = Intervention(write, int(active), kind, value, positions=[2, -1])
        run = spliced.run(BATCH, mode, interventions=[change])
        expected = base.activations[write].clone()
        expected[:, [2, -1], active] = want(expected[:, [2, -1], active])
        assert torch.equal(run.activations[write], expected)
        moved = (run.logits - base.logits).abs().amax(-1)
        assert (moved[:, :2] == 0).all(), "the past moved"
        assert (moved[:, [2, -1]] > 1e-5).all()


def test_an_intervention_moves_the_output_by_its_decoder():
    """At the last layer's residual stream, by hand: logits of (x + delta * d) through the norm."""
    write = Site("resid_post", 2)
    spliced = SplicedModel(models.subject("gpt2"), {write: models.sae("resid_post")})
    model, state = spliced.model, spliced.state(BATCH)
    norm = model.norm("final")
    assert norm is not None
    x = state.values[write].clone()
    x[:, 3] += 2.0 * spliced.placements[write].dictionary.W_dec[11]
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain + norm.bias
    change = Intervention("resid_post.2", 11, "add", 2.0, positions=[3])
    run = spliced.run(BATCH, "exact", interventions=[change])
    assert close(run.logits, y @ model.W_U, 1e-5)


def test_interventions_apply_in_order_and_leave_their_input_alone():
    a = torch.ones(1, 2, 3)
    changes = [Intervention("mlp.0", 1, "add", 1.0), Intervention("mlp.0", 1, "scale", 3.0, [0])]
    out = intervene(a, changes)
    assert out[0, :, 1].tolist() == [6.0, 2.0]
    assert torch.equal(a, torch.ones(1, 2, 3))


def test_ablation_and_set_clear_what_is_not_finite():
    a = torch.full((1, 1, 2), float("nan"))
    out = intervene(a, [Intervention("x", 0), Intervention("x", 1, "set", 2.0)])
    assert out.tolist() == [[[0.0, 2.0]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Intervention("mlp.0", N_FEATURES), r"feature must be in \[0, 40\), got 40"),
        (Intervention("mlp.0", -1), "feature must be in"),
        (Intervention("mlp.0", 0, positions=[7]), r"positions must be in \[-7, 7\), got \[7\]"),
        (Intervention("mlp.0", 0, positions=[-8]), "positions must be in"),
        (Intervention("mlp.1", 0), "no dictionary at 'mlp.1'; there are mlp.0, mlp.2"),
        (Intervention("nonsense", 0), "dictionary keys look like"),
    ],
)
def test_bad_interventions_are_refused(change: Intervention, message: str):
    transcoders = {0: models.transcoder(), 2: models.transcoder()}
    spliced = SplicedModel(models.subject("gpt2"), transcoders)
    with pytest.raises(ValueError, match=message):
        spliced.run(BATCH, "exact", interventions=[change])


def test_an_unknown_kind_of_intervention_is_refused():
    change = Intervention("mlp.0", 0)
    object.__setattr__(change, "kind", "zap")
    with pytest.raises(ValueError, match="kind must be ablate, set, scale or add, got 'zap'"):
        intervene(torch.ones(1, 1, 1), [change])


@pytest.mark.parametrize(
    ("dictionaries", "message"),
    [
        ({0: models.transcoder(d_model=16)}, "reads width 16 and writes width 16.*d_model 32"),
        ({3: models.transcoder()}, "has layers 0 to 2, got a dictionary for 3"),
        ({-1: models.transcoder()}, "has layers 0 to 2"),
        (
            {"mlp.0": models.transcoder(), 0: models.transcoder()},
            "two dictionaries at mlp_raw_out0",
        ),
        (
            {"resid_post.0": models.sae("resid_post"), "resid_pre.1": models.sae("resid_pre")},
            "two dictionaries at resid_post0",
        ),
        (
            {"mlp.1": models.transcoder(), "mlp_out.1": models.sae("mlp_out")},
            "layer 1 has a transcoder and an SAE",
        ),
        ({"mlp.0": models.sae("attn_out")}, "of site 'attn_out' was given for 'mlp.0'"),
        (
            {"attn_out.0": models.transcoder()},
            "of site 'mlp' was given for 'attn_out.0'; use mlp.0",
        ),
        ({"mlp": models.transcoder()}, "dictionary keys look like 'mlp.2' or 2, got 'mlp'"),
        ({"mlp.x": models.transcoder()}, "dictionary keys look like"),
    ],
)
def test_what_does_not_fit_is_refused(dictionaries: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SplicedModel(models.subject("gpt2"), dictionaries)


def test_a_bare_dictionary_is_refused():
    plain = models.transcoder()
    bare = Dictionary(plain.W_enc, plain.W_dec, plain.b_enc, plain.b_dec)
    with pytest.raises(ValueError, match="want a Transcoder or an SAE for 0, got Dictionary"):
        SplicedModel(models.subject("gpt2"), {0: bare})


def test_state_belongs_to_frozen_and_to_its_shape():
    spliced = models.spliced("gpt2", "transcoders")
    state = spliced.state(BATCH)
    with pytest.raises(ValueError, match="belong to mode 'frozen', got mode 'exact'"):
        spliced.run(BATCH, "exact", state=state)
    with pytest.raises(ValueError, match="belong to mode 'frozen'"):
        spliced.run(BATCH, "replace", hold_features=True)
    with pytest.raises(ValueError, match=r"held state is of tokens \(2, 7\).*got tokens \(2, 5\)"):
        spliced.run(BATCH[:, :5], "frozen", state=state)


def test_the_stream_between_blocks_answers_to_both_names():
    spliced = SplicedModel(models.subject("gpt2"), {"resid_pre.1": models.sae("resid_pre")})
    assert spliced.write_site("resid_pre.1") == Site("resid_post", 0)
    assert spliced.write_site("resid_post.0") == Site("resid_post", 0)
    assert spliced.write_site(Site("resid_pre", 1)) == Site("resid_post", 0)


def test_an_sae_before_a_layer_is_the_sae_after_the_one_below():
    model = models.subject("gemma2")
    below = replace(models.sae("resid_pre", seed=4), site="resid_post")
    before = SplicedModel(model, {"resid_pre.2": models.sae("resid_pre", seed=4)})
    after = SplicedModel(model, {"resid_post.1": below})
    assert torch.equal(before.run(BATCH, "replace").logits, after.run(BATCH, "replace").logits)


def test_dictionaries_take_the_dtype_of_the_model():
    spliced = models.spliced("gpt2", "skip", torch.float64)
    run = spliced.run(TOKENS[None], "replace")
    assert run.logits.dtype == torch.float64
    assert all(p.dictionary.W_enc.dtype == torch.float64 for p in spliced.placements.values())
    assert run.activations[Site("mlp_raw_out", 0)].shape == (1, len(TOKENS), N_FEATURES)
    assert spliced.model.d_model == D_MODEL
