"""Cross-layer transcoders as dictionaries: what they are, splicing, patched runs, files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits import Intervention, Site, SplicedModel
from circuits.checkpoints import load_dictionary, load_folder, save_dictionary
from circuits.checksums import RECORD, sha256_of_record, sha256_of_tensors
from circuits.dictionaries import CrossLayerTranscoder, check_cross_layer
from circuits.patching import Keep, patch_values, run_patched
from circuits.spliced import Mode
from tests import models
from tests.cross_layer import (
    ARCHITECTURES,
    MIXTURES,
    MLPS,
    N_FEATURES,
    cross_layer,
    own_layer_only,
    spliced,
    tensors,
    whole,
    without_later_writes,
)
from tests.models import TOKENS

BATCH = torch.stack([TOKENS, TOKENS.flip(0)])
BOS_FIRST = torch.cat([torch.zeros(2, 1, dtype=torch.long), BATCH], 1)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# --- the dictionary -----------------------------------------------------------------------------


def by_hand() -> CrossLayerTranscoder:
    return CrossLayerTranscoder(
        W_enc=torch.tensor([[1.0, -1.0], [2.0, 0.0]]),
        W_dec=torch.tensor([[[3.0, 1.0], [7.0, 0.0]], [[5.0, 1.0], [-2.0, 4.0]]]),
        b_enc=torch.tensor([0.5, 0.0]),
        b_dec=torch.tensor([10.0, 20.0]),
    )


def test_encode_decode_and_slots_by_hand():
    part, x = by_hand(), torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    assert part.encode(x).tolist() == [[3.5, 0.0], [0.0, 1.0]]
    assert part(x).tolist() == [[20.5, 23.5], [15.0, 21.0]], "its own layer, with its bias"
    assert (part.d_in, part.d_out, part.n_features, part.n_writes) == (2, 2, 2, 2)
    assert part.decoder().tolist() == [[3.0, 1.0], [5.0, 1.0]]
    assert part.decoder(1).tolist() == [[7.0, 0.0], [-2.0, 4.0]]
    assert part.summed_decoder(range(2)).tolist() == [[10.0, 1.0], [3.0, 5.0]]
    assert part.summed_decoder(range(1, 2)).tolist() == part.decoder(1).tolist()


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_that_is_not_there_is_refused(slot: int):
    with pytest.raises(ValueError, match=rf"slot must be in \[0, 2\), got {slot}"):
        by_hand().decoder(slot)


def test_a_plain_dictionary_writes_to_one_layer():
    plain = models.transcoder()
    assert plain.n_writes == 1
    assert plain.decoder() is plain.W_dec
    assert plain.summed_decoder(range(1)) is plain.W_dec
    with pytest.raises(ValueError, match=r"slot must be in \[0, 1\), got 1"):
        plain.decoder(1)


def test_it_moves_to_another_dtype():
    moved = cross_layer(3, skip=True).to(dtype=torch.float64)
    assert isinstance(moved, CrossLayerTranscoder)
    assert {t.dtype for t in tensors(moved).values() if isinstance(t, Tensor)} == {torch.float64}
    assert moved.n_writes == 3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": torch.zeros(12, 32)}, r"W_dec \[feature, write, d_out\], got .* and \(12, 32\)"),
        ({"W_dec": torch.zeros(12, 0, 32)}, r"at least one slot .* got shape \(12, 0, 32\)"),
        ({"W_dec": torch.zeros(11, 3, 32)}, r"W_dec must have shape \(12, 3, 32\) to go with"),
        ({"b_dec": torch.zeros(3, 32)}, r"b_dec must have shape \(32,\)"),
        ({"b_enc": torch.zeros(3)}, r"b_enc must have shape \(12,\)"),
        ({"threshold": None}, "'jumprelu' needs a threshold"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CrossLayerTranscoder(**(tensors(cross_layer(3)) | change))


# --- sets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({0: 2, 1: 2, 2: 1}, r"mlp.0 has 2 slots .* to layers 0 to 1, .* mlp.2; want 3 slots"),
        ({0: 3, 1: 1, 2: 1}, r"mlp.1 has 1 slots .* want 2 slots"),
        ({0: 4, 1: 3, 2: 2}, r"mlp.0 has 4 slots .* to layers 0 to 3, .* want 3 slots"),
        ({2: 2}, r"mlp.2 has 2 slots .* want 1 slots, .* or all the layers that it was trained"),
        ({0: 3, 2: 1}, r"write to \[1\], .* give every layer from 0 to 2, or only the top"),
        ({0: 2, 1: 1, 2: 1}, r"mlp.0 has 2 slots"),
    ],
)
def test_sets_that_are_not_a_whole_are_refused(slots: dict[int, int], message: str):
    parts = {layer: cross_layer(n) for layer, n in slots.items()}
    with pytest.raises(ValueError, match=message):
        check_cross_layer(parts)
    with pytest.raises(ValueError, match=message):
        SplicedModel(models.subject("gpt2"), parts)


@pytest.mark.parametrize("layers", [(), (0,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_a_run_of_layers_is_a_whole(layers: tuple[int, ...]):
    parts = whole(layers) if layers else {}
    check_cross_layer(parts)
    assert len(SplicedModel(models.subject("gpt2"), parts).placements) == len(layers)


def test_a_plain_transcoder_cannot_stand_in_for_a_layer():
    with pytest.raises(ValueError, match=r"write to \[1\], which have none of their own"):
        SplicedModel(
            models.subject("gpt2"), {0: cross_layer(3), 1: models.transcoder(), 2: cross_layer(1)}
        )


def test_who_writes_where():
    model = spliced("gpt2", "bottom")
    assert model.writers(MLPS[0]) == [(MLPS[0], 0)]
    assert model.writers(MLPS[1]) == [(MLPS[0], 1), (MLPS[1], 0)]
    assert model.writers(MLPS[2]) == [(MLPS[2], 0)], "a plain transcoder alone"
    upside_down = SplicedModel(models.subject("gpt2"), dict(reversed(whole().items())))
    assert upside_down.writers(MLPS[2]) == [(MLPS[0], 2), (MLPS[1], 1), (MLPS[2], 0)]


# --- splicing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_and_frozen_give_the_original_logits(architecture: str, mixture: str):
    model = spliced(architecture, mixture)
    original, _ = model.model.run(BATCH)
    assert torch.equal(model.run(BATCH, "exact").logits, original)
    state = model.state(BATCH)
    assert gap(model.run(BATCH, "frozen").logits, state.logits) < 1e-10
    held = model.run(BATCH, "frozen", state=state, hold_features=True)
    assert gap(held.logits, state.logits) < 1e-10
    assert gap(model.run(BATCH, "replace").logits, original) > 1e-2


def reference(
    architecture: str,
    parts: dict[int, CrossLayerTranscoder],
    mode: Mode,
    change: Callable[[int, Tensor], Tensor] = lambda _, a: a,
    errors: Mapping[Site, Tensor] | None = None,
) -> Tensor:
    """The model of transformers with forward hooks: features collected, and all writes added."""
    plain = models.hf_model(architecture, torch.float64)
    blocks = {"gpt2": "transformer.h", "llama_gqa": "model.layers"}
    blocks = plain.get_submodule(blocks.get(architecture, "gpt_neox.layers"))
    double = {layer: part.to(dtype=torch.float64) for layer, part in parts.items()}
    a, new = {}, {}

    def hook(layer: int, x: Tensor, y: Tensor) -> Tensor:
        part = double[layer]
        a[layer] = part.activate(x @ part.W_enc + part.b_enc)
        new[layer] = change(layer, a[layer])
        if mode == "exact":
            writes = [(new[m] - a[m]) @ double[m].W_dec[:, layer - m] for m in sorted(new)]
            return y + sum(writes)
        writes = [new[m] @ double[m].W_dec[:, layer - m] for m in sorted(new)]
        return sum(writes, part.b_dec + (0.0 if errors is None else errors[MLPS[layer]]))

    for layer in parts:
        blocks[layer].mlp.register_forward_hook(lambda _, args, y, i=layer: hook(i, args[0], y))
    with torch.no_grad():
        return plain(BATCH).logits


@pytest.mark.parametrize("mode", ["replace", "exact"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_runs_are_those_of_plain_forward_hooks(architecture: str, mode: Mode):
    """With and without a changed feature, which changes all that it writes."""
    parts = whole()
    model = SplicedModel(models.subject(architecture, torch.float64), parts)
    feature = int(model.run(BATCH, mode).activations[MLPS[0]][0, 3].argmax())

    def add(layer: int, a: Tensor) -> Tensor:
        a = a.clone()
        if layer == 0:
            a[:, 3, feature] += 2.0
        return a

    change = Intervention("mlp.0", feature, "add", 2.0, positions=[3])
    free, changed = (model.run(BATCH, mode, interventions=i).logits for i in ([], [change]))
    # GPT-NeoX's attention, and RMS norms, round to float32 in either run, but not alike.
    tolerance = 1e-12 if architecture == "gpt2" else 1e-5
    assert gap(free, reference(architecture, parts, mode)) < tolerance
    assert gap(changed, reference(architecture, parts, mode, add)) < tolerance
    assert gap(changed, free) > 1e-2


def test_errors_are_what_the_sum_of_all_writes_misses():
    model = spliced("llama_gqa")
    state = model.state(BATCH)
    for layer, write in enumerate(MLPS):
        want = state.values[write] - model.placements[write].dictionary.b_dec
        for lower in range(layer + 1):
            W_dec = model.placements[MLPS[lower]].dictionary.W_dec
            want = want - state.activations[MLPS[lower]] @ W_dec[:, layer - lower]
        assert gap(state.errors[write], want) < 1e-12
        assert state.errors[write].abs().max() > 0.1


def test_on_reconstructions_there_are_no_errors_but_at_bos():
    state = spliced("gpt2").state(BOS_FIRST, "replace")
    for write in MLPS:
        assert not state.errors[write][:, 1:].any()
        assert state.errors[write][:, 0].abs().max() > 0.1


def test_the_true_value_goes_on_at_bos_with_all_changes():
    model = spliced("gpt2")
    change = Intervention("mlp.0", 3, "add", 1.0, positions=[0])
    replaced = model.run(BOS_FIRST, "replace", interventions=[change]).logits[:, 0]
    exact = model.run(BOS_FIRST, "exact", interventions=[change]).logits[:, 0]
    assert gap(replaced, exact) < 1e-12
    assert gap(replaced, model.run(BOS_FIRST, "replace").logits[:, 0]) > 1e-3


@pytest.mark.parametrize("mode", ["replace", "exact", "frozen"])
def test_without_later_writes_it_is_a_plain_transcoder(mode: Mode):
    parts = whole()
    model = models.subject("gpt2", torch.float64)
    zeros = SplicedModel(model, {i: without_later_writes(part) for i, part in parts.items()})
    plain = SplicedModel(model, {i: own_layer_only(part) for i, part in parts.items()})
    changes = [Intervention("mlp.0", 3, "add", 1.0), Intervention("mlp.1", 2, "ablate")]
    for interventions in ([], changes):
        one, other = (m.run(BATCH, mode, interventions=interventions) for m in (zeros, plain))
        assert torch.equal(one.logits, other.logits)


def test_frozen_is_affine_in_features_of_every_layer():
    model = spliced("neox_parallel", "among_saes")
    state = model.state(BATCH)

    def logits(step: float) -> Tensor:
        changes = [Intervention(w, f, "add", step, [1, 4]) for w in MLPS for f in range(3)]
        return model.run(
            BATCH, "frozen", state=state, hold_features=True, interventions=changes
        ).logits

    base, one, two = logits(0.0), logits(0.02), logits(0.04)
    assert gap(one, base) > 1e-4
    assert (two - 2 * one + base).abs().max() < 1e-9 * two.abs().max()


@pytest.mark.parametrize("architecture", ["gpt2", "neox_parallel"])  # RMS norms round to float32
def test_patched_runs_begin_and_end_where_they_should(architecture: str):
    """Everything kept is the model; nothing kept is the corrupted prompt."""
    model = spliced(architecture)
    clean, corrupted = model.state(BATCH), model.state(BATCH.roll(1, 1))
    other = patch_values(model, corrupted)
    kept = run_patched(model, clean, other, Keep())
    assert gap(kept[0], clean.logits[:, -1]) < 1e-10
    n_pos = BATCH.shape[1]
    flags = {w: torch.zeros(1, n_pos, N_FEATURES, dtype=torch.bool) for w in MLPS}
    at = torch.zeros(1, n_pos, dtype=torch.bool)
    none = run_patched(model, clean, other, Keep(flags, dict.fromkeys(MLPS, at), {}, at))
    assert gap(none[0], corrupted.logits[:, -1]) < 1e-10
    assert gap(none, kept) > 1e-2


def test_a_feature_that_is_patched_writes_its_other_value_everywhere():
    model = spliced("gpt2")
    clean = model.state(BATCH)
    feature = int(clean.activations[MLPS[0]][0, 3].argmax())
    zero = replace(
        patch_values(model, clean), activations={w: a * 0 for w, a in clean.activations.items()}
    )
    keep = torch.ones(1, BATCH.shape[1], N_FEATURES, dtype=torch.bool)
    keep[0, 3, feature] = False
    got = run_patched(model, clean, zero, Keep({MLPS[0]: keep}))[0]

    def ablate(layer: int, a: Tensor) -> Tensor:
        a = a.clone()
        if layer == 0:
            a[:, 3, feature] = 0
        return a

    want = reference("gpt2", whole(), "replace", ablate, clean.errors)[:, -1]
    assert gap(got, want) < 1e-10
    assert gap(got, clean.logits[:, -1]) > 1e-3


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for layer, part in whole(skip=True).items():
        path = tmp_path / f"mlp.{layer}.safetensors"
        save_dictionary(part, path, layer=layer, model="toy")
    return tmp_path


def rewrite(path: Path, tensors: dict[str, Tensor], **changes: Any) -> None:
    with safe_open(str(path), framework="pt") as file:
        record = json.loads(file.metadata()["circuitloom"])
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    held, record = old | tensors, record | changes
    sums = {RECORD: sha256_of_record(record), **sha256_of_tensors(held)}
    header = {"circuitloom": json.dumps(record | {"sha256": sums})}
    save_file(held, str(path), metadata=header)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_round_trip(activation: str, tmp_path: Path):
    part, path = cross_layer(3, activation, skip=True), tmp_path / "mlp.0.safetensors"
    save_dictionary(part, path, layer=0, model="toy")
    layer, loaded = load_dictionary(path)
    assert layer == 0
    assert type(loaded) is CrossLayerTranscoder
    for name, value in tensors(part).items():
        got = getattr(loaded, name)
        assert torch.equal(got, value) if isinstance(value, Tensor) else got == value
    with safe_open(str(path), framework="pt") as file:
        assert json.loads(file.metadata()["circuitloom"])["kind"] == "cross-layer transcoder"


def test_a_folder_is_read_as_a_whole(folder: Path):
    parts = load_folder(folder)
    assert list(parts) == ["mlp.0", "mlp.1", "mlp.2"]
    assert [part.n_writes for part in parts.values()] == [3, 2, 1]
    assert list(load_folder(folder, layers=[1, 2])) == ["mlp.1", "mlp.2"]
    run = SplicedModel(models.subject("gpt2"), parts).run(BATCH, "replace")
    same = SplicedModel(models.subject("gpt2"), whole(skip=True)).run(BATCH, "replace")
    assert torch.equal(run.logits, same.logits)


@pytest.mark.parametrize("n_writes", [1, 3])
def test_a_wrong_number_of_slots_is_named(folder: Path, n_writes: int):
    rewrite(folder / "mlp.1.safetensors", {"W_dec": torch.zeros(12, n_writes, 32)})
    with pytest.raises(ValueError, match=rf"{folder}: .*mlp.1 has {n_writes} slots .*want 2 slots"):
        load_folder(folder)


def test_a_missing_layer_is_named(folder: Path):
    with pytest.raises(ValueError, match=r"write to \[1\], which have none of their own"):
        load_folder(folder, layers=[0, 2])
    with pytest.raises(ValueError, match=r"mlp.0 has 3 slots .* last .* is mlp.1; want 2 slots"):
        load_folder(folder, layers=[0, 1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((12, 32), {}, r"W_dec \[feature, write, d_out\], got .*\(12, 32\)"),
        ((12, 0, 32), {}, r"mlp.0.safetensors: W_dec must have at least one slot"),
        ((12, 3, 32), {"kind": "transcoder"}, r"W_dec \[feature, d_out\], got .*\(12, 3, 32\)"),
        ((12, 3, 31), {}, r"b_dec must have shape \(31,\)"),
        ((12, 3, 32), {"input": "bare"}, "a 'cross-layer transcoder' that reads 'bare'; want"),
        ((12, 3, 32), {"kind": "crosscoder"}, "damaged `circuitloom` record"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, shape: tuple[int, ...], changes: dict, message: str
):
    path = folder / "mlp.0.safetensors"
    rewrite(path, {"W_dec": torch.zeros(shape)}, **changes)
    with pytest.raises(ValueError, match=message):
        load_dictionary(path)
