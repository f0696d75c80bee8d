"""What weights alone say of cross-layer features, attention scores, and circuits made of them.

Against plain transcoders that write at once what a cross-layer one writes below the reader.
"""

import pytest
import torch
from torch import Tensor

from attribution import (
    LogitDifference,
    attribute,
    deembed_feature,
    expected_attribution,
    isotropic_significance,
    matched_significance,
    promoted_and_suppressed,
    pullback,
    pullback_on_prompt,
    qk_virtual_weights,
    top_pullback,
    top_qk_virtual_weights,
    top_sources,
    top_virtual_weights,
    virtual_weights,
)
from attribution.invariant.logits import feature_directions
from attribution.qk.scores import attention_row, attention_score
from attribution.qk.sources import stream_sources
from circuits import Dictionary, Site, SplicedModel, Transcoder
from graphs import build_graph, faithfulness, prune
from graphs.faithfulness import kl_to_model
from graphs.scorer import CircuitRunner
from tests import models
from tests.cross_layer import ARCHITECTURES, MIXTURES, MLPS, N_FEATURES, mixed, rebuilt, spliced
from tests.models import D_MODEL, N_LAYERS, TOKENS

BATCH = TOKENS[None]


def writing_at_once(source: int, n_slots: int, mixture: str = "whole") -> Transcoder:
    """The plain transcoder whose features write the sum of the first slots."""
    part = mixed(mixture)[f"mlp.{source}"].to(dtype=torch.float64)
    return rebuilt(Transcoder, part, W_dec=part.W_dec[:, :n_slots].sum(1))


def plain_pair(source: int, n_slots: int, target: Dictionary, place: str) -> SplicedModel:
    """Only the two dictionaries of a route, both plain."""
    if place.startswith("mlp"):
        target = rebuilt(Transcoder, target, W_dec=target.decoder())
    pair = {f"mlp.{source}": writing_at_once(source, n_slots), place: target}
    return SplicedModel(models.subject("gpt2", torch.float64), pair)


ROUTES = [
    ("mlp.2", 0, None, 2),  # what is written to layers 0 and 1
    ("mlp.1", 0, None, 1),
    ("mlp.2", 1, None, 1),
    ("mlp.2", 0, (2, 1), 2),  # the head reads both
    ("mlp.2", 0, (1, 3), 1),  # below this head lies layer 0 alone
    ("resid_post.2", 0, None, 3),
    ("resid_post.2", 1, None, 2),
    ("resid_post.2", 0, (2, 0), 2),
]


@pytest.mark.parametrize(("target", "source", "head", "n_slots"), ROUTES)
def test_virtual_weights_sum_over_what_is_written_below(
    target: str, source: int, head: tuple[int, int] | None, n_slots: int
):
    saes = {"resid_post.2": models.sae("resid_post", seed=4)}
    dictionaries: dict[str, Dictionary] = {**mixed("whole"), **saes}
    model = SplicedModel(models.subject("gpt2", torch.float64), dictionaries)
    plain = plain_pair(source, n_slots, dictionaries[target], target)
    ends = target, f"mlp.{source}"
    want = virtual_weights(plain, *ends, head=head)
    assert want.abs().max() > 0.1
    assert torch.allclose(virtual_weights(model, *ends, head=head), want, rtol=1e-12, atol=1e-12)
    some = {"target_features": [3, 1], "source_features": [5]}
    picked = virtual_weights(model, *ends, head=head, **some)
    assert torch.allclose(picked, want[[3, 1]][:, [5]], rtol=1e-12, atol=1e-12)
    ours, theirs = (top_virtual_weights(m, *ends, 20, head=head) for m in (model, plain))
    assert torch.equal(ours.sources, theirs.sources)
    assert torch.allclose(ours.weights, theirs.weights, rtol=1e-10)
    best = top_sources(model, *ends, 3, head=head)
    assert torch.equal(best.sources, top_sources(plain, *ends, 3, head=head).sources)
    assert torch.allclose(pullback(model, target, 2, ends[1], head=head), want[2], atol=1e-12)
    assert top_pullback(model, target, 2, ends[1], head=head)[0][0].startswith(f"mlp.{source}.")
    for significance in (isotropic_significance, matched_significance):
        one, other = (significance(m, *ends, ours, head=head) for m in (model, plain))
        assert torch.allclose(one.z, other.z, rtol=1e-8)
        assert torch.allclose(one.p, other.p, rtol=1e-8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_direct_edge_is_a_virtual_weight(architecture: str):
    """At one position, and in a block that is not parallel with those through each head."""
    model = spliced(architecture)
    trace = attribute(model, TOKENS[:1], LogitDifference(3, 5))  # one position
    weights = virtual_weights(model, "mlp.2", "mlp.1")
    state = model.state(TOKENS[None, :1])
    ln1, ln2 = (state.values[Site(k, 2)][0, 0, 0] for k in ("ln1_scale", "ln2_scale"))
    if not model.model.parallel:
        for head in range(4):
            weights = weights + virtual_weights(model, "mlp.2", "mlp.1", head=(2, head)) / ln1
    seen = 0
    for column in trace.sources.where(kind="feature", layer=1):
        source = trace.sources[column]
        for row in trace.targets.where(kind="feature", layer=2):
            target = trace.targets[row]
            want = source.activation * weights[target.feature, source.feature] / ln2
            assert float(trace.edges[row, column]) == pytest.approx(float(want), rel=1e-9)
            seen += 1
    assert seen > 3


def test_routes_that_an_sae_cuts_are_refused():
    model = spliced("gpt2", "below_sae")
    with pytest.raises(ValueError, match="resid_post1 replaces the residual stream between"):
        virtual_weights(model, "mlp.2", "mlp.0")
    with pytest.raises(ValueError, match=r"mlp.2 does not write below what mlp.1 reads"):
        virtual_weights(model, "mlp.1", "mlp.2")


def test_logits_sum_over_all_writes():
    model = spliced("gpt2")
    plain = SplicedModel(model.model, {0: writing_at_once(0, 3)})
    ours, theirs = (promoted_and_suppressed(m, "mlp.0", 4, top=7) for m in (model, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert [token for token, _ in one] == [token for token, _ in other]
        assert [x for _, x in one] == pytest.approx([x for _, x in other])
    assert deembed_feature(model, "mlp.0", 4) == deembed_feature(plain, "mlp.0", 4)


def test_behind_a_post_norm_no_sum_of_weights_exists():
    model = spliced("gemma2")
    placement = model.placements[MLPS[0]]
    with pytest.raises(ValueError, match=r"one input-dependent denominator a layer.* mlp.0 write"):
        promoted_and_suppressed(model, "mlp.0", 4)
    with pytest.raises(ValueError, match="has no weights-only form"):
        attention_score(model, TOKENS, 2, 0, key=1)
    with pytest.raises(ValueError, match="input-dependent denominator"):
        virtual_weights(model, "mlp.2", "mlp.0")
    last = feature_directions(model.model, model.placements[MLPS[2]])
    assert last.shape == (N_FEATURES, D_MODEL), "the last layer's write to one place"
    assert placement.dictionary.n_writes == N_LAYERS


def test_pullback_on_a_prompt_weighs_by_activations():
    model = spliced("gpt2")
    scores = pullback_on_prompt(model, TOKENS, "mlp.2", 3, "mlp.0", pos=4)
    a = model.state(BATCH).activations[MLPS[0]][0, 4]
    assert torch.allclose(scores, pullback(model, "mlp.2", 3, "mlp.0") * a, rtol=1e-12)
    assert scores.any()


def test_expected_attribution_is_the_mean_edge():
    """In a parallel block nothing attends between the MLPs of one layer and the next."""
    model = spliced("neox_parallel")
    prompts = torch.stack([TOKENS, TOKENS.flip(0)])
    found = expected_attribution(model, [prompts], "mlp.1", "mlp.0")
    sums = torch.zeros(N_FEATURES, N_FEATURES, dtype=torch.float64)
    for prompt in prompts:
        trace = attribute(model, prompt, LogitDifference(1, 2))
        for row in trace.targets.where(kind="feature", layer=1):
            target = trace.targets[row]
            for column in trace.sources.where(kind="feature", layer=0, pos=target.pos):
                sums[target.feature, trace.sources[column].feature] += trace.edges[row, column]
    assert torch.allclose(found.attribution, sums / prompts.numel(), atol=1e-9)
    assert sums.any()


# --- attention scores ---------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", [*MIXTURES])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_add_up_to_the_stream(architecture: str, mixture: str):
    """To what the layer reads, on the true model: SAEs' reconstructions and errors included."""
    model = spliced(architecture, mixture)
    state = model.state(BATCH)
    for layer in range(N_LAYERS):
        for pos in (0, 5):
            sources = stream_sources(model, state, layer, pos)
            got = sources.coefficients @ sources.directions
            want = state.values[Site("resid_pre", layer)][0, pos]
            assert (got - want).abs().max() < 1e-10 * want.abs().max()
            assert len({node.id for node in sources.nodes}) == len(sources.nodes)


@pytest.mark.parametrize("mixture", ["whole", "among_saes", "below_sae"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pairs_add_up_to_the_score(architecture: str, mixture: str):
    model = spliced(architecture, mixture)
    score = attention_score(model, TOKENS, 2, 1, key=3)
    pairs = score.query_factors[:, None] * score.invariant * score.key_factors
    assert float(pairs.sum()) == pytest.approx(score.score, rel=1e-9)
    row = attention_row(model, TOKENS, 2, 1)
    assert torch.allclose(row.by_query_source.sum(0), row.scores, rtol=1e-9)


def test_qk_virtual_weights_are_the_scores_own_factors():
    """Of features of layer 0 at the query and of layer 1 at the key, for a head of layer 2. The
    tables of the rotation are float32.
    """
    model = spliced("llama_gqa")
    score = attention_score(model, TOKENS, 2, 1, key=3)
    weights = qk_virtual_weights(model, "mlp.0", "mlp.1", 2, 1, offset=len(TOKENS) - 1 - 3)
    seen = 0
    for i in score.query_sources.where(kind="feature", layer=0):
        for j in score.key_sources.where(kind="feature", layer=1):
            q, k = score.query_sources[i].feature, score.key_sources[j].feature
            assert float(score.invariant[i, j]) == pytest.approx(float(weights[q, k]), rel=1e-6)
            seen += 1
    assert seen > 3
    best = top_qk_virtual_weights(model, "mlp.0", "mlp.1", 2, 1, offset=3, top=5)
    assert best.values.abs().max() == pytest.approx(float(weights.abs().max()))


def test_an_sae_in_front_of_the_first_layer_writes_what_its_heads_read():
    model = spliced("gpt2", "above_sae")
    decoder = model.placements[Site("resid_pre")].dictionary.W_dec
    weights, ln1 = model.model.query_key(0), model.model.norm("ln1", 0)
    assert ln1 is not None
    read = ln1.linear(decoder, decoder.new_ones(1))
    want = weights.scale * (read @ weights.W_Q[1]) @ (read @ weights.W_K[1]).T
    got = qk_virtual_weights(model, "resid_pre.0", "resid_pre.0", 0, 1)
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)


# --- circuits -----------------------------------------------------------------------------------


def metric(logits: Tensor) -> Tensor:
    return logits[:, 3] - logits[:, 5]


@pytest.mark.parametrize("architecture", ["gpt2", "neox_parallel"])
def test_graphs_are_built_pruned_and_tested(architecture: str):
    """Patched runs on prompts that line up; ACDC in fractions of what patching all does."""
    model = spliced(architecture)
    graph = build_graph(attribute(model, TOKENS, LogitDifference(3, 5)))
    runner = CircuitRunner.on_prompts(model, BATCH, BATCH.roll(1, 1))
    nodes = list(graph.nodes)

    def score(kept: Tensor) -> Tensor:
        return kl_to_model(runner.full_logits, runner.logits(nodes, kept)).mean(1)

    whole = faithfulness(runner, nodes, metric)
    assert whole.faithfulness == pytest.approx(1.0, abs=1e-3)
    worst = float(kl_to_model(runner.full_logits, runner.empty_logits).mean())
    circuit = prune(graph, method="acdc", score=score, threshold=0.005 * worst)
    few = prune(graph, method="influence", node_threshold=0.6)
    for smaller in (circuit, few):
        assert 1 < len(smaller.nodes) < len(nodes)
        layers = {n.layer for n in smaller.nodes if n.kind == "feature"}
        assert layers
    kept = torch.tensor([[node.id in {n.id for n in circuit.nodes} for node in nodes]])
    found = faithfulness(runner, list(circuit.nodes), metric)
    assert found.kl == pytest.approx(float(score(kept)), abs=1e-9)
    assert found.kl < 0.5 * worst
