"""Splicing and evaluation of transcoders that read before the norm or write behind a post-norm."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from circuits import Dictionary, Intervention, Site, SplicedModel, Transcoder
from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import check_cross_layer
from circuits.fidelity import cross_entropy, evaluate
from circuits.patching import Keep, mean_values, patch_values, run_patched, zero_values
from tests import models
from tests.cross_layer import whole
from tests.models import D_MODEL, N_LAYERS, TOKENS, sae, transcoder
from tests.transcoder_places import (
    AROUND,
    BEHIND,
    MIXTURES,
    STREAM,
    crossing,
    norms_in_float64,
    of,
    spliced,
)

BOS = 0
BATCH = torch.stack([TOKENS, torch.tensor([BOS, 9, 4, BOS, 31, 17, 8])])
EVERY = (NATIVE, STREAM, BEHIND, AROUND)


def uncapped(model: SplicedModel, logits: Tensor) -> Tensor:
    cap = model.model.logit_softcap
    return cap * torch.atanh(logits / cap) if cap else logits


# --- where they sit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convention", "read", "write"),
    [
        (NATIVE, "mlp_in", "mlp_raw_out"),
        (STREAM, "resid_mid", "mlp_raw_out"),
        (BEHIND, "mlp_in", "mlp_out"),
        (AROUND, "resid_mid", "mlp_out"),
        (NATIVE.model_copy(update={"norm": "bare"}), "mlp_in", "mlp_raw_out"),
    ],
)
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_places_by_convention(architecture: str, convention: Convention, read, write):
    """Without a post-norm what an MLP writes has one name."""
    dictionary = of(convention, transcoder())
    model = SplicedModel(models.subject(architecture), {1: dictionary})
    (placement,) = model.placements.values()
    at = write if architecture == "gemma2" else "mlp_raw_out"
    assert (placement.read, placement.write) == (Site(read, 1), Site(at, 1))
    assert (placement.site, placement.name) == ("mlp", "mlp.1")
    assert model.write_site("mlp.1") == model.write_site(placement.write) == placement.write
    assert model.mlp_site(1) == placement.write
    assert model.mlp_site(0) == Site("mlp_raw_out", 0)
    assert model.held_mlps() == [Site("mlp_raw_out", 0), Site("mlp_raw_out", 2)]
    folded = convention.norm == "bare"
    kept = NATIVE if folded else convention
    assert placement.dictionary.convention == kept, "kept when moved to the model's dtype"
    again = SplicedModel(model.model, {placement.write: placement.dictionary})
    assert again.placements.keys() == model.placements.keys()


def test_an_sae_on_an_mlp_leaves_the_mlp_in_place():
    model = SplicedModel(models.subject("gemma2"), {"mlp_out.1": sae("mlp_out")})
    assert model.mlp_site(1) == Site("mlp_raw_out", 1)
    assert Site("mlp_raw_out", 1) in model.held_mlps()
    assert model.placements[Site("mlp_out", 1)].name == "mlp_out.1"
    assert model.write_site("mlp_out.1") == Site("mlp_out", 1)


def test_names_are_not_places():
    model = SplicedModel(models.subject("gemma2"), {"mlp.1": of(BEHIND, transcoder())})
    for wrong in ("mlp_out.1", Site("mlp_raw_out", 1), "mlp.0"):
        with pytest.raises(ValueError, match=r"no dictionary at .*; there are mlp.1"):
            model.write_site(wrong)


def bad(*pairs: tuple[Any, Dictionary]) -> dict[Any, Dictionary]:
    return dict(pairs)


@pytest.mark.parametrize(
    ("dictionaries", "message"),
    [
        (
            bad(("mlp_out.1", sae("mlp_out")), ("mlp.1", of(BEHIND, transcoder()))),
            "layer 1 has a transcoder and an SAE on its MLP's output; keep one",
        ),
        (
            bad(("mlp.1", of(AROUND, transcoder())), ("mlp_out.1", sae("mlp_out"))),
            "layer 1 has a transcoder and an SAE on its MLP's output; keep one",
        ),
        (
            bad(("mlp.1", of(STREAM, transcoder())), ("mlp_out.1", sae("mlp_out"))),
            "layer 1 has a transcoder and an SAE on its MLP's output; keep one",
        ),
        (
            bad(("mlp.1", of(AROUND, transcoder())), (1, transcoder())),
            "layer 1 has two transcoders on its MLP's output; keep one",
        ),
        (
            bad(("mlp.1", of(AROUND, transcoder())), (1, of(BEHIND, transcoder()))),
            "two dictionaries at mlp_out1; give one a place",
        ),
        (
            bad((Site("mlp_out", 1), transcoder())),
            r"a dictionary of site 'mlp' was given for .*mlp_out.*; use mlp.1",
        ),
        (
            bad(("mlp_out.1", of(BEHIND, transcoder()))),
            r"a dictionary of site 'mlp' was given for 'mlp_out.1'; use mlp.1",
        ),
    ],
)
def test_bad_places_are_refused(dictionaries: dict[Any, Dictionary], message: str):
    with pytest.raises(ValueError, match=message):
        SplicedModel(models.subject("gemma2"), dictionaries)


def test_a_parallel_block_has_no_stream_between_its_sublayers():
    model = models.subject("neox_parallel")
    with pytest.raises(ValueError, match=r"'mlp.1' reads the residual stream between.* parallel"):
        SplicedModel(model, {"mlp.1": of(STREAM, transcoder())})
    assert SplicedModel(model, {"mlp.1": of(BEHIND, transcoder())})


def test_a_cross_layer_set_is_of_one_convention():
    parts: dict[int, Any] = {i: of(AROUND, part) for i, part in whole().items()}
    check_cross_layer(parts)
    parts[1] = of(STREAM, parts[1])
    with pytest.raises(ValueError, match=r"mlp.1 and mlp.2 are of different conventions"):
        check_cross_layer(parts)
    with pytest.raises(ValueError, match="declare one convention for the whole set"):
        SplicedModel(models.subject("gemma2"), parts)


# --- replace: against hooks on the transformers model -------------------------------------------


class _HandMade:
    """Transcoders as hooks on a transformers model, without the bridge."""

    LAYERS: ClassVar[dict[str, tuple[Callable[[Any], Any], str, str, str]]] = {
        "gpt2": (lambda m: m.transformer.h, "ln_2", "mlp", "mlp"),
        "llama_gqa": (lambda m: m.model.layers, "post_attention_layernorm", "mlp", "mlp"),
        "gemma2": (
            lambda m: m.model.layers,
            "pre_feedforward_layernorm",
            "mlp",
            "post_feedforward_layernorm",
        ),
    }

    def __init__(self, architecture: str, parts: dict[str, Dictionary], kept: Tensor) -> None:
        self.hf = models.hf_model(architecture, torch.float64)
        self.of_model, self.norm, self.raw, self.out = self.LAYERS[architecture]
        self.parts = {int(key[4:]): part.to(dtype=torch.float64) for key, part in parts.items()}
        self.kept, self.activations, self.inputs = kept, {}, {}

    def logits(self, tokens: Tensor) -> Tensor:
        with ExitStack() as stack, torch.no_grad():
            for layer, part in self.parts.items():
                block, c = self.of_model(self.hf)[layer], part.convention
                norm = getattr(block, self.norm)
                if c.norm == "none":
                    handle = norm.register_forward_pre_hook(self._read(layer, 0))
                else:
                    handle = norm.register_forward_hook(self._read(layer, 2))
                stack.callback(handle.remove)
                name = self.out if c.output == "after post-norm" else self.raw
                stack.callback(
                    getattr(block, name).register_forward_hook(self._write(layer)).remove
                )
            return self.hf(tokens).logits

    def _read(self, layer: int, place: int) -> Callable[..., None]:
        def hook(_: Any, *values: Any) -> None:
            x = values[0][0] if place == 0 else values[1]
            self.inputs[layer] = x
            self.activations[layer] = self.parts[layer].encode(x)

        return hook

    def _write(self, layer: int) -> Callable[..., Tensor]:
        def hook(_module: Any, _inputs: Any, y: Tensor) -> Tensor:
            part = self.parts[layer]
            y_hat = part.b_dec.expand_as(y)
            if part.W_skip is not None:
                y_hat = y_hat + self.inputs[layer] @ part.W_skip
            for lower in range(layer + 1):
                if lower in self.parts and layer - lower < self.parts[lower].n_writes:
                    y_hat = y_hat + self.activations[lower] @ self.parts[lower].decoder(
                        layer - lower
                    )
            return torch.where(self.kept[..., None], y, y_hat)

        return hook


HAND_MADE = ["stream", "behind", "each", "native_between", "one", "crossing", "crossing_skip"]


@pytest.mark.parametrize("first_position", ["read", "left out", "unknown"])
@pytest.mark.parametrize("mixture", HAND_MADE)
@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "gemma2"])
def test_replace_is_hooks_on_the_transformers_model(
    architecture: str, mixture: str, first_position
):
    """True values go on at BOS, and at the first position if the convention leaves it out."""
    parts = {
        key: of(part.convention.model_copy(update={"first_position": first_position}), part)
        for key, part in MIXTURES[mixture].items()
    }
    kept = BATCH == BOS
    kept[:, 0] |= first_position == "left out"
    want = _HandMade(architecture, parts, kept).logits(BATCH)
    model = SplicedModel(models.subject(architecture, torch.float64), parts)
    got = model.run(BATCH, "replace").logits
    tolerance = 1e-11 if architecture == "gpt2" else 1e-5  # RMS norms of transformers are float32
    assert (got - want).abs().max() < tolerance * want.abs().max()
    other = _HandMade(architecture, parts, ~kept).logits(BATCH)
    assert (other - want).abs().max() > 1e-2 * want.abs().max()


def test_mixed_conventions_leave_out_the_first_position_one_by_one():
    out = AROUND.model_copy(update={"first_position": "left out"})
    parts = {"mlp.0": of(AROUND, transcoder()), "mlp.1": of(out, transcoder(seed=1))}
    model = SplicedModel(models.subject("gemma2", torch.float64), parts)
    first, second = model.placements
    want = BATCH == BOS
    assert torch.equal(model.left_out(first, BATCH), want)
    want[:, 0] = True
    assert torch.equal(model.left_out(second, BATCH), want)
    state = model.state(BATCH, "replace")
    for write in (first, second):
        off = state.errors[write].abs().amax(-1) > 1e-12
        assert torch.equal(off, model.left_out(write, BATCH))


# --- exact and frozen ---------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_exact_and_frozen_give_the_models_own_logits(architecture: str, mixture: str):
    model = spliced(architecture, mixture)
    want, _ = model.model.run(BATCH)
    assert torch.equal(model.run(BATCH, "exact").logits, want)
    state = model.state(BATCH)
    frozen = model.run(BATCH, "frozen", state=state, hold_features=True).logits
    assert (frozen - state.logits).abs().max() < 1e-10 * want.abs().max()
    for write, placement in model.placements.items():
        a = placement.dictionary.encode(state.read(placement.read))
        assert torch.equal(a, state.activations[write])
        y_hat = model.reconstruct(write, state.activations, state.read(placement.read))
        assert torch.equal(state.values[write] - y_hat, state.errors[write])


@pytest.mark.parametrize("mixture", ["behind", "each", "crossing", "among_saes"])
def test_frozen_is_affine(mixture: str):
    model = spliced("gemma2", mixture)
    state = model.state(BATCH)

    def logits(step: float) -> Tensor:
        changes = [
            Intervention(placement.name, feature, "add", step, positions=[1, 4])
            for placement in model.placements.values()
            for feature in range(4)
        ]
        run = model.run(BATCH, "frozen", state=state, hold_features=True, interventions=changes)
        return uncapped(model, run.logits)

    base, one, two = logits(0.0), logits(0.02), logits(0.04)
    assert (one - base).abs().max() > 1e-3
    assert (two - 2 * one + base).abs().max() < 1e-9 * two.abs().max()


@pytest.mark.parametrize(("convention", "at"), [(STREAM, "mlp_raw_out"), (AROUND, "mlp_out")])
def test_interventions_write_where_the_transcoder_does(convention: Convention, at):
    model = SplicedModel(
        models.subject("gemma2", torch.float64), {1: of(convention, transcoder("relu"))}
    )
    (placement,) = model.placements.values()
    change = Intervention("mlp.1", 3, "add", 2.5, positions=[2])
    direction = torch.zeros(len(TOKENS), D_MODEL, dtype=torch.float64)
    direction[2] = 2.5 * placement.dictionary.W_dec[3]
    want, _ = model.model.run(BATCH, edits={Site(at, 1): lambda y: y + direction})
    got = model.run(BATCH, "exact", interventions=[change]).logits
    assert (got - want).abs().max() < 1e-11 * want.abs().max()
    assert (got - model.model.run(BATCH)[0]).abs().max() > 1e-3


# --- patched runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", ["stream", "each", "one", "among_saes", "crossing"])
@norms_in_float64()
def test_patched_runs_keep_all_or_nothing(mixture: str):
    model = spliced("gemma2", mixture)
    clean, corrupted = model.state(BATCH), model.state(BATCH.flip(1))
    other = patch_values(model, corrupted)
    assert list(other.sublayers) == model.held_mlps()
    all_kept = run_patched(model, clean, other, Keep())[0]
    assert torch.allclose(all_kept, clean.logits[:, -1], rtol=1e-8, atol=1e-8)
    one = torch.zeros(1, len(TOKENS), dtype=torch.bool)
    nothing = Keep(
        {w: one[..., None].expand(-1, -1, a.shape[-1]) for w, a in clean.activations.items()},
        dict.fromkeys(clean.errors, one),
        dict.fromkeys(other.sublayers, one),
        one,
    )
    none_kept = run_patched(model, clean, other, nothing)[0]
    assert torch.allclose(none_kept, corrupted.logits[:, -1], rtol=1e-8, atol=1e-8)
    for values in (zero_values(model, clean), mean_values(model, clean, clean)):
        assert list(values.sublayers) == model.held_mlps()


# --- evaluation ---------------------------------------------------------------------------------


def loss(model: SplicedModel, edits: dict[Site, Any]) -> float:
    logits, _ = model.model.run(BATCH, edits=edits)
    keep = torch.ones_like(BATCH, dtype=torch.bool)
    keep[:, 0] = False
    total, n = cross_entropy(logits, BATCH, keep)
    return total / n


@pytest.mark.parametrize("mixture", ["each", "crossing", "crossing_stream"])
def test_evaluation_measures_where_each_writes(mixture: str):
    """FVU, losses and ablations at the site behind the post-norm, by hand."""
    model = spliced("gemma2", mixture)
    report = evaluate(model, BATCH)
    assert [each.name for each in report.dictionaries] == [
        placement.name for placement in model.placements.values()
    ]
    assert list(report.together) == ["mlp"]
    _, values = model.model.run(
        BATCH, capture=[s for p in model.placements.values() for s in (p.read, p.write)]
    )
    activations = {
        w: p.dictionary.encode(values[p.read][:, 1:]) for w, p in model.placements.items()
    }
    for each, (write, placement) in zip(report.dictionaries, model.placements.items(), strict=True):
        y = values[write][:, 1:]
        y_hat = model.reconstruct(write, activations, values[placement.read][:, 1:])
        fvu = (y - y_hat).square().sum() / (y - y.mean((0, 1))).square().sum()
        assert each.fvu == pytest.approx(float(fvu))
        assert each.l0 == pytest.approx(float((activations[write] != 0).sum(-1).double().mean()))

        def put(new: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda value: torch.cat([value[:, :1], new.expand_as(value[:, 1:])], 1)

        ce = each.cross_entropy
        assert ce.spliced == pytest.approx(loss(model, {write: put(y_hat)}))
        assert ce.zero_ablated == pytest.approx(loss(model, {write: put(torch.zeros_like(y))}))
        assert ce.mean_ablated == pytest.approx(loss(model, {write: put(y.mean((0, 1)))}))


def test_behind_the_post_norm_is_another_target_than_in_front():
    """One that writes the mean of what it is to predict has FVU 1 there, and only there."""
    base = models.subject("gemma2", torch.float64)
    for convention, kind in ((BEHIND, "mlp_out"), (NATIVE, "mlp_raw_out")):
        site = Site(kind, 1)  # type: ignore[arg-type]
        mean = base.run(BATCH, capture=[site])[1][site][:, 1:].mean((0, 1))
        silent = Transcoder(
            torch.zeros(D_MODEL, 2),
            torch.zeros(2, D_MODEL),
            torch.zeros(2),
            mean,
            convention=convention,
        )
        for other in (BEHIND, NATIVE):
            here = SplicedModel(base, {1: replace(silent, convention=other)})
            fvu = evaluate(here, BATCH).dictionaries[0].fvu
            assert (abs(fvu - 1) < 1e-9) == (other == convention)


def test_without_a_post_norm_behind_it_is_in_front_of_it():
    """Bit for bit, as the two places share one hook."""
    native = SplicedModel(models.subject("gpt2"), whole())
    behind = SplicedModel(models.subject("gpt2"), crossing(BEHIND))
    for mode in ("replace", "exact"):
        one, other = (m.run(BATCH, mode).logits for m in (native, behind))
        assert torch.equal(one, other)
    assert len(behind.placements) == N_LAYERS
