"""QK attribution: pairs of sources add up to the model's own scores, and mean what they say."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from attribution.invariant.logits import feature_directions
from attribution.qk.held import hold_attention
from attribution.qk.results import AttentionScore
from attribution.qk.rotary import relative_rotation, rotate
from attribution.qk.scores import attention_contrast, attention_row, attention_score, score_at
from attribution.qk.sources import stream_sources
from attribution.qk.tables import PairBlock, SourcePair, rank_pairs
from attribution.qk.weights import qk_virtual_weights, top_qk_virtual_weights
from circuits import Site, SplicedModel, SubjectModel, load_dictionaries, load_model
from circuits.selfcheck import UnsupportedArchitectureError
from circuits.subject import Norm
from tests import models
from tests.models import ARCHITECTURES, MIXTURES, N_LAYERS, TOKENS

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories15m"
D = torch.float64
OTHERS: dict[str, Any] = {
    "qwen3": lambda: transformers.Qwen3Config(head_dim=8, **models._GROUPED),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        head_dim=12,
        query_pre_attn_scalar=5,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **models._GROUPED,
    ),
    "gemma2_tight": lambda: transformers.Gemma2Config(
        head_dim=12, query_pre_attn_scalar=3, attn_logit_softcapping=0.5, **models._GROUPED
    ),
    "mistral": lambda: transformers.MistralConfig(sliding_window=3, **models._GROUPED),
    "yarn": lambda: transformers.LlamaConfig(
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 6,
        },
        **models._GROUPED,
    ),
    "gpt2_by_layer": lambda: transformers.GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=24,
        scale_attn_by_inverse_layer_idx=True,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "gpt2_unscaled": lambda: transformers.GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=24,
        scale_attn_weights=False,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=3, n_head=4),
    "glm": lambda: transformers.GlmConfig(
        head_dim=8, pad_token_id=0, bos_token_id=0, eos_token_id=0, **models._GROUPED
    ),
}


def other(name: str) -> SubjectModel:
    """A random float64 model of an architecture that `tests.models` does not have."""
    config = OTHERS[name]()
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf: Any = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in hf.parameters():
                parameter.mul_(3.0)
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return load_model(hf, dtype=D)


def float64(architecture: str) -> SubjectModel:
    """Either kind of model."""
    return other(architecture) if architecture in OTHERS else models.subject(architecture, D)


def own_scores(model: SubjectModel, tokens: Tensor, layer: int) -> Tensor:
    """What the model's softmax reads, with every norm in the model's own dtype."""
    site = Site("attn_scores", layer)
    norms = [*model.scale_sites(), *model.score_sites(layer)]
    fresh = {s: torch.clone for s in norms if s.kind.endswith("scale")}
    return model.run(tokens[None], edits=fresh, capture=[site])[1][site][0]


def capped(spliced: SplicedModel, layer: int, value: Tensor) -> Tensor:
    cap = spliced.model.query_key(layer).softcap
    return cap * torch.tanh(value / cap) if cap else value


# --- the stream ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_add_up_to_the_stream(architecture: str, mixture: str, dtype: torch.dtype):
    spliced = models.spliced(architecture, mixture, dtype)
    state = spliced.state(TOKENS[None])
    for layer in range(N_LAYERS):
        for pos in (0, 6):
            sources = stream_sources(spliced, state, layer, pos)
            terms = sources.coefficients[:, None] * sources.directions
            want = state.values[Site("resid_pre", layer)][0, pos]
            size = terms.abs().max().maximum(want.abs().max())
            assert (terms.sum(0) - want).abs().max() < TOLERANCE[dtype] * size


def test_every_kind_of_source_is_named_once():
    """Two layers of a model with everything, by hand."""
    spliced = models.spliced("gpt2", "skip", D)
    nodes = stream_sources(spliced, spliced.state(TOKENS[None]), 2, 4).nodes
    names = [node.id for node in nodes if node.kind != "feature"]
    assert names == [
        "token@4",
        "position@4",
        *(f"sublayer.head{head}.attn0@4" for head in range(4)),
        "bias.attn0",
        *("error.mlp0@4", "sublayer.mlp_skip0@4", "bias.mlp0"),
        *(f"sublayer.head{head}.attn1@4" for head in range(4)),
        "bias.attn1",
        *("error.mlp1@4", "sublayer.mlp_skip1@4", "bias.mlp1"),
    ]
    state = spliced.state(TOKENS[None])
    a = state.activations[Site("mlp_raw_out", 1)][0, 4]
    features = [node for node in nodes if node.kind == "feature" and node.layer == 1]
    assert [node.feature for node in features] == a.nonzero()[:, 0].tolist()
    assert [node.activation for node in features] == a[a != 0].tolist()
    held = models.spliced("gemma2", "none", D)
    names = [n.id for n in stream_sources(held, held.state(TOKENS[None]), 1, 0).nodes]
    assert names == [
        "token@0",
        *(f"sublayer.head{h}.attn0@0" for h in range(4)),
        "sublayer.mlp0@0",
    ]


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "llama_gqa"])
def test_a_heads_source_is_what_the_model_loses_without_it(architecture: str):
    """Another head's pattern zeroed takes away that head's source and its share of the bias."""
    spliced = SplicedModel(models.subject(architecture, D), {})
    model, state = spliced.model, spliced.state(TOKENS[None])
    pattern, out = Site("pattern", 1), Site("attn_out", 1)
    edits = {s: lambda _, s=s: state.values[s].clone() for s in model.scale_sites()}

    def without(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, 2] = 0.0
        return value

    _, seen = model.run(state.tokens, edits=edits | {pattern: without}, capture=[out])
    lost = (state.values[out] - seen[out])[0, 5]
    sources = stream_sources(spliced, state, 2, 5)
    head = sources.directions[sources.nodes.row("sublayer.head2.attn1@5")]
    heads, ln1, post = model.heads(1), model.norm("ln1", 1), model.norm("ln1_post", 1)
    assert ln1 is not None
    constant = (heads.b_V[2] + ln1.bias @ heads.W_V[2]) @ heads.W_O[2]
    if post is not None:
        constant = post.linear(constant, state.values[Site("ln1_post_scale", 1)][0, 5])
    assert torch.allclose(head + constant, lost, rtol=1e-6, atol=1e-10)


def test_a_residual_sae_stands_for_all_below_it():
    spliced = models.spliced("gpt2", "residual", D)
    nodes = stream_sources(spliced, spliced.state(TOKENS[None]), 1, 2).nodes
    assert {(node.kind, node.site, node.layer) for node in nodes} == {
        ("feature", "resid_post", 0),
        ("error", "resid_post", 0),
        ("bias", "resid_post", 0),
    }
    first = stream_sources(spliced, spliced.state(TOKENS[None]), 0, 2).nodes
    assert {node.site for node in first} == {"resid_pre"}


def test_dictionaries_on_outputs_stand_for_the_sublayers():
    spliced = models.spliced("gemma2", "mixed", D)
    nodes = stream_sources(spliced, spliced.state(TOKENS[None]), 2, 5).nodes
    assert {node.site for node in nodes} == {"resid_post", "attn_out", "mlp_out"}
    assert {node.kind for node in nodes} == {"feature", "error", "bias"}
    assert {node.site for node in nodes if node.kind == "feature"} >= {"attn_out", "mlp_out"}


@pytest.mark.parametrize("mixture", ["none", "transcoders"])
def test_biases_of_post_norms_are_constants(monkeypatch: pytest.MonkeyPatch, mixture: str):
    """Gemma's have none, so they are given some here."""
    spliced = models.spliced("gemma2", mixture, D)
    state, norm = spliced.state(TOKENS[None]), SubjectModel.norm
    without = stream_sources(spliced, state, 1, 3)
    added = {"ln1_post": torch.full((32,), 7.0).double(), "ln2_post": torch.arange(32.0).double()}

    def biased(self: SubjectModel, name: Any, layer: int = 0) -> Norm | None:
        found = norm(self, name, layer)
        assert found is not None
        return Norm(found.gain, found.bias + added.get(name, 0.0), found.centred)

    monkeypatch.setattr(SubjectModel, "norm", biased)
    sources = stream_sources(spliced, state, 1, 3)
    for site, bias in (("attn", added["ln1_post"]), ("mlp", added["ln2_post"])):
        row = sources.nodes.row(f"bias.{site}0")
        before = without.nodes.where(kind="bias", site=site)
        want = bias + without.directions[before].sum(0)
        assert torch.allclose(sources.coefficients[row] * sources.directions[row], want)


# --- adding up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pairs_add_up_to_the_models_own_score(architecture: str, mixture: str, dtype: torch.dtype):
    spliced = models.spliced(architecture, mixture, dtype)
    for layer, head, query, key in ((0, 1, 6, 2), (1, 3, 5, 0), (2, 2, 4, 4)):
        score = attention_score(spliced, TOKENS, layer, head, query=query, key=key)
        want = own_scores(spliced.model, TOKENS, layer)[head, query, key]
        pairs = score.pairs.double()
        size = max(float(pairs.abs().max()), abs(score.score))
        assert abs(float(pairs.sum()) - score.score) < TOLERANCE[dtype] * size
        assert abs(float(capped(spliced, layer, pairs.sum()) - want)) < TOLERANCE[dtype] * size
        assert score.capped_score == pytest.approx(float(want), rel=1e-4, abs=1e-5)
        assert score.model_score == float(want)
        assert score.conservation_error() < TOLERANCE[dtype]


def test_the_conservation_error_can_fail():
    score = attention_score(models.spliced("gemma2", dtype=D), TOKENS, 1, 0, key=2)
    size = max(abs(score.score), float(score.pairs.abs().max()))
    for field in ("score", "model_score"):
        moved = AttentionScore(**{**vars(score), field: getattr(score, field) + 0.1 * size})
        assert moved.conservation_error() == pytest.approx(0.1, rel=1e-6)
    scaled = AttentionScore(**{**vars(score), "key_factors": 2.0 * score.key_factors})
    assert scaled.conservation_error() > 1e-3


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2_tight"])
def test_log_ratios_of_the_pattern_are_differences_of_scores(architecture: str):
    """Against the probabilities alone: nothing here reads the hook of the scores."""
    spliced = SplicedModel(float64(architecture), MIXTURES["mixed"])
    pattern = spliced.state(TOKENS[None]).values[Site("pattern", 2)][0].double()
    for head in range(4):
        contrast = attention_contrast(spliced, TOKENS, 2, head, here=1, there=3, query=5)
        want = float((pattern[head, 5, 1] / pattern[head, 5, 3]).log())
        assert contrast.log_ratio == pytest.approx(want, rel=1e-4, abs=2e-6)
        assert contrast.here.pattern == pytest.approx(float(pattern[head, 5, 1]))
        if architecture == "gemma2_tight":
            assert abs(contrast.difference - contrast.log_ratio) > 1e-3
        elif architecture != "gemma2":
            assert contrast.difference == contrast.log_ratio
        table = contrast.table(12)
        assert math.fsum(row.value for row in table) == pytest.approx(contrast.difference)
        assert math.fsum(row.share for row in table) == pytest.approx(1.0)
        everything = contrast.table(10**6)
        assert abs(everything[-1].value) < 1e-10 * abs(everything[0].value), "rounding alone"
        both = {row.key.rpartition("@")[2] for row in contrast.table(400)[:-1] if "@" in row.key}
        assert both == {"1", "3"}
        here, there = contrast.here.pairs.abs().max(), contrast.there.pairs.abs().max()
        assert abs(table[0].value) == pytest.approx(float(here.maximum(there)))


@settings(max_examples=20, deadline=None)
@given(
    architecture=st.sampled_from(ARCHITECTURES),
    mixture=st.sampled_from(sorted(MIXTURES)),
    tokens=st.lists(st.integers(0, models.D_VOCAB - 1), min_size=1, max_size=9),
    layer=st.integers(0, N_LAYERS - 1),
    head=st.integers(0, 3),
    data=st.data(),
)
def test_any_score_adds_up(
    architecture: str, mixture: str, tokens: list[int], layer: int, head: int, data: Any
):
    query = data.draw(st.integers(0, len(tokens) - 1))
    key = data.draw(st.integers(0, query))
    spliced = models.spliced(architecture, mixture, D)
    ids = torch.tensor(tokens)
    score = attention_score(spliced, ids, layer, head, query=query, key=key)
    want = float(own_scores(spliced.model, ids, layer)[head, query, key])
    assert score.conservation_error() < 1e-12
    assert score.capped_score == pytest.approx(want, rel=1e-9, abs=1e-9)
    assert {node.pos for node in score.query_sources} <= {query, -1}
    assert {node.pos for node in score.key_sources} <= {key, -1}


# --- what each number is ------------------------------------------------------------------------


def test_pairs_of_gpt2_by_hand():
    """From transformers' own weights: `a_s a_t / (sigma_q sigma_k) d_s' W_Q W_K^T d_t' / sqrt(8)`.

    d' is d through the norm's centring and gain.
    """
    spliced = models.spliced("gpt2", "transcoders", D)
    hf = models.hf_model("gpt2", D).transformer
    block, state = hf.h[2], spliced.state(TOKENS[None])
    score = attention_score(spliced, TOKENS, 2, 3, query=5, key=2)
    W = block.attn.c_attn.weight.detach()
    W_Q, W_K = W[:, 24:32], W[:, 56:64]
    b_Q, b_K = (block.attn.c_attn.bias.detach()[i : i + 8] for i in (24, 56))

    def read(d: Tensor) -> Tensor:
        return (d - d.mean()) * block.ln_1.weight.detach()

    def sigma(pos: int) -> Tensor:
        x = state.values[Site("resid_pre", 2)][0, pos]
        return ((x - x.mean()).square().mean() + block.ln_1.eps).sqrt()

    decoders = [MIXTURES["transcoders"][f"mlp.{layer}"].W_dec.double() for layer in (0, 1)]
    seen = 0
    for s, query in enumerate(score.query_sources):
        for t, key in enumerate(score.key_sources):
            if (query.kind, key.kind) == ("feature", "feature") and seen < 40:
                seen += 1
                d, e = decoders[query.layer][query.feature], decoders[key.layer][key.feature]
                invariant = read(d) @ W_Q @ W_K.T @ read(e) / 8**0.5
                dependent = query.activation * key.activation / (sigma(5) * sigma(2))
                assert score.invariant[s, t] == pytest.approx(float(invariant), rel=1e-10)
                assert score.input_dependent[s, t] == pytest.approx(float(dependent), rel=1e-10)
                assert score.pairs[s, t] == pytest.approx(float(dependent * invariant), rel=1e-10)
    assert seen == 40
    s, t = score.query_sources.row("bias.query2"), score.key_sources.row("bias.key2")
    beta = block.ln_1.bias.detach()
    want = (beta @ W_Q + b_Q) @ (beta @ W_K + b_K) / 8**0.5
    assert score.pairs[s, t] == pytest.approx(float(want), rel=1e-10)
    t = score.key_sources.row("position@2")
    want = (beta @ W_Q + b_Q) @ (read(hf.wpe.weight.detach()[2]) @ W_K) / 8**0.5 / sigma(2)
    assert score.pairs[s, t] == pytest.approx(float(want), rel=1e-10)
    t = score.key_sources.row("token@2")
    want = (beta @ W_Q + b_Q) @ (read(hf.wte.weight.detach()[5]) @ W_K) / 8**0.5
    assert score.invariant[s, t] == pytest.approx(float(want), rel=1e-10)


def test_pairs_of_llama_by_hand():
    """Grouped heads, and rotation at both ends by transformers' own function."""
    spliced = models.spliced("llama_gqa", "transcoders", D)
    hf = models.hf_model("llama_gqa", D).model
    block, n = hf.layers[1], len(TOKENS)
    score = attention_score(spliced, TOKENS, 1, 2, query=6, key=1)
    W_Q = block.self_attn.q_proj.weight.detach().T[:, 16:24]
    W_K = block.self_attn.k_proj.weight.detach().T[:, 8:16]  # heads 2 and 3 share the second
    gain, decoder = block.input_layernorm.weight.detach(), MIXTURES["transcoders"]["mlp.0"].W_dec
    x = torch.zeros(1, n, 1, dtype=D)
    cos, sin = hf.rotary_emb(x, torch.arange(n)[None])
    for s in score.query_sources.where(kind="feature")[:5]:
        for t in score.key_sources.where(kind="feature")[:5]:
            query, key = score.query_sources[s], score.key_sources[t]
            q, k = (
                (decoder[node.feature].double() * gain @ W).expand(1, 1, n, 8)
                for node, W in ((query, W_Q), (key, W_K))
            )
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            want = float(q[0, 0, 6] @ k[0, 0, 1]) / 8**0.5
            assert score.invariant[s, t] == pytest.approx(want, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "qwen3", "gemma3", "gemma2_tight"])
def test_marginals_predict_interventions_in_the_stream(architecture: str):
    """Denominators held, `delta * d_s` more at one end moves the score by its pairs, exactly."""
    spliced = SplicedModel(float64(architecture), MIXTURES["transcoders"])
    layer, head, query, key, delta = 2, 1, 5, 3, 0.25
    model, state = spliced.model, spliced.state(TOKENS[None])
    score = attention_score(spliced, TOKENS, layer, head, query=query, key=key)
    norms = [Site("ln1_scale", layer)]
    norms += [s for s in model.score_sites(layer) if s.kind.endswith("norm_scale")]
    _, held = model.run(
        state.tokens,
        edits={s: torch.clone for s in [*model.scale_sites(), *norms]},
        capture=norms,
    )
    for table, pairs, pos in (
        (score.query_sources, score.pairs.sum(1), query),
        (score.key_sources, score.pairs.sum(0), key),
    ):
        row = table.where(kind="feature")[1]
        node = table[row]
        direction = feature_directions(
            model, spliced.placements[spliced.write_site(f"mlp.{node.layer}")]
        )[node.feature]
        post = state.values.get(Site("ln2_post_scale", node.layer))
        direction = direction if post is None else direction / post[0, pos]

        def push(x: Tensor, pos: int = pos, direction: Tensor = direction) -> Tensor:
            x = x.clone()
            x[0, pos] += delta * direction
            return x

        edits: dict[Site, Any] = {s: torch.clone for s in model.scale_sites()}
        edits |= {s: lambda _, s=s: held[s].clone() for s in norms}
        edits[Site("resid_pre", layer)] = push
        site = Site("attn_scores", layer)
        _, seen = model.run(state.tokens, edits=edits, capture=[site])
        want = score.score + delta * pairs[row] / node.activation
        got = seen[site][0, head, query, key]
        assert float(got) == pytest.approx(float(capped(spliced, layer, want)), rel=1e-9)
        assert abs(float(got) - score.model_score) > 1e-6


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_is_the_marginals_of_its_scores(architecture: str, dtype: torch.dtype):
    spliced = models.spliced(architecture, "mixed", dtype)
    row = attention_row(spliced, TOKENS, 1, 2, query=4)
    assert row.conservation_error() < TOLERANCE[dtype]
    assert row.keys.tolist() == [0, 1, 2, 3, 4]
    want = own_scores(spliced.model, TOKENS, 1)[2, 4, :5]
    assert torch.allclose(capped(spliced, 1, row.scores), want, rtol=1e-4, atol=1e-4)
    assert torch.allclose(row.pattern.sum(), torch.ones_like(row.pattern[0]), atol=1e-5)
    for i, key in enumerate(row.keys.tolist()):
        score = attention_score(spliced, TOKENS, 1, 2, query=4, key=key)
        size = float(score.pairs.abs().max())
        assert [n.id for n in row.query_sources] == [n.id for n in score.query_sources]
        assert [n.id for n in row.key_sources[i]] == [n.id for n in score.key_sources]
        gap = (row.by_query_source[:, i] - score.pairs.sum(1)).abs().max()
        assert gap < 10 * TOLERANCE[dtype] * size
        gap = (row.by_key_source[i] - score.pairs.sum(0)).abs().max()
        assert gap < 10 * TOLERANCE[dtype] * size
        assert float(row.scores[i]) == score.score


def test_the_conservation_error_of_a_row_can_fail():
    row = attention_row(models.spliced("gpt2", dtype=D), TOKENS, 1, 0)
    assert row.conservation_error() < 1e-12
    for field in ("by_query_source", "by_key_source", "scores"):
        value = getattr(row, field)
        broken = tuple(1.1 * v for v in value) if isinstance(value, tuple) else 1.1 * value
        assert type(row)(**{**vars(row), field: broken}).conservation_error() > 1e-3, field


# --- weights alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "yarn", "qwen3"])
def test_virtual_weights_are_the_invariant_part(architecture: str):
    """At an offset, not at positions; to the rounding of the model's own rotary tables."""
    spliced = SplicedModel(float64(architecture), MIXTURES["transcoders"])
    weights = qk_virtual_weights(spliced, "mlp.1", "mlp.0", 2, 1, offset=3)
    size = float(weights.abs().max())
    for query, key in ((6, 3), (4, 1)):
        score = attention_score(spliced, TOKENS, 2, 1, query=query, key=key)
        queries = score.query_sources.where(kind="feature", layer=1)
        keys = score.key_sources.where(kind="feature", layer=0)
        rows = [score.query_sources[i].feature for i in queries]
        columns = [score.key_sources[i].feature for i in keys]
        got = score.invariant[queries][:, keys]
        assert (weights[rows][:, columns] - got).abs().max() < 1e-6 * size
    other_offset = qk_virtual_weights(spliced, "mlp.1", "mlp.0", 2, 1, offset=2)
    same = bool(torch.allclose(weights, other_offset, rtol=1e-3))
    assert same == (architecture == "gpt2"), "offsets matter with rotary positions only"


@pytest.mark.parametrize("chunk", [1, 7, 40, 100])
@pytest.mark.parametrize("top", [1, 25, 60, 10_000])
def test_the_strongest_pairs_come_in_chunks(chunk: int, top: int):
    spliced = models.spliced("neox_parallel", "transcoders", D)
    dense = qk_virtual_weights(spliced, "mlp.1", "mlp.0", 2, 3, offset=4)
    found = top_qk_virtual_weights(spliced, "mlp.1", "mlp.0", 2, 3, offset=4, top=top, chunk=chunk)
    want = dense.abs().flatten().sort(descending=True).values[:top]
    assert torch.allclose(found.values.abs(), want, rtol=1e-12)
    assert torch.allclose(dense[found.query_features, found.key_features], found.values, rtol=1e-9)
    pairs = set(zip(found.query_features.tolist(), found.key_features.tolist(), strict=True))
    assert len(pairs) == min(top, dense.numel())


def test_virtual_weights_of_chosen_features():
    spliced = models.spliced("qwen2", "mixed", D)
    whole = qk_virtual_weights(spliced, "attn_out.1", "mlp_out.1", 2, 0, offset=1)
    part = qk_virtual_weights(
        spliced,
        "attn_out.1",
        "mlp_out.1",
        2,
        0,
        offset=1,
        query_features=[5, 2],
        key_features=[7, 0, 1],
    )
    assert torch.allclose(part, whole[[5, 2]][:, [7, 0, 1]], rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mlp.2", "mlp.0", 2, 0), r"mlp.2 does not write below the heads of layer 2"),
        (("attn_out.1", "attn_out.1", 1, 0), r"attn_out.1 does not write below"),
        (("mlp_out.1", "mlp.0", 2, 0), r"resid_post0 replaces .* between mlp.0 and layer 2"),
        (("resid_pre.1", "resid_pre.1", 0, 0), r"resid_pre.1 does not write below"),
        (("mlp.7", "mlp.0", 1, 0), r"no dictionary at 'mlp.7'"),
        (("resid_pre.1", "resid_pre.1", 3, 0), r"layers 0 to 2 with heads 0 to 3, got layer 3"),
        (("resid_pre.1", "resid_pre.1", 1, 4), r"got layer 1, head 4"),
    ],
)
def test_weights_that_do_not_exist_are_refused(arguments: Any, message: str):
    spliced = models.spliced("gpt2", "mixed")
    with pytest.raises(ValueError, match=message):
        qk_virtual_weights(spliced, *arguments)


def test_offsets_and_sizes_that_cannot_be_are_refused():
    spliced = models.spliced("llama_gqa", "mixed")
    stream = ("resid_pre.1", "resid_pre.1", 1, 0)
    for offset in (-1, models.N_CTX):
        with pytest.raises(ValueError, match=rf"offset must be in \[0, 24\), got {offset}"):
            qk_virtual_weights(spliced, *stream, offset=offset)
    assert qk_virtual_weights(spliced, *stream, offset=models.N_CTX - 1).shape == (40, 40)
    with pytest.raises(ValueError, match="want top >= 1 and chunk >= 1, got 0 and 5"):
        top_qk_virtual_weights(spliced, *stream, top=0, chunk=5)
    with pytest.raises(ValueError, match="want top >= 1 and chunk >= 1, got 5 and 0"):
        top_qk_virtual_weights(spliced, *stream, top=5, chunk=0)


# --- rotary positions ---------------------------------------------------------------------------


def test_a_quarter_turn_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    cos, sin = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert rotate(x, cos, sin).tolist() == [-3.0, 2.0, 1.0, 4.0, 5.0, 6.0]
    assert torch.equal(rotate(x, torch.ones(0), torch.zeros(0)), x)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0, 4, 8]), st.integers(0, 5))
def test_one_relative_rotation_does_what_two_do(query: int, key: int, width: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 8, generator=generator).double()
    speeds = torch.rand(width // 2, generator=generator).double().repeat(2)
    angles = torch.arange(41.0).double()[:, None] * speeds
    cos, sin = 1.3 * angles.cos(), 1.3 * angles.sin()  # YaRN scales its tables
    want = rotate(q, cos[query], sin[query]) @ rotate(k, cos[key], sin[key])
    got = q @ rotate(k, *relative_rotation(cos, sin, query, key))
    assert got == pytest.approx(float(want), rel=1e-9, abs=1e-12)
    shift = 40 - max(query, key)
    shifted = q @ rotate(k, *relative_rotation(cos, sin, query + shift, key + shift))
    assert shifted == pytest.approx(float(want), rel=1e-9, abs=1e-9)


# --- other architectures ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["qwen3", "gemma3", "gemma2_tight", "mistral", "yarn", "gpt2_by_layer"]
)
def test_variants_of_attention_add_up(name: str):
    """Query and key norms, two rotations in one model, windows, scaled tables, scales by layer."""
    spliced = SplicedModel(other(name), MIXTURES["mixed"])
    for layer in range(N_LAYERS):
        held = hold_attention(spliced, TOKENS, layer)
        for head, query, key in ((1, 6, 6), (3, 6, 4), (0, 3, 1)):
            score = score_at(held, head, query=query, key=key)
            want = own_scores(spliced.model, TOKENS, layer)[head, query, key]
            assert score.conservation_error() < 1e-12
            assert score.capped_score == pytest.approx(float(want), rel=1e-9)
            if name == "gemma2_tight":
                cap = 0.5
                assert score.score == pytest.approx(cap * math.atanh(float(want) / cap), rel=1e-6)
                assert abs(score.score - score.capped_score) > 1e-6


def test_a_window_hides_keys():
    spliced = SplicedModel(other("mistral"), {})
    row = attention_row(spliced, TOKENS, 1, 0, query=6)
    assert row.keys.tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match=r"hides key 3 from query 6; choose one of \[4, 5, 6\]"):
        attention_score(spliced, TOKENS, 1, 0, query=6, key=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bloom", r"add a term for positions \(alibi\)"),
        ("glm", "rotates adjacent entries"),
        ("gpt2_unscaled", r"the attention scores of layer 0 of .* differ from scale"),
    ],
)
def test_scores_that_are_not_bilinear_are_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        attention_score(SplicedModel(other(name), {}), TOKENS, 0, 0, key=0)


def test_a_formula_that_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The check is the model's own scores, whatever the reason for a difference."""
    spliced = models.spliced("llama_gqa", "none", D)
    sites = SubjectModel.score_sites
    monkeypatch.setattr(
        SubjectModel,
        "score_sites",
        lambda self, layer: [s for s in sites(self, layer) if not s.kind.startswith("rotary")],
    )
    with pytest.raises(UnsupportedArchitectureError, match="cannot be explained by this formula"):
        attention_score(spliced, TOKENS, 0, 0, key=0)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"layer": 3}, r"has layers 0 to 2, got layer 3"),
        ({"layer": -1}, r"got layer -1"),
        ({"head": 4}, r"layer 1 has heads 0 to 3, got head 4"),
        ({"query": 7}, r"query must be in \[-7, 7\), got 7"),
        ({"key": -8}, r"key must be in \[-7, 7\), got -8"),
        ({"query": 2, "key": 3}, r"hides key 3 from query 2; choose one of \[0, 1, 2\]"),
    ],
)
def test_places_that_do_not_exist_are_refused(place: dict[str, int], message: str):
    arguments: Any = {"layer": 1, "head": 0, "query": -1, "key": 0} | place
    with pytest.raises(ValueError, match=message):
        attention_score(models.spliced("gpt2"), TOKENS, **arguments)


def test_positions_count_from_the_end_too():
    spliced = models.spliced("gpt2")
    score = attention_score(spliced, TOKENS, 1, 0, query=-2, key=-3)
    assert (score.query, score.key) == (5, 4)
    same = attention_score(spliced, TOKENS, 1, 0, query=5, key=4)
    assert torch.equal(score.pairs, same.pairs)


# --- tables -------------------------------------------------------------------------------------


def test_a_table_by_hand():
    dependent = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    invariant = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    blocks = [
        PairBlock(["a", "b"], ["x", "y"], dependent, invariant),
        PairBlock(["c"], ["z"], torch.tensor([[-1.0]]), torch.tensor([[3.0]])),
    ]
    total = 1.0 - 6.0 + 1.5 + 1.0 - 3.0
    first, second, rest = rank_pairs(blocks, total, 2)
    assert first == SourcePair("a", "y", -6.0, -6.0 / total, 2.0, -3.0)
    assert second == SourcePair("c", "z", -3.0, -3.0 / total, -1.0, 3.0)
    assert (rest.query, rest.key, rest.value) == ("3 other pairs", "", 3.5)
    assert math.isnan(rest.input_dependent)
    assert math.isnan(rest.input_invariant)
    assert [row.query for row in rank_pairs(blocks, total, 50)][-1] == "0 other pairs"
    assert rank_pairs(blocks, total, 50)[-1].value == 0.0
    (only,) = rank_pairs(blocks, total, 0)
    assert (only.value, only.share) == (total, 1.0)
    assert math.isnan(rank_pairs(blocks, 0.0, 1)[0].share)
    with pytest.raises(ValueError, match="want top >= 0 rows, got -1"):
        rank_pairs(blocks, total, -1)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_tables_add_up_to_the_score(architecture: str):
    score = attention_score(models.spliced(architecture), TOKENS, 2, 1, key=3)
    for top in (0, 1, 20, 10**6):
        table = score.table(top)
        assert math.fsum(row.value for row in table) == pytest.approx(score.score, rel=1e-12)
        strengths = [abs(row.value) for row in table[:-1]]
        assert strengths == sorted(strengths, reverse=True)
        assert len(table) == min(top, score.pairs.numel()) + 1
    first = score.table(1)[0]
    s, t = score.query_sources.row(first.query), score.key_sources.row(first.key)
    assert score.pairs[s, t] == pytest.approx(first.value)
    assert first.input_dependent * first.input_invariant == pytest.approx(first.value, rel=1e-6)
    # What the rest holds besides unlisted pairs is rounding.
    assert abs(score.table(10**6)[-1].value) < 1e-5 * max(abs(score.score), abs(first.value))


# --- models nobody here made up -----------------------------------------------------------------


def test_tiny_explains_why_it_looks_where_it_looks():
    spliced = SplicedModel(load_model("tiny"), load_dictionaries("tiny"))
    prompt = "The war lasted from the year 1732 to the year 17"
    worst = 0.0
    for layer in range(spliced.model.n_layers):
        held = hold_attention(spliced, prompt, layer)
        n_pos = held.state.n_pos
        for head in range(spliced.model.n_heads):
            for key in (0, n_pos // 2, n_pos - 1):
                worst = max(worst, score_at(held, head, key=key).conservation_error())
    assert worst < 1e-5
    contrast = attention_contrast(spliced, prompt, 3, 0, here=5, there=2)
    pattern = contrast.here.pattern / contrast.there.pattern
    assert contrast.log_ratio == pytest.approx(math.log(pattern), abs=1e-3)
    assert math.fsum(row.value for row in contrast.table(5)) == pytest.approx(contrast.difference)


@pytest.mark.stories
@pytest.mark.skipif(not STORIES.exists(), reason="../shared/models/stories15m is not here")
@pytest.mark.parametrize("dtype", models.DTYPES)
def test_stories15m_adds_up(dtype: torch.dtype):
    """A score near 0 is a dot product that cancels, which float32 knows to 2e-6 or so and no
    better, whoever computes it: there the gap is measured in units of the score (log-odds).
    """
    spliced = SplicedModel(load_model(STORIES, dtype=dtype), {})
    prompt = "Tom and Sue went to the park. Tom gave a ball to"
    for layer in range(spliced.model.n_layers):
        held = hold_attention(spliced, prompt, layer)
        for head in range(spliced.model.n_heads):
            for key in (1, 4, 7, 10):
                score = score_at(held, head, key=key)
                gap = abs(float(score.pairs.double().sum()) - score.model_score)
                assert gap < TOLERANCE[dtype] * max(1.0, abs(score.model_score))
                if dtype == D:
                    assert score.conservation_error() < 1e-12
