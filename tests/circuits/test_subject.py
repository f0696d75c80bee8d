"""The adapter: live hooks, formulas that hold, refusal of what cannot be frozen, tokenisation.

Each trap known of transformer-lens' bridge has a test here.
"""

import warnings
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from circuits import Site, SubjectModel, load_model
from circuits import subject as subject_module
from circuits.selfcheck import UnsupportedArchitectureError, check_architecture, dead_sites
from circuits.sites import READ_ONLY
from circuits.subject import Norm
from tests import models
from tests.models import ARCHITECTURES, D_MODEL, D_VOCAB, N_CTX, N_LAYERS, TOKENS

BATCH = torch.stack([TOKENS, TOKENS.flip(0)])


def bare(architecture: str) -> SubjectModel:
    """A fresh model that no check has seen, for tests that change it."""
    return SubjectModel.from_transformers(models.hf_model(architecture), None, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_transformers(architecture: str):
    with torch.no_grad():
        want = models.hf_model(architecture)(BATCH).logits
    logits, _ = models.subject(architecture).run(BATCH)
    assert torch.allclose(logits, want, rtol=0.0, atol=2e-6 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_site_is_dead(architecture: str, dtype: torch.dtype):
    assert dead_sites(models.subject(architecture, dtype), BATCH) == []


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "neox_parallel"])
def test_the_detector_can_fail(monkeypatch: pytest.MonkeyPatch, architecture: str):
    """Hooks that the bridge registers and never calls."""
    model = bare(architecture)
    silent = "hook_hidden_states" if architecture == "llama_gqa" else "qkv.hook_out"
    monkeypatch.setitem(subject_module._HOOKS, "attn_out", "blocks.{}.attn." + silent)
    assert dead_sites(model, BATCH) == [Site("attn_out", layer) for layer in range(N_LAYERS)]
    with pytest.raises(UnsupportedArchitectureError, match=r"attn_out0, attn_out1, .*3 sites"):
        check_architecture(model)


def test_a_hook_that_the_bridge_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(subject_module._HOOKS, "pattern", "blocks.{}.attn.hook_typo")
    with pytest.raises(UnsupportedArchitectureError, match="it lacks"):
        check_architecture(bare("gpt2"))


def test_the_detector_finds_an_edit_that_is_thrown_away(monkeypatch: pytest.MonkeyPatch):
    """A site that fires but whose edit goes nowhere: `run` drops the edits of one site."""
    model, run = bare("llama_gqa"), SubjectModel.run

    def deaf(self: SubjectModel, tokens: Any, *, edits: Any = None, capture: Any = ()) -> Any:
        edits = {s: e for s, e in (edits or {}).items() if s != Site("ln2_scale", 1)}
        return run(self, tokens, edits=edits, capture=capture)

    monkeypatch.setattr(SubjectModel, "run", deaf)
    assert dead_sites(model, BATCH) == [Site("ln2_scale", 1)]


def test_the_formulas_can_fail():
    """A hook that is live but not the tensor our formulas mean is refused as well."""
    model = bare("llama_gqa")
    hooks = dict(subject_module._HOOKS)
    try:
        subject_module._HOOKS["mlp_in"] = "blocks.{}.ln2.hook_in"
        with pytest.raises(UnsupportedArchitectureError, match=r"pre-MLP norm of layer .* differs"):
            check_architecture(model)
    finally:
        subject_module._HOOKS.update(hooks)


def test_an_architecture_whose_attention_ignores_edits_is_refused():
    with pytest.raises(UnsupportedArchitectureError, match=r"freeze.*pattern0.*do not reach"):
        load_model(models.hf_model("opt"))


def test_a_missing_norm_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SubjectModel, "norm", lambda *_: None)
    with pytest.raises(UnsupportedArchitectureError, match="it lacks"):
        check_architecture(models.subject("gpt2"))


def test_the_check_leaves_the_random_state_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    check_architecture(models.subject("gpt2"))
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_other_dtypes_are_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match=r"dtype must be torch.float32, float64 or bfloat16, got"):
        load_model(models.hf_model("gpt2"), dtype=dtype)


def test_a_half_precision_model_is_read_as_float32():
    model = load_model(models.hf_model("llama_gqa", torch.bfloat16))
    assert model.dtype == torch.float32
    assert models.spliced("llama_gqa").model.dtype == torch.float32


# --- traps of the bridge ------------------------------------------------------------------------


def test_no_hook_that_is_written_is_one_that_only_reads():
    """`hook_resid_mid` edits the MLP branch only; `attn_in` and split-qkv kill `ln1` edits."""
    writable = {k: h for k, h in subject_module._HOOKS.items() if k not in READ_ONLY}
    assert not any("resid_mid" in hook for hook in writable.values())
    assert READ_ONLY == ("resid_mid",)
    cfg = bare("gpt2")._bridge.cfg
    assert not cfg.use_attn_in
    assert not cfg.use_split_qkv_input


def test_resid_mid_is_read_but_not_changed():
    model, seen, site = bare("gpt2"), [], Site("resid_mid", 1)

    def read(value: torch.Tensor) -> torch.Tensor:
        seen.append(value)
        return value

    logits, captured = model.run(BATCH, edits={site: read}, capture=[site])
    assert torch.equal(logits, model.run(BATCH)[0])
    assert seen[0] is captured[site]
    with pytest.raises(ValueError, match=r"resid_mid1 can be read but not changed: .* attn_out"):
        model.run(BATCH, edits={site: torch.clone})


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_resid_mid_is_the_stream_between_attention_and_mlp(architecture: str):
    model = models.subject(architecture, torch.float64)
    kinds = [site.kind for site in model.block_sites(1)]
    assert ("resid_mid" in kinds) == (architecture != "neox_parallel")
    if "resid_mid" not in kinds:
        return
    sites = [Site(kind, 1) for kind in ("resid_pre", "attn_out", "resid_mid")]
    before, added, got = model.read(BATCH, sites).values()
    assert torch.allclose(got, before + added, rtol=1e-12, atol=1e-12)


def test_a_stream_between_the_sublayers_that_is_something_else_is_told(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(subject_module._HOOKS, "resid_mid", "blocks.{}.hook_resid_pre")
    with pytest.raises(
        UnsupportedArchitectureError, match="stream between the sublayers of layer 0 differs"
    ):
        check_architecture(bare("gpt2"))


def test_resid_mid_is_still_a_trap():
    """If this fails, the bridge was mended and `resid_mid` may be written."""
    bridge, delta = bare("gpt2")._bridge, torch.ones(D_MODEL)
    _, cache = bridge.run_with_cache(BATCH)
    seen = {}
    bridge.run_with_hooks(
        BATCH,
        fwd_hooks=[
            ("blocks.2.hook_resid_mid", lambda value, hook: value + delta),
            ("blocks.2.hook_resid_post", lambda value, hook: seen.update(post=value)),
            ("blocks.2.hook_mlp_out", lambda value, hook: seen.update(mlp=value)),
        ],
    )
    stream = seen["post"] - seen["mlp"]
    before = cache["blocks.2.hook_resid_post"] - cache["blocks.2.hook_mlp_out"]
    assert torch.allclose(stream, before, atol=1e-4), "the residual stream moved by delta"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["attn_out", "mlp_out", "resid_pre"])
def test_edits_write_the_residual_stream(architecture: str, kind: Any):
    """Adding a vector at a site adds that very vector to everything downstream of it."""
    model, delta = models.subject(architecture, torch.float64), torch.linspace(-1.0, 1.0, D_MODEL)
    at = {k: Site(k, 1) for k in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
    _, before = model.run(BATCH, capture=at.values())
    edit = {at[kind]: lambda value: value + delta}
    _, after = model.run(BATCH, edits=edit, capture=at.values())
    change = {k: after[site] - before[site] for k, site in at.items()}
    total = change["resid_pre"] + change["attn_out"] + change["mlp_out"]
    assert torch.allclose(change["resid_post"], total, atol=1e-9)
    if kind != "resid_pre":
        assert (change["resid_pre"] == 0).all()
        if kind == "mlp_out" or model.parallel:
            rest = "attn_out" if kind == "mlp_out" else "mlp_out"
            assert torch.allclose(change["resid_post"], delta.double().expand_as(total), atol=1e-9)
            assert (change[rest] == 0).all()


@pytest.mark.parametrize("architecture", ["llama_gqa", "neox_parallel", "gemma2", "gpt2"])
def test_a_denominator_changed_in_place_counts(architecture: str):
    """The bridge tells edits from their absence by identity; `run` must not let one be lost."""
    model, site = models.subject(architecture), Site("ln2_scale", 1)
    base, _ = model.run(BATCH)
    in_place, _ = model.run(BATCH, edits={site: lambda scale: scale.mul_(2.0)})
    fresh, _ = model.run(BATCH, edits={site: lambda scale: scale * 2.0})
    assert (fresh - base).abs().max() > 1e-3
    assert torch.allclose(in_place, fresh, atol=1e-6)


def test_editing_a_denominator_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models.subject("llama_gqa").run(BATCH, edits={Site("ln1_scale"): torch.clone})


def test_capture_sees_what_an_edit_left_and_order_is_that_of_computation():
    """`mlp_raw_out` and `mlp_out` share a hook where no post-norm lies between them."""
    model = models.subject("gpt2")
    for edits in (
        {Site("mlp_raw_out", 1): lambda _: torch.ones(2, 7, D_MODEL)},
        {
            Site("mlp_out", 1): lambda value: 3.0 * value,
            Site("mlp_raw_out", 1): lambda _: torch.ones(2, 7, D_MODEL) / 3.0,
        },
    ):
        _, seen = model.run(BATCH, edits=edits, capture=[Site("mlp_out", 1)])
        assert torch.allclose(seen[Site("mlp_out", 1)], torch.ones(2, 7, D_MODEL))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_residual_is_read_before_the_unembedding(architecture: str):
    """`stop_at_layer=n_layers` would give logits; we read `unembed_in` and `resid_post`."""
    model = models.subject(architecture)
    last, read = Site("resid_post", N_LAYERS - 1), Site("unembed_in")
    logits, seen = model.run(BATCH, capture=[last, read, Site("final_scale")])
    norm = model.norm("final")
    assert norm is not None
    assert seen[last].shape == (2, len(TOKENS), D_MODEL)
    rebuilt = norm.linear(seen[last], seen[Site("final_scale")]) + norm.bias
    assert torch.allclose(seen[read], rebuilt, atol=1e-4)
    raw, cap = seen[read] @ model.W_U + model.b_U, model.logit_softcap
    want = cap * torch.tanh(raw / cap) if cap else raw
    assert torch.allclose(logits, want, atol=1e-4)
    assert bool(cap) == (architecture == "gemma2")


def test_hooks_do_not_outlive_their_run():
    model = models.subject("gpt2")
    base, _ = model.run(BATCH)
    model.run(BATCH, edits={Site("resid_pre", 1): torch.zeros_like})

    def explode(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside an edit")

    with pytest.raises(RuntimeError, match="inside an edit"):
        model.run(
            BATCH, edits={Site("resid_post", 0): torch.zeros_like, Site("mlp_out", 2): explode}
        )
    assert torch.equal(model.run(BATCH)[0], base)


def test_parameters_are_frozen_and_weights_detached():
    model = models.subject("gpt2")
    assert not any(p.requires_grad for p in model._bridge.parameters())
    assert not model.W_E.requires_grad
    assert not model.heads(0).W_V.requires_grad


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_are_one_a_query_head(architecture: str):
    model = models.subject(architecture)
    heads, grouped = model.heads(1), architecture in ("llama_gqa", "qwen2", "gemma2")
    d_head = 12 if architecture == "gemma2" else 8
    assert heads.W_V.shape == (4, D_MODEL, d_head)
    assert heads.W_O.shape == (4, d_head, D_MODEL)
    assert torch.equal(heads.W_V[0], heads.W_V[1]) == grouped
    assert not torch.equal(heads.W_V[1], heads.W_V[2]), "repeat, not repeat_interleave"
    assert (heads.b_V.abs().max() > 0) == (architecture not in ("llama_gqa", "gemma2"))
    assert model.heads(1) is heads, "not cached"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_queries_and_keys_are_one_a_query_head(architecture: str):
    model = models.subject(architecture)
    weights, grouped = model.query_key(1), architecture in ("llama_gqa", "qwen2", "gemma2")
    d_head = 12 if architecture == "gemma2" else 8
    assert weights.W_Q.shape == weights.W_K.shape == (4, D_MODEL, d_head)
    assert weights.b_Q.shape == weights.b_K.shape == (4, d_head)
    assert torch.equal(weights.W_K[0], weights.W_K[1]) == grouped
    assert not torch.equal(weights.W_K[1], weights.W_K[2]), "repeat, not repeat_interleave"
    assert not torch.equal(weights.W_Q[0], weights.W_Q[1])
    biased = architecture not in ("llama_gqa", "gemma2")
    assert (weights.b_Q.abs().max() > 0) == (weights.b_K.abs().max() > 0) == biased
    gemma = architecture == "gemma2"
    assert weights.scale == pytest.approx(256**-0.5 if gemma else d_head**-0.5)
    assert weights.softcap == (4.0 if gemma else 0.0)
    assert not weights.W_Q.requires_grad
    assert model.query_key(1) is weights, "not cached"


def test_a_fused_projection_is_split_as_the_model_splits_it():
    """GPT-NeoX interleaves queries, keys and values head by head."""
    hf = models.hf_model("neox_parallel").gpt_neox.layers[1].attention.query_key_value
    fused = hf.weight.detach().view(4, 3, 8, D_MODEL)
    weights = models.subject("neox_parallel").query_key(1)
    assert torch.equal(weights.W_Q, fused[:, 0].mT)
    assert torch.equal(weights.W_K, fused[:, 1].mT)
    assert torch.equal(weights.b_K, hf.bias.detach().view(4, 3, 8)[:, 1])


@pytest.mark.parametrize("offset", [True, False])
def test_gains_of_query_and_key_norms_are_folded_in(offset: bool):
    shape: dict[str, Any] = models._GROUPED | {"head_dim": 8}
    config = transformers.Gemma3TextConfig(**shape) if offset else transformers.Qwen3Config(**shape)
    config._attn_implementation = "eager"
    hf: Any = transformers.AutoModelForCausalLM.from_config(config)
    attention = hf.model.layers[1].self_attn
    with torch.no_grad():
        attention.q_norm.weight.copy_(torch.arange(8.0))
        attention.k_norm.weight.copy_(3.0 + torch.arange(8.0))
    q, k = (p.weight.detach().clone() for p in (attention.q_proj, attention.k_proj))
    model = SubjectModel.from_transformers(hf, None, "normed")
    weights = model.query_key(1)
    want = q.view(4, 8, D_MODEL) * (torch.arange(8.0) + offset)[:, None]
    assert torch.allclose(weights.W_Q, want.mT)
    want = k.view(2, 8, D_MODEL) * (3.0 + torch.arange(8.0) + offset)[:, None]
    assert torch.allclose(weights.W_K, want.mT.repeat_interleave(2, 0))
    kinds = [site.kind for site in model.score_sites(1)]
    assert kinds == ["rotary_cos", "rotary_sin", "q_norm_scale", "k_norm_scale", "attn_scores"]
    norm = model._bridge.blocks[1].attn.k_norm
    norm.weight.data = torch.ones(16)
    fresh = SubjectModel(model._bridge, None, "wide")
    with pytest.raises(ValueError, match=r"gain of shape \(16,\); want one RMSNorm .* of width 8"):
        fresh.query_key(1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_what_the_softmax_reads(architecture: str):
    """And an edit of them, or of the tables of rotation, reaches the logits."""
    model = models.subject(architecture)
    sites = model.score_sites(1)
    rotary = [] if architecture == "gpt2" else [Site("rotary_cos", 1), Site("rotary_sin", 1)]
    assert sites == [*rotary, Site("attn_scores", 1)]
    pattern = Site("pattern", 1)
    base, seen = model.run(BATCH, capture=[*sites, pattern])
    assert torch.allclose(seen[sites[-1]].softmax(-1), seen[pattern], atol=1e-6)
    for site in sites:
        logits, _ = model.run(BATCH, edits={site: lambda value: 0.9 * value})
        assert not torch.allclose(logits, base, atol=1e-4), site


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_are_what_they_say(architecture: str):
    model = models.subject(architecture)
    names = ("ln1", "ln2", "ln1_post", "ln2_post")
    for name in names:
        norm = model.norm(name, 1)
        if name.endswith("post") and architecture != "gemma2":
            assert norm is None
            continue
        assert norm is not None
        layer_norm = architecture in ("gpt2", "neox_parallel", "neox_sequential")
        assert norm.centred == layer_norm
        assert (norm.bias.abs().max() > 0) == layer_norm
        assert norm.gain.std() > 0.1
    assert len(model.scale_sites()) == (4 if architecture == "gemma2" else 2) * N_LAYERS + 1


@pytest.mark.parametrize("centred", [True, False])
def test_adjoint_is_the_transpose_of_linear(centred: bool):
    generator = torch.Generator().manual_seed(0)
    gain, x, g = (torch.randn(n, 8, generator=generator).double() for n in (1, 5, 5))
    scale = torch.rand(5, 1, generator=generator).double() + 0.5
    norm = Norm(gain[0], torch.zeros(8).double(), centred)
    left, right = (norm.linear(x, scale) * g).sum(-1), (x * norm.adjoint(g, scale)).sum(-1)
    assert torch.allclose(left, right, rtol=1e-12)
    # One set of denominators serves many targets.
    stacked = norm.adjoint(torch.stack([g, 2 * g]), scale)
    assert torch.allclose(stacked[1], 2 * stacked[0])


# --- tokens -------------------------------------------------------------------------------------


def with_tokenizer(prepend_bos: bool | None = None, tokenizer: Any = None) -> SubjectModel:
    model = models.subject("gpt2")
    tokenizer = tokenizer or models.word_tokenizer()
    return SubjectModel(model._bridge, tokenizer, "words", prepend_bos)


def test_tokenize_follows_the_tokenizer_unless_told():
    assert with_tokenizer().tokenize(" Mary gave").tolist() == [3, 5]
    assert with_tokenizer(True).tokenize(" Mary gave").tolist() == [0, 3, 5]
    assert with_tokenizer(False).tokenize(" Mary gave").tolist() == [3, 5]


def test_bos_is_neither_doubled_nor_kept():
    assert with_tokenizer(True).tokenize("<bos> Mary").tolist() == [0, 3]
    assert with_tokenizer(False).tokenize("<bos> Mary").tolist() == [3]


def test_a_tokenizer_without_bos_cannot_prepend_it():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=models.word_tokenizer().backend_tokenizer)
    with pytest.raises(ValueError, match="tokenizer of 'words' has no BOS token"):
        with_tokenizer(True, tokenizer)


def test_prompts_that_cannot_be_read_are_refused():
    model = with_tokenizer()
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.tokenize("")
    with pytest.raises(ValueError, match=r"has 25 tokens but 'words' reads at most 24; shorten it"):
        model.tokenize(" the" * (N_CTX + 1))
    with pytest.raises(ValueError, match="has no tokenizer; pass token ids"):
        bare("gpt2").tokenize("hello")
    with pytest.raises(ValueError, match="has no tokenizer"):
        bare("gpt2").single_token(" a")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([], dtype=torch.long), r"want a 1-D tensor of token ids, got shape \(0,\)"),
        (torch.tensor([0, D_VOCAB]), r"token ids must be in \[0, 50\), got 0 to 50"),
        (torch.tensor([-1, 3]), "got -1 to 3; was another tokenizer used"),
        (torch.zeros(N_CTX + 1, dtype=torch.long), "reads at most 24"),
    ],
)
def test_ids_that_cannot_be_read_are_refused(tokens: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        models.subject("gpt2").check_tokens(tokens)


def test_single_tokens():
    model = with_tokenizer()
    assert model.single_token(" Mary") == 3
    assert model.continuation(" Mary gave") == [3, 5]
    with pytest.raises(ValueError, match="' Mary gave' is 2 tokens for 'words'; want exactly one"):
        model.single_token(" Mary gave")


def test_token_strings_are_text():
    assert with_tokenizer().token_strings([0, 3, 9]) == ("<bos>", " Mary", "45")
    assert bare("gpt2").token_strings([3, 4]) == ("3", "4")
    assert with_tokenizer().token_strings([3, 40]) == (" Mary", "40")


def test_byte_level_tokens_are_text_where_they_are_whole_characters():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "ĠcafÃ©", "Ã©"])}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    model = with_tokenizer(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    ids = [vocab[c] for c in ("ĠcafÃ©", "Ã©", "Ã", "Ċ", "a")]
    assert model.token_strings(ids) == (" café", "é", "Ã", "\n", "a")


def test_sentencepiece_spaces_are_spaces():
    vocab = {"<unk>": 0, "▁Mary": 1, "y": 2}
    tokenizer = Tokenizer(BPE(vocab, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    model = with_tokenizer(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert model.token_strings([1, 2]) == (" Mary", "y")
