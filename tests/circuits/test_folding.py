"""Folding: a folded dictionary does on this model's values what the file's did on its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import SAE, CrossLayerTranscoder, SplicedModel, Transcoder
from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import Dictionary
from circuits.folding import MAX_FOLD_ERROR, fold_affine, fold_convention, fold_error, reads_stream
from circuits.sites import Site
from circuits.subject import Norm
from tests.models import D_MODEL, TOKENS, perfect_sae, sae, subject, transcoder

BARE = Convention(norm="bare")
CENTRED = Convention(centred=True)


def norm(*, centred: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0) -> Norm:
    generator = torch.Generator().manual_seed(seed)
    gain = torch.randn(D_MODEL, generator=generator, dtype=torch.float64).exp()
    bias = torch.randn(D_MODEL, generator=generator, dtype=torch.float64)
    return Norm(gain.to(dtype), bias.to(dtype), centred)


def inputs(n: int = 30, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed)).double()


def double(dictionary: Dictionary, convention: Convention) -> Any:
    return replace(dictionary.to(dtype=torch.float64), convention=convention)


def cross_layer() -> CrossLayerTranscoder:
    base = transcoder("relu", seed=3)
    W_dec = torch.stack([base.W_dec, -base.W_dec], 1)
    return CrossLayerTranscoder(base.W_enc, W_dec, base.b_enc, base.b_dec)


KINDS = {
    "relu": lambda: transcoder("relu"),
    "jumprelu": lambda: transcoder("jumprelu", seed=1),
    "topk": lambda: transcoder("topk", seed=2),
    "skip": lambda: transcoder("topk", skip=True, seed=3),
    "cross-layer": cross_layer,
}


def test_affine_by_hand():
    """(2 x + 6) (5 / 2) - 15 = 5 x."""
    W, constant = fold_affine(torch.tensor([[5.0]]), torch.tensor([2.0]), torch.tensor([6.0]))
    assert W.item() == 2.5
    assert constant.item() == -15.0


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_folded_norm_reads_gain_and_bias(kind: str, seed: int):
    bare, n, x = double(KINDS[kind](), BARE), norm(seed=seed), inputs(seed=seed)
    folded = fold_convention(bare, n)
    assert folded.convention == NATIVE
    assert type(folded) is type(bare)
    full = x * n.gain + n.bias
    torch.testing.assert_close(folded.encode(full), bare.encode(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded(full), bare(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded.W_dec, bare.W_dec, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "gemma2"])
def test_folded_norm_in_a_model(architecture: str):
    """Against the norm's formula written out on the stream, eps included.

    transformers computes RMSNorm in float32, whatever the model's dtype.
    """
    model = subject(architecture, torch.float64)
    ln2 = model.norm("ln2", 1)
    assert ln2 is not None
    values = model.read(TOKENS[None], [Site("resid_pre", 1), Site("attn_out", 1)])
    stream = values[Site("resid_pre", 1)] + values[Site("attn_out", 1)]
    x = stream - stream.mean(-1, keepdim=True) if ln2.centred else stream
    eps = 1e-5 if architecture == "gpt2" else 1e-6
    bare = double(transcoder("relu", skip=True), BARE)
    want = bare(x / (x.square().mean(-1, keepdim=True) + eps).sqrt())
    full = model.read(TOKENS[None], [Site("mlp_in", 1)])[Site("mlp_in", 1)]
    tolerance = 1e-9 if architecture == "gpt2" else 3e-6
    got = fold_convention(bare, ln2)(full)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_centred_sae_ignores_the_mean_of_its_input():
    centred, x = double(sae("resid_post"), CENTRED), inputs() + 3
    folded = fold_convention(centred, norm())
    want = centred(x - x.mean(-1, keepdim=True))
    torch.testing.assert_close(folded(x), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded(x + 7), want, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(centred(x), want)
    assert folded.convention == CENTRED  # still what its target is


def test_centred_transcoder_of_the_stream():
    convention = Convention(centred=True, norm="none")
    plain, x = double(transcoder(skip=True), convention), inputs() + 3
    folded = fold_convention(plain, norm())
    want = plain(x - x.mean(-1, keepdim=True))
    torch.testing.assert_close(folded(x), want, rtol=1e-9, atol=1e-9)
    assert folded.convention == convention


def test_centring_leaves_what_reads_a_norm_alone():
    """A LayerNorm's output has had its mean taken away before gain and bias."""
    plain = double(transcoder(), CENTRED)
    assert fold_convention(plain, norm()) is plain
    both = double(transcoder(), Convention(centred=True, norm="bare"))
    x = inputs()
    n = norm()
    folded = fold_convention(both, n)
    torch.testing.assert_close(folded(x * n.gain + n.bias), both(x), rtol=1e-9, atol=1e-9)
    assert folded.convention == CENTRED


def test_a_centred_sae_in_place_changes_no_logits():
    """What it leaves out is the mean over d_model, which every LayerNorm takes away."""
    model = subject("gpt2", torch.float64)
    centred = replace(perfect_sae("resid_post"), convention=CENTRED)
    dictionaries = {"resid_post.1": fold_convention(centred, model.norm("ln2", 1))}
    replaced = SplicedModel(model, dictionaries).run(TOKENS[None], "replace").logits
    want, _ = model.run(TOKENS[None])
    torch.testing.assert_close(replaced, want, rtol=1e-7, atol=1e-7)


def test_native_is_returned_as_it_is():
    for native in (transcoder(skip=True), sae("attn_out"), cross_layer()):
        assert fold_convention(native, norm()) is native
        assert fold_convention(native, None) is native


def test_folding_twice_is_folding_once():
    n, x = norm(), inputs()
    for convention in (BARE, CENTRED, Convention(norm="none", centred=True)):
        once = fold_convention(double(transcoder(skip=True), convention), n)
        twice = fold_convention(once, n)
        assert twice.convention == once.convention
        torch.testing.assert_close(twice(x), once(x), rtol=1e-12, atol=1e-12)


def test_what_weights_cannot_express_stays():
    stays = {"output": "after post-norm", "bos": "in front", "first_position": "left out"}
    declared = Convention(norm="bare", subtracted="b_dec", **stays)  # type: ignore[arg-type]
    folded = fold_convention(double(transcoder(), declared), norm())
    assert folded.convention == Convention(**stays)  # type: ignore[arg-type]
    none = double(transcoder(), Convention(norm="none"))
    assert fold_convention(none, norm()) is none


def test_subtracted_is_folded_already():
    file = double(sae("resid_post"), Convention(subtracted="own vector"))
    folded = fold_convention(file, norm())
    assert folded.convention == NATIVE
    assert folded.b_enc is file.b_enc


def test_an_sae_has_no_norm_to_undo():
    found = replace(sae("resid_post"), convention=BARE)
    assert fold_convention(found, norm()) is found
    assert reads_stream(found)
    assert not reads_stream(transcoder())
    assert reads_stream(replace(transcoder(), convention=Convention(norm="none")))


def test_dtype_stays_and_nothing_is_mutated():
    bare = replace(transcoder(skip=True), convention=BARE)
    before = {name: getattr(bare, name).clone() for name in ("W_enc", "b_enc", "b_dec", "W_skip")}
    folded = fold_convention(bare, norm(dtype=torch.float32))
    for name, old in before.items():
        assert torch.equal(getattr(bare, name), old)
        assert getattr(folded, name).dtype == torch.float32
        assert not torch.equal(getattr(folded, name), old)
    assert folded.threshold is bare.threshold


def test_folding_runs_in_float64():
    """In float32 the constant, a sum of large terms, would lose what float64 keeps."""
    bare = replace(transcoder("relu"), convention=BARE)
    n = norm(dtype=torch.float32)
    n.gain[:16] = 1e-4
    exact = fold_convention(bare.to(dtype=torch.float64), n)
    folded = fold_convention(bare, n)
    assert torch.equal(folded.W_enc, exact.W_enc.float())
    assert torch.equal(folded.b_enc, exact.b_enc.float())


def test_error_by_hand():
    n = Norm(torch.tensor([1.0, -0.5, 0.0]), torch.tensor([0.0, 1.5, 1.0]), True)
    unit = 2.0**-24
    want = torch.tensor([unit, 4 * unit, torch.inf], dtype=torch.float64)
    torch.testing.assert_close(fold_error(n), want)


def test_a_small_gain_passes_and_costs_what_is_said():
    """GPT-2's layer 3 has a gain of 2.6e-4."""
    n = norm(dtype=torch.float32)
    n.gain[5], n.bias[5] = 2.6e-4, 0.4
    predicted = fold_error(n)[5].item()
    assert 9e-5 < predicted < 9.3e-5
    x = inputs(500).float()
    seen = ((x * n.gain + n.bias)[:, 5].double() - n.bias[5].double()) / n.gain[5].double()
    worst = (seen - x[:, 5].double()).abs().max().item()
    assert 0.3 * predicted < worst < 3 * predicted
    bare = replace(transcoder("relu"), convention=BARE)
    got = fold_convention(bare, n).encode(x * n.gain + n.bias)
    want = bare.to(dtype=torch.float64).encode(x.double())
    assert (got - want).abs().max() < 2 * predicted * want.max()


@pytest.mark.parametrize(
    ("gain", "bias", "dtype"),
    [(0.0, 0.5, torch.float32), (1e-7, 0.5, torch.float32), (2.6e-4, 0.4, torch.bfloat16)],
)
def test_a_lost_gain_is_refused(gain: float, bias: float, dtype: torch.dtype):
    n = norm(dtype=dtype)
    n.gain[7], n.bias[7] = gain, bias
    bare = replace(transcoder(), convention=BARE)
    with pytest.raises(ValueError, match=rf"entry 7 has gain {n.gain[7]:.3g} .* finer dtype"):
        fold_convention(bare, n)


def test_the_limit_is_on_the_error():
    """Just inside and just outside."""
    bare = replace(transcoder(), convention=BARE)
    n = Norm(torch.ones(D_MODEL), torch.zeros(D_MODEL), True)
    ratio = MAX_FOLD_ERROR * 2**24
    n.gain[0], n.bias[0] = 1.0, 0.99 * ratio
    fold_convention(bare, n)
    n.bias[0] = 1.01 * ratio
    with pytest.raises(ValueError, match="cannot undo"):
        fold_convention(bare, n)


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_centring_needs_layer_norm(kind: str):
    plain = sae("resid_post") if kind == "sae" else transcoder()
    centred = replace(plain, convention=CENTRED)
    with pytest.raises(ValueError, match=r"norms take the mean away .* has RMSNorm"):
        fold_convention(centred, norm(centred=False))
    with pytest.raises(ValueError, match="has no norm before its MLP"):
        fold_convention(centred, None)


def test_bare_needs_a_norm():
    bare = Transcoder(torch.eye(2), torch.eye(2), torch.zeros(2), torch.zeros(2), convention=BARE)
    with pytest.raises(ValueError, match="no norm before its MLP"):
        fold_convention(bare, None)


def test_kept_classes():
    centred = replace(sae("mlp_out"), convention=CENTRED)
    folded = fold_convention(centred, norm())
    assert isinstance(folded, SAE)
    assert folded.site == "mlp_out"
