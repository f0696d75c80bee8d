"""De-embedding through a head, and through layer 0 as the model itself computes it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attribution.invariant.deembedding import (
    deembed,
    deembed_feature,
    deembed_feature_through_head,
    effective_encoder,
    encoder_through_head,
)
from attribution.invariant.extended import (
    deembed_feature_extended,
    extended_embedding,
    standardise_rows,
)
from circuits import Site, SplicedModel, SubjectModel
from circuits.subject import Norm
from tests import models
from tests.attribution.test_closed_form import (
    ENC_1,
    GAIN_1,
    GAIN_2,
    W_E,
    W_O,
    W_V,
    centred,
    hand_spliced,
)

ALL = torch.arange(models.D_VOCAB)


# --- through a head -----------------------------------------------------------------------------


@pytest.mark.parametrize("head", [0, 1])
def test_through_a_head_by_hand(head: int):
    part = slice(2 * head, 2 * head + 2)
    reader = centred(W_V[:, part] @ W_O[part] @ centred(GAIN_2 * ENC_1[:, 1]) * GAIN_1)
    want = (W_E @ reader).double()
    got = deembed_feature_through_head(hand_spliced(), "mlp.1", 1, (1, head), top=9)
    scores, order = want.sort(descending=True, stable=True)  # head 1 leaves two values only
    assert [token for token, _ in got] == [str(token) for token in order.tolist()]
    assert [score for _, score in got] == pytest.approx(scores.tolist())
    assert scores[0] > 1 > scores[-1]


@pytest.mark.parametrize(
    ("site", "layer"), [("mlp.1", 0), ("resid_post.1", 0), ("resid_post.1", 1)]
)
@pytest.mark.parametrize(
    "architecture", ["gpt2", "neox_parallel", "neox_sequential", "llama_gqa", "qwen2"]
)
def test_through_a_head_is_what_the_head_carries_of_an_embedding(
    architecture: str, site: str, layer: int
):
    """One token alone, nothing but the embedding on the stream, every other head off.

    Each value changes by the score, over the denominators, when the head is switched on.
    """
    name, place = site.split(".")[0], {"mlp.1": models.transcoder(), "resid_post.1": None}[site]
    spliced = SplicedModel(
        models.subject(architecture, torch.float64), {site: place or models.sae(name)}
    )
    model, head = spliced.model, 2
    placement = spliced.placements[spliced.write_site(site)]
    state = spliced.state(ALL[:, None])
    embedding = state.values[Site("embed")]
    heads = model.heads(layer)

    def read(on: float) -> Tensor:
        zero: Callable[[Tensor], Tensor] = torch.zeros_like
        switch = torch.zeros(1, model.n_heads, 1, 1, dtype=torch.float64)
        switch[:, head] = on
        edits = {Site("mlp_raw_out", i): zero for i in range(model.n_layers)}
        edits |= {Site("pattern", i): zero for i in range(model.n_layers)}
        edits[Site("pattern", layer)] = lambda p: p * switch
        edits |= {s: (lambda x: torch.ones_like(x)) for s in model.scale_sites()}
        edits[Site("resid_pre", 0)] = lambda _: embedding
        _, values = model.run(ALL[:, None], edits=edits, capture=[placement.read])
        return values[placement.read][:, 0] @ placement.dictionary.W_enc

    norm = model.norm("ln1", layer)
    assert norm is not None
    constant = norm.bias @ heads.W_V[head] + heads.b_V[head] if layer == 0 else None
    scores = deembed(encoder_through_head(model, placement, (layer, head)), embedding[:, 0])
    moved = (read(1.0) - read(0.0)).T
    shift = moved - scores  # of the biases: the same for every token
    assert (shift - shift.mean(1, keepdim=True)).abs().max() < 1e-10 * scores.abs().max()
    assert scores.std(1).min() > 1e-3
    if constant is not None:
        written = constant @ heads.W_O[head]
        assert torch.allclose(shift[:, 0], effective_encoder(model, placement) @ written)


@pytest.mark.parametrize(
    ("site", "feature", "head", "message"),
    [
        ("mlp.0", 0, (1, 0), "head 1.0 does not write below what mlp.0 reads"),
        ("mlp.0", 40, (0, 0), r"feature must be in \[0, 40\), got 40"),
        ("mlp.0", 0, (0, 4), r"head in \[0, 4\), got \(0, 4\)"),
        ("mlp.7", 0, (0, 0), "no dictionary at 'mlp.7'"),
        ("mlp_out.1", 0, (0, 0), "reads a sublayer's output"),
        ("attn_out.1", 0, (0, 0), "reads the heads of layer 1, got head 0.0"),
    ],
)
def test_heads_that_a_feature_cannot_read_through_are_refused(
    site: str, feature: int, head: tuple[int, int], message: str
):
    with pytest.raises(ValueError, match=message):
        deembed_feature_through_head(models.spliced("gpt2", "mixed"), site, feature, head)
    with pytest.raises(ValueError, match=r"normalises what head 0.0 writes"):
        deembed_feature_through_head(models.spliced("gemma2", "mixed"), "mlp.2", 0, (0, 0))


# --- through layer 0 ----------------------------------------------------------------------------


def normed(x: Tensor, norm: Norm, eps: float) -> Tensor:
    x = centred(x) if norm.centred else x
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * norm.gain + norm.bias


def layer_0_by_hand(architecture: str, attend: bool) -> Tensor:
    """The MLP's own module on norms written out; a model of its own, so that nothing is shared."""
    hf = models.hf_model(architecture, torch.float64)
    config, ours = hf.config, models.subject(architecture, torch.float64)
    eps = next(
        getattr(config, name)
        for name in ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
        if hasattr(config, name)
    )
    root = float(torch.tensor(models.D_MODEL**0.5))  # Gemma's factor, which is float32
    x = ours.W_E * (root if architecture == "gemma2" else 1.0)
    ln1, ln2 = ours.norm("ln1", 0), ours.norm("ln2", 0)
    assert ln1 is not None
    assert ln2 is not None
    attention = torch.zeros_like(x)
    if attend:
        heads = ours.heads(0)
        values = torch.einsum("vd,hde->vhe", normed(x, ln1, eps), heads.W_V) + heads.b_V
        attention = torch.einsum("vhe,hed->vd", values, heads.W_O) + heads.b_O
    if attend and (post := ours.norm("ln1_post", 0)) is not None:
        attention = normed(attention, post, eps)
    blocks = {"gpt2": "transformer", "neox": "gpt_neox"}.get(architecture.split("_")[0], "model")
    base = getattr(hf, blocks)
    block = (base.h if blocks == "transformer" else base.layers)[0]
    reads = x if ours.parallel else x + attention
    written = block.mlp(normed(reads, ln2, eps)[:, None])[:, 0].detach()
    if (post := ours.norm("ln2_post", 0)) is not None:
        written = normed(written, post, eps)
    return x + attention + written


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_the_extended_embedding_is_layer_0_written_out(architecture: str, attend: bool):
    model = models.subject(architecture, torch.float64)
    got = extended_embedding(model, attend_to_itself=attend)
    want = layer_0_by_hand(architecture, attend)
    assert got.shape == (models.D_VOCAB, models.D_MODEL)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-10)
    assert (got - model.W_E).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ["gpt2", "neox_parallel", "gemma2"])
def test_chunks_do_not_matter_and_progress_counts_tokens(architecture: str):
    model, seen = models.subject(architecture, torch.float64), []
    parts = extended_embedding(
        model, chunk=17, progress=lambda done, total: seen.append((done, total))
    )
    assert torch.allclose(parts, extended_embedding(model), rtol=1e-12, atol=1e-14)
    assert seen == [(17, 50), (34, 50), (50, 50)]


def test_the_layers_above_do_not_run_and_the_model_is_as_before(monkeypatch: pytest.MonkeyPatch):
    model = models.subject("gpt2", torch.float64)
    before, _ = model.run(models.TOKENS[None])
    reached: list[int] = []
    run = SubjectModel.run

    def watched(self: SubjectModel, tokens: Tensor, *, edits: dict, capture: tuple = ()):
        def arrive(value: Tensor) -> Tensor:
            reached.append(1)
            return value

        return run(self, tokens, edits={**edits, Site("resid_pre", 1): arrive}, capture=capture)

    monkeypatch.setattr(SubjectModel, "run", watched)
    extended_embedding(model)
    watched(model, models.TOKENS[None], edits={})
    assert len(reached) == 1  # the second run alone
    monkeypatch.undo()
    assert torch.equal(model.run(models.TOKENS[None])[0], before)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_extended_scores_are_what_the_next_layer_reads(architecture: str):
    """With attention off, `score / sigma + bias` is the pre-activation on each token."""
    spliced = models.spliced(architecture, "skip", torch.float64)
    model, placement = spliced.model, spliced.placements[Site("mlp_raw_out", 1)]
    values: dict[str, Tensor] = {}
    edits: dict[Site, Callable[[Tensor], Tensor]] = {s: torch.clone for s in model.scale_sites()}
    edits |= {Site("attn_out", layer): torch.zeros_like for layer in (0, 1)}
    edits[Site("embed")] = lambda x: values.setdefault("x", x)
    edits[Site("resid_pre", 0)] = lambda _: values["x"]
    wanted = [Site("mlp_in", 1), Site("ln2_scale", 1)]
    _, seen = model.run(ALL[:, None], edits=edits, capture=wanted)
    read = seen[Site("mlp_in", 1)][:, 0] @ placement.dictionary.W_enc
    norm = model.norm("ln2", 1)
    assert norm is not None
    scale, bias = seen[Site("ln2_scale", 1)][:, 0], norm.bias @ placement.dictionary.W_enc
    extended = extended_embedding(model)
    scores = deembed(effective_encoder(model, placement), extended)
    assert torch.allclose(scores.T / scale + bias, read, rtol=1e-9, atol=1e-10)
    standard = deembed(effective_encoder(model, placement), standardise_rows(extended, norm))
    assert torch.allclose(standard.T + bias, read, rtol=1e-3, atol=1e-3)  # but for epsilon
    ranked = deembed_feature_extended(spliced, "mlp.1", 3, top=5)
    best = scores[3].topk(5)
    assert [token for token, _ in ranked] == list(model.token_strings(best.indices))
    assert [score for _, score in ranked] == pytest.approx(best.values.tolist())
    given = deembed_feature_extended(spliced, "mlp.1", 3, top=5, embedding=-extended)
    assert given[0][1] == pytest.approx(-float(scores[3].min()))
    assert ranked != deembed_feature(spliced, "mlp.1", 3, top=5)


def test_standardise_rows_by_hand():
    rows = torch.tensor([[1.0, 3.0], [0.0, 0.0], [-4.0, 4.0]])
    layer_norm, rms = (Norm(torch.ones(2), torch.ones(2), centred) for centred in (True, False))
    assert standardise_rows(rows, layer_norm).tolist() == [[-1, 1], [0, 0], [-1, 1]]
    want = rows / torch.tensor([[5.0**0.5], [1.0], [4.0]])
    assert torch.allclose(standardise_rows(rows, rms), want)


def test_a_feature_inside_layer_0_does_not_read_the_extended_embedding():
    spliced = models.spliced("gpt2", "mixed")
    with pytest.raises(ValueError, match=r"mlp.0 reads below the top of layer 0"):
        deembed_feature_extended(spliced, "mlp.0", 0)
    with pytest.raises(ValueError, match=r"feature must be in \[0, 40\), got -1"):
        deembed_feature_extended(spliced, "mlp.2", -1)
    with pytest.raises(ValueError, match="reads a sublayer's output"):
        deembed_feature_extended(spliced, "attn_out.1", 0)
    residual = models.spliced("gpt2", "residual")
    assert len(deembed_feature_extended(residual, "resid_post.0", 0)) == 10
    with pytest.raises(ValueError, match=r"resid_pre.0 reads below the top"):
        deembed_feature_extended(residual, "resid_pre.0", 0)
