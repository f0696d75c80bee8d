"""Edges, virtual weights, de-embedding and logit attribution where the answer is known by hand.

A two-layer GPT-2 whose MLPs write nothing and whose queries and keys are 0: every pattern is
uniform, `A[q, k] = 1 / (q + 1)`, and the stream below layer 1's attention is the embedding, whose
entries are +-1 with mean 0, so that its norm denominator is `sqrt(1 + eps)`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from attribution import (
    DirectionTarget,
    LogitDifference,
    Trace,
    attribute,
    deembed,
    deembed_feature,
    direct_logit_attribution,
    promoted_and_suppressed,
    virtual_weights,
)
from attribution.invariant.deembedding import effective_encoder, fold_norm
from circuits import Site, SplicedModel, SubjectModel, Transcoder
from circuits.subject import Norm
from tests import models

SIGMA = (1.0 + 1e-5) ** 0.5
W_E = torch.tensor(
    [
        [1.0, -1.0, 1.0, -1.0],
        [1.0, 1.0, -1.0, -1.0],
        [1.0, -1.0, -1.0, 1.0],
        [-1.0, 1.0, -1.0, 1.0],
        [-1.0, -1.0, 1.0, 1.0],
        [-1.0, 1.0, 1.0, -1.0],
    ]
)
W_U = torch.arange(24.0).reshape(4, 6).remainder(5.0)
W_V = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4])
W_O = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0], [1.0] * 4])
B_V, B_O = torch.tensor([1.0, 0.0, -1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0, 0.5])
GAIN_1, GAIN_2, GAIN_F = (
    torch.tensor([2.0, 1.0, 1.0, 0.5]),
    torch.tensor([1.0, 3.0, 1.0, 1.0]),
    torch.tensor([1.0, 1.0, 2.0, 1.0]),
)
TOKENS = torch.tensor([0, 1, 2])  # feature 0 fires at 0, 1 and 2 alike; feature 1 at 0 and 2
ENC_0 = torch.tensor([[1.0, 1.0], [0.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
DEC_0 = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, -2.0, 0.5, 1.0]])
ENC_1 = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0], [0.0, 3.0]])
DEC_1 = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 1.0, 0.0]])
B_ENC_1 = torch.tensor([40.0, 40.0])  # large, so that both features are active everywhere


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def hand_model(ov: float = 1.0) -> SubjectModel:
    config = GPT2Config(
        vocab_size=6,
        n_embd=4,
        n_layer=2,
        n_head=2,
        n_positions=5,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    hf: Any = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for block in hf.transformer.h:
            block.ln_1.weight.copy_(GAIN_1)
            block.ln_2.weight.copy_(GAIN_2)
        hf.transformer.ln_f.weight.copy_(GAIN_F)
        hf.transformer.wte.weight.copy_(W_E)
        hf.lm_head.weight.copy_(W_U.T)
        attention = hf.transformer.h[1].attn
        attention.c_attn.weight[:, 8:] = ov * W_V
        attention.c_attn.bias[8:] = ov * B_V
        attention.c_proj.weight.copy_(ov * W_O)
        attention.c_proj.bias.copy_(B_O)
    return SubjectModel.from_transformers(hf.double(), None, "hand")


def hand_spliced(ov: float = 1.0) -> SplicedModel:
    low = Transcoder(ENC_0, DEC_0, torch.zeros(2), torch.zeros(4))
    high = Transcoder(ENC_1, DEC_1, B_ENC_1, torch.zeros(4))
    return SplicedModel(hand_model(ov), {0: low, 1: high})


def by_hand() -> dict[str, Tensor]:
    """The forward pass of the model, written out."""
    e = W_E[TOKENS].double()
    into_heads = e / SIGMA * GAIN_1
    values = into_heads @ W_V.double() + B_V
    mean_so_far = values.cumsum(0) / torch.arange(1.0, 4.0).double()[:, None]
    stream = e + mean_so_far @ W_O.double() + B_O
    scale = (centred(stream).square().mean(-1) + 1e-5).sqrt()
    activation = (e / SIGMA * GAIN_2 @ ENC_0.double()).relu()
    return {"scale": scale, "stream": stream, "a": activation}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return attribute(hand_spliced(), TOKENS, LogitDifference(1, 3))


def edge(trace: Trace, target: str, source: str) -> float:
    return float(trace.edges[trace.targets.row(target), trace.sources.row(source)])


@pytest.mark.parametrize("q", [0, 1, 2])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("target", [0, 1])
def test_feature_to_feature_is_direct_plus_heads(
    trace: Trace, q: int, k: int, source: int, target: int
):
    """`a_s / sigma_q ([q = k] d_s . e_t + A_qk / sigma_k d_s W_V W_O . e_t)`, gains folded in."""
    hand = by_hand()
    a = hand["a"][k, source]
    if a == 0:
        with pytest.raises(KeyError):
            trace.sources.row(f"mlp0.{source}@{k}")
        return
    d, reader = DEC_0[source].double(), centred(GAIN_2 * ENC_1[:, target]).double()
    direct = d @ reader if q == k else 0.0
    pattern = 1.0 / (q + 1) if k <= q else 0.0
    ov = (centred(d) * GAIN_1) @ W_V.double() @ W_O.double() @ reader
    want = a / hand["scale"][q] * (direct + pattern / SIGMA * ov)
    got = edge(trace, f"mlp1.{target}@{q}", f"mlp0.{source}@{k}")
    assert got == pytest.approx(float(want), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("target", [0, 1])
def test_tokens_errors_and_biases_by_hand(trace: Trace, target: int):
    hand, q = by_hand(), 2
    reader = centred(GAIN_2 * ENC_1[:, target]).double() / hand["scale"][q]
    through = W_V.double() @ W_O.double() @ reader / SIGMA / 3.0
    e = W_E.double()[TOKENS]
    for k in range(3):
        error = -hand["a"][k] @ DEC_0.double()  # the MLP writes 0, so the error undoes it all
        for name, vector in ((f"token@{k}", e[k]), (f"error.mlp0@{k}", error)):
            want = (centred(vector) * GAIN_1) @ through + (vector @ reader if k == q else 0.0)
            got = edge(trace, f"mlp1.{target}@{q}", name)
            assert got == pytest.approx(float(want), rel=1e-12, abs=1e-14)
    want = (B_V.double() @ W_O.double() + B_O) @ reader
    assert edge(trace, f"mlp1.{target}@{q}", "bias.attn1") == pytest.approx(float(want), rel=1e-12)
    assert edge(trace, f"mlp1.{target}@{q}", "bias.target") == pytest.approx(40.0)
    assert edge(trace, f"mlp1.{target}@{q}", "bias.attn0") == 0.0


def test_a_feature_reaches_the_logits_by_hand(trace: Trace):
    """The top transcoder's write, through the final norm: `a_s / sigma dla(d_s)`."""
    stream = by_hand()["stream"]
    sigma = (centred(stream[2]).square().mean() + 1e-5).sqrt()
    node = trace.sources[trace.sources.row("mlp1.0@2")]
    dla = centred(DEC_1[0]).double() * GAIN_F @ (W_U[:, 1] - W_U[:, 3]).double()
    want = node.activation / sigma * dla
    got = edge(trace, "output.logit difference", "mlp1.0@2")
    assert got == pytest.approx(float(want), rel=1e-12)


def test_the_value_of_a_row_by_hand(trace: Trace):
    stream = by_hand()["stream"]
    normed = centred(stream[1]) / by_hand()["scale"][1] * GAIN_2
    want = normed @ ENC_1.double()[:, 1] + 40.0
    row = trace.targets.row("mlp1.1@1")
    assert float(trace.target_values[row]) == pytest.approx(float(want), rel=1e-12)
    assert float(trace.edges[row].sum()) == pytest.approx(float(want), rel=1e-12)


def test_without_heads_an_edge_is_a_virtual_weight():
    """Dunefsky et al. 2024, equation 4: activation times virtual weight over the denominator."""
    spliced = hand_spliced(ov=0.0)
    trace = attribute(spliced, TOKENS, LogitDifference(1, 3))
    weights = virtual_weights(spliced, "mlp.1", "mlp.0")
    want = torch.tensor(
        [[(GAIN_2 * ENC_1[:, t]).sub((GAIN_2 * ENC_1[:, t]).mean()) @ DEC_0[s] for s in (0, 1)]
         for t in (0, 1)]
    )  # fmt: skip
    assert torch.allclose(weights, want.double())
    assert torch.equal(virtual_weights(spliced, "mlp.1", "mlp.0", target_features=[1]), weights[1:])
    scales = spliced.state(TOKENS[None]).values[Site("ln2_scale", 1)][0, :, 0]
    seen = 0
    for column in trace.sources.where(kind="feature", layer=0):
        source = trace.sources[column]
        for row in trace.targets.where(kind="feature", layer=1):
            target = trace.targets[row]
            direct = weights[target.feature, source.feature] * source.activation
            same = source.pos == target.pos
            expected = float(direct / scales[target.pos]) if same else 0.0
            assert float(trace.edges[row, column]) == pytest.approx(expected, rel=1e-12, abs=1e-14)
            seen += same and abs(expected) > 0.1
    assert seen >= 4


def test_a_direction_by_hand():
    v = torch.tensor([1.0, 0.0, 2.0, 0.0])
    targets = [DirectionTarget(Site("attn_out", 1), v, 1), DirectionTarget(Site("resid_pre", 1), v)]
    trace = attribute(hand_spliced(), TOKENS, targets, feature_rows=False)
    want = (W_E[TOKENS[0]].double() / SIGMA * GAIN_1) @ W_V.double() @ W_O.double() @ v.double() / 2
    assert edge(trace, "output.direction at attn_out1", "token@0") == pytest.approx(float(want))
    assert edge(trace, "output.direction at resid_pre1", "token@2") == float(W_E[2] @ v)
    assert edge(trace, "output.direction at resid_pre1", "token@1") == 0.0


# --- input-invariant ----------------------------------------------------------------------------


def test_fold_norm_by_hand():
    norm = Norm(torch.tensor([2.0, 1.0]), torch.zeros(2), centred=True)
    assert fold_norm(torch.tensor([[1.0, 4.0]]), norm).tolist() == [[-1.0, 1.0]]
    rms = Norm(torch.tensor([2.0, 1.0]), torch.zeros(2), centred=False)
    assert fold_norm(torch.tensor([[1.0, 4.0]]), rms).tolist() == [[2.0, 4.0]]


def test_deembedding_by_hand():
    spliced = hand_spliced()
    encoder = effective_encoder(spliced.model, spliced.placements[Site("mlp_raw_out", 0)])
    assert torch.allclose(encoder, torch.tensor([[0.75, -0.25, -0.25, -0.25], [1.5, -2.5, 0.5, 0.5]]).double())  # fmt: skip  # noqa: E501
    scores = deembed(encoder, spliced.model.W_E)
    assert scores[1].tolist() == [4.0, -2.0, 4.0, -4.0, 2.0, -4.0]
    assert deembed_feature(spliced, "mlp.0", 1, top=3)[2] == ("4", 2.0)
    assert len(deembed_feature(spliced, "mlp.0", 1, top=99)) == 6


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_deembedding_ranks_tokens_as_the_model_does(architecture: str):
    """Score over the norm's denominator, plus bias: what the encoder reads off a bare embedding."""
    spliced = models.spliced(architecture, "skip", torch.float64)
    model, placement = spliced.model, spliced.placements[Site("mlp_raw_out", 1)]
    norm = model.norm("ln2", 1)
    assert norm is not None
    x = centred(model.W_E) if norm.centred else model.W_E
    scale = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    read = (norm.linear(model.W_E, scale)) @ placement.dictionary.W_enc
    scores = deembed(effective_encoder(model, placement), model.W_E) / scale.T
    assert torch.allclose(scores, read.T, rtol=1e-9, atol=1e-9)


def test_direct_logit_attribution_by_hand():
    norm = Norm(GAIN_F, torch.ones(4), centred=True)
    dla = direct_logit_attribution(DEC_0, W_U, norm)
    # d = (1, 2, 3, 4), mean 2.5; times the gain (1, 1, 2, 1): (-1.5, -0.5, 1, 1.5)
    assert torch.allclose(dla[0], torch.tensor([-1.5, -0.5, 1.0, 1.5]) @ W_U)


def test_promoted_and_suppressed_are_relative_to_the_mean_token():
    promoted, suppressed = promoted_and_suppressed(hand_spliced(), "mlp.0", 0, top=2)
    scores = torch.tensor([-1.5, -0.5, 1.0, 1.5]) @ W_U
    scores = scores - scores.mean()
    best, worst = scores.topk(2), scores.topk(2, largest=False)
    assert [v for _, v in promoted] == pytest.approx(best.values.tolist())
    assert [v for _, v in suppressed] == pytest.approx(worst.values.tolist())
    assert {t for t, _ in suppressed} == {str(i) for i in worst.indices.tolist()}
    assert len(promoted_and_suppressed(hand_spliced(), "mlp.0", 0, top=50)[0]) == 6


def test_a_post_norm_gain_is_part_of_what_a_feature_promotes():
    """Gemma-2: the push on a logit per activation, both denominators left out, is the edge's."""
    spliced = models.spliced("gemma2", "skip", torch.float64)
    trace = attribute(spliced, models.TOKENS, LogitDifference(3, 5), feature_rows=False)
    state = spliced.state(models.TOKENS[None])
    column = trace.sources.where(kind="feature", layer=2, pos=6)[0]
    node = trace.sources[column]
    promoted, _ = promoted_and_suppressed(spliced, "mlp.2", node.feature, top=50)
    score = dict(zip(spliced.model.token_strings(range(50)), [0.0] * 50, strict=True))
    score |= dict(promoted)
    names = spliced.model.token_strings([3, 5])
    post, final = (
        state.values[site][0, -1, 0] for site in (Site("ln2_post_scale", 2), Site("final_scale"))
    )
    want = node.activation * (score[names[0]] - score[names[1]]) / post / final
    assert float(trace.edges[0, column]) == pytest.approx(float(want), rel=1e-9)


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("mlp.0", "mlp.2", "mlp.2 does not write below what mlp.0 reads; swap them"),
        ("mlp.0", "mlp.0", "does not write below"),
        ("attn_out.2", "mlp.0", "SAE at attn_out2 reads a sublayer's output"),
        ("mlp.2", "mlp.0", "resid_post1 replaces the residual stream between mlp.0 and mlp.2"),
        ("mlp.7", "mlp.0", "no dictionary at 'mlp.7'"),
    ],
)
def test_virtual_weights_refuse_paths_that_do_not_exist(target: str, source: str, message: str):
    dictionaries = {
        "mlp.0": models.transcoder(),
        "resid_post.1": models.sae("resid_post"),
        "mlp.2": models.transcoder(),
        "attn_out.2": models.sae("attn_out"),
    }
    spliced = SplicedModel(models.subject("gpt2"), dictionaries)
    with pytest.raises(ValueError, match=message):
        virtual_weights(spliced, target, source)


def test_a_post_norm_has_no_weights_only_path():
    with pytest.raises(ValueError, match="input-dependent denominator"):
        virtual_weights(models.spliced("gemma2", "skip"), "mlp.1", "mlp.0")


def test_parallel_attention_is_not_below_its_own_mlp():
    dictionaries = {
        "attn_out.1": models.sae("attn_out"),
        "mlp.1": models.transcoder(),
        "resid_post.1": models.sae("resid_post"),
    }
    parallel = SplicedModel(models.subject("neox_parallel"), dictionaries)
    with pytest.raises(ValueError, match=r"in a parallel block mlp.1 does not read"):
        virtual_weights(parallel, "mlp.1", "attn_out.1")
    assert virtual_weights(parallel, "resid_post.1", "attn_out.1").shape == (40, 40)
    sequential = SplicedModel(models.subject("neox_sequential"), dictionaries)
    assert virtual_weights(sequential, "mlp.1", "attn_out.1").shape == (40, 40)


def test_features_that_do_not_exist_are_refused():
    spliced = models.spliced("gpt2", "mixed")
    for look_up in (deembed_feature, promoted_and_suppressed):
        with pytest.raises(ValueError, match=r"feature must be in \[0, 40\), got 40"):
            look_up(spliced, "mlp.0", 40)
    with pytest.raises(ValueError, match="reads a sublayer's output, not the residual stream"):
        deembed_feature(spliced, "mlp_out.1", 0)
