"""Attribution with transcoders that read before the norm or write behind a post-norm."""

from functools import cache
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attribution import (
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    Trace,
    ablations,
    attribute,
    check_predictions,
    deembed,
    factorise,
    leaf_sources,
    signed_influence,
    split_by_path,
    virtual_weights,
)
from attribution.effects.observing import Observer
from attribution.invariant.deembedding import deembed_feature, effective_encoder, fold_norm
from attribution.invariant.expected import expected_attribution
from attribution.invariant.logits import feature_directions, promoted_and_suppressed
from attribution.invariant.pullbacks import top_pullback
from attribution.invariant.strongest import top_virtual_weights
from attribution.qk.scores import attention_score
from attribution.qk.sources import stream_sources
from attribution.qk.weights import qk_virtual_weights
from circuits import Intervention, Site, SplicedModel
from circuits.conventions import NATIVE
from graphs import CircuitGraph, CircuitRunner, build_graph, faithfulness, prune
from tests import models
from tests.attribution.test_autograd import TARGETS, CutModel, target_scalar
from tests.attribution.test_conservation import all_targets, rows_add_up
from tests.attribution.test_cross_layer_edges import expected_row
from tests.attribution.test_random_models import effects
from tests.models import D_MODEL, N_LAYERS, TOKENS
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

BATCH = TOKENS[None]
OUTPUTS = [
    LogitDifference([3, 4], [5]),
    *(DirectionTarget(Site("mlp_out", i), torch.ones(D_MODEL), pos=5) for i in range(N_LAYERS)),
    DirectionTarget(Site("resid_mid", 1), torch.linspace(-1.0, 2.0, D_MODEL), pos=4),
]
CASES = [
    *product(["gpt2"], ["each", "crossing_below"]),
    *product(["llama_gqa"], ["native_between", "crossing_among_saes"]),
    *product(["gemma2"], MIXTURES),
]
FACTORISED = [case for case in CASES if case != ("gemma2", "crossing_stream")]
"""All but cross-layer writes that each pass a post-norm with a denominator of its own."""


@cache
def traced(architecture: str, mixture: str) -> tuple[SplicedModel, Trace]:
    model = spliced(architecture, mixture)
    return model, attribute(model, TOKENS, OUTPUTS)


# --- every row adds up --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "replace"])
@pytest.mark.parametrize(("architecture", "mixture"), [*CASES, ("neox_parallel", "behind")])
def test_every_row_sums_to_its_value(architecture: str, mixture: str, mode):
    model = spliced(architecture, mixture)
    trace = attribute(model, TOKENS, [*all_targets(model), *OUTPUTS[1:4]], mode=mode)
    assert rows_add_up(trace) < 1e-10
    assert trace.conservation_error() < 1e-10
    active = model.state(BATCH, mode).activations.values()
    assert len(trace.targets) == len(trace.outputs) + sum(int(a.count_nonzero()) for a in active)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_values_are_those_of_the_model_itself(architecture: str):
    """What rows sum to against encoders on what the model computes, not the sweep's own inputs."""
    model = spliced(architecture, "each")
    trace = attribute(model, TOKENS)
    sites = [Site("resid_pre", 1), Site("attn_out", 1)]
    fresh = {site: torch.clone for site in model.model.scale_sites()}
    _, values = model.model.run(BATCH, edits=fresh, capture=sites)
    before, added = (values[site][0] for site in sites)
    dictionary = model.placements[model.write_site("mlp.1")].dictionary
    rows = trace.targets.where(kind="feature", layer=1)
    assert rows
    for row in rows:
        node = trace.targets[row]
        want = (before + added)[node.pos] @ dictionary.W_enc[:, node.feature]
        want = want + dictionary.b_enc[node.feature]
        assert float(trace.edges[row].sum()) == pytest.approx(float(want), rel=1e-9)


def test_names_are_those_of_mlps():
    """Features, errors and biases of a transcoder are the MLP's, wherever it writes."""
    trace = attribute(spliced("gemma2", "each"), TOKENS)
    here = {(n.kind, n.site) for n in trace.sources if n.kind in ("feature", "error", "bias")}
    assert here == {
        ("feature", "mlp"),
        ("error", "mlp"),
        *(("bias", name) for name in ("attn", "mlp", "final", "target")),
    }
    assert not trace.sources.where(kind="sublayer")
    saes = attribute(spliced("gemma2", "among_saes"), TOKENS)
    assert {n.site for n in saes.sources if n.kind == "feature"} == {
        *("attn_out", "mlp", "resid_post", "mlp_out")
    }
    assert saes.sources.where(kind="sublayer", layer=1, site="mlp")


# --- edges are derivatives, and effects of interventions ----------------------------------------


@pytest.mark.parametrize(("architecture", "mixture"), [*CASES, ("neox_parallel", "behind")])
def test_edges_equal_autograd_through_the_frozen_model(architecture: str, mixture: str):
    model = spliced(architecture, mixture)
    trace = attribute(model, TOKENS, TARGETS)
    cut = CutModel(model, model.state(BATCH))
    features = trace.targets.where(kind="feature")
    edges = trace.edges.clone()
    edges[:, trace.sources.where(kind="bias")] = 0.0
    for row in [*range(len(trace.outputs)), *features[:: max(1, len(features) // 12)]]:
        want = expected_row(cut, trace, target_scalar(cut, trace, row))
        error = (edges[row] - want).abs().max() / want.abs().max().clamp_min(1.0)
        assert error < 1e-10, f"{trace.targets[row].id}: {error}"


@pytest.mark.parametrize(("architecture", "mixture"), CASES)
def test_edges_are_effects_of_interventions(architecture: str, mixture: str):
    model, trace = traced(architecture, mixture)
    state = model.state(BATCH)
    kinds = (trace.sources.where(kind=k) for k in ("feature", "error", "sublayer", "token"))
    columns = [column for found in kinds for column in found[:: max(1, len(found) // 2)]]
    rounding = 1e-13 * float(trace.target_values.abs().max())
    for column in columns:
        want = effects(model, state, trace, trace.sources[column])
        gap = (trace.edges[:, column] - want).abs()
        assert (gap <= 1e-8 * want.abs().max() + rounding).all(), trace.sources[column].id


@pytest.mark.parametrize("mode", ["exact", "replace"])
@pytest.mark.parametrize("mixture", ["each", "among_saes", "crossing"])
def test_predictions_hold_in_the_frozen_model(mixture: str, mode):
    """Outputs that read an MLP's output too, which a transcoder behind a post-norm replaces."""
    model = spliced("gemma2", mixture)
    trace = attribute(model, TOKENS, OUTPUTS, mode=mode)
    at_five = [trace.sources.where(kind="feature", pos=5, layer=i, site="mlp") for i in (0, 2)]
    changes = ablations(trace, [columns[0] for columns in at_five])
    check = check_predictions(model, trace, changes, OUTPUTS)
    assert check.max_frozen_error() < 1e-7
    assert check.frozen[0, 1] != 0
    assert check.frozen[1, 3] != 0
    observer = Observer(model, model.state(BATCH, mode), trace, trace.outputs)
    assert torch.allclose(observer.observe("live"), trace.target_values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("architecture", "mixture"), CASES)
def test_all_paths_from_the_leaves_add_up_to_the_outputs(architecture: str, mixture: str):
    _, trace = traced(architecture, mixture)
    total = signed_influence(trace, sources=leaf_sources(trace)).sum(1)
    want = trace.target_values[: len(trace.outputs)]
    assert torch.allclose(total, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


# --- factors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "mixture"), FACTORISED)
def test_factors_multiply_and_paths_add_up(architecture: str, mixture: str):
    model, trace = traced(architecture, mixture)
    features = trace.targets.where(kind="feature")
    rows = [*range(len(OUTPUTS)), *features[:: max(1, len(features) // 6)]]
    for row in rows:
        split = split_by_path(model, trace, trace.targets[row].id)
        largest = float(split.values.abs().max())
        target = trace.targets[row]
        if (target.kind, target.site) == ("feature", "mlp"):  # one head at most lies between
            below = trace.sources.where(layer=target.layer - 1, site="mlp")
            below = [column for column in below if trace.sources[column].kind != "bias"]
            assert (split.remainder[below].abs() <= 1e-11 * largest).all(), target.id
        columns = trace.edges[row].abs().topk(5).indices.tolist()
        pairs = [(trace.targets[row].id, trace.sources[column].id) for column in columns]
        for column, edge in zip(columns, factorise(model, trace, pairs), strict=True):
            for path in edge.paths:
                factors = path.activation * path.attention / prod(path.scales.values())
                want = float(split.values[split.heads.index(path.head), column])
                assert factors * path.virtual_weight == pytest.approx(want, rel=1e-9)
            total = sum(path.value for path in edge.paths) + edge.remainder
            assert total == pytest.approx(edge.edge, rel=1e-9, abs=1e-12 * largest)


def test_denominators_are_those_on_the_way():
    """Behind the post-norm there is none of a post-norm, before the norm none of the target's."""
    model = spliced("gemma2", "each")  # behind, around, in the stream
    trace = attribute(model, TOKENS)
    targets = {i: trace.targets.where(kind="feature", layer=i, pos=6)[0] for i in (1, 2)}
    for target, source, want in [(1, 0, set()), (2, 0, set()), (2, 1, set())]:
        row, column = targets[target], trace.sources.where(kind="feature", layer=source, pos=6)[0]
        (edge,) = factorise(model, trace, [(trace.targets[row].id, trace.sources[column].id)])
        (direct,) = [path for path in edge.paths if path.head is None]
        assert set(direct.scales) == want
        assert direct.input_dependent == direct.activation
    native = spliced("gemma2", "native_between")  # around, native, around
    trace = attribute(native, TOKENS)
    sources = {i: trace.sources.where(kind="feature", layer=i, pos=6)[0] for i in (0, 1)}
    targets = {i: trace.targets.where(kind="feature", layer=i, pos=6)[0] for i in (1, 2)}
    for target, source, want in [(1, 0, {"ln2.1@6"}), (2, 1, {"ln2_post.1@6"}), (2, 0, set())]:
        ids = trace.targets[targets[target]].id, trace.sources[sources[source]].id
        (edge,) = factorise(native, trace, [ids])
        (direct,) = [path for path in edge.paths if path.head is None]
        assert set(direct.scales) == want


def test_cross_layer_writes_in_front_of_a_post_norm_are_still_no_product():
    model = spliced("gemma2", "crossing_stream")
    trace = attribute(model, TOKENS)
    with pytest.raises(ValueError, match="is no product of one virtual weight"):
        split_by_path(model, trace, trace.targets[0].id)


# --- weights alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", ["behind", "each", "crossing", "crossing_below"])
def test_behind_a_post_norm_virtual_weights_are_weights(mixture: str):
    """On Gemma: a direct path's weight is that of the factorisation, at every position."""
    model = spliced("gemma2", mixture)
    trace, seen = attribute(model, TOKENS), 0
    for target, source in ((2, 0), (2, 1), (1, 0)):
        weights = virtual_weights(model, f"mlp.{target}", f"mlp.{source}")
        rows = trace.targets.where(kind="feature", layer=target)
        for row in rows[:: max(1, len(rows) // 5)]:
            node = trace.targets[row]
            split = split_by_path(model, trace, node.id)
            for column in trace.sources.where(kind="feature", layer=source, pos=node.pos):
                want = float(weights[node.feature, trace.sources[column].feature])
                got = float(split.virtual_weights[split.heads.index(None), column])
                assert got == pytest.approx(want, rel=1e-9)
                seen += 1
    assert seen > 20
    strongest = top_virtual_weights(model, "mlp.2", "mlp.0", 3)
    want = virtual_weights(model, "mlp.2", "mlp.0")
    assert float(strongest.weights[0].abs()) == pytest.approx(float(want.abs().max()))
    assert top_pullback(model, "mlp.2", 0, "mlp.0")[0][0].startswith("mlp.0.")


def test_in_front_of_a_post_norm_they_stay_refused():
    native = SplicedModel(
        models.subject("gemma2"),
        {0: models.transcoder(), 1: of(STREAM, models.transcoder()), 2: models.transcoder()},
    )
    for source in ("mlp.0", "mlp.1"):
        with pytest.raises(ValueError, match=f"normalises what {source} writes"):
            virtual_weights(native, "mlp.2", source)
    behind = SplicedModel(
        models.subject("gemma2"), {0: of(BEHIND, models.transcoder()), 2: models.transcoder()}
    )
    assert virtual_weights(behind, "mlp.2", "mlp.0").any()
    with pytest.raises(ValueError, match=r"normalises what head 1.0 writes"):
        virtual_weights(behind, "mlp.2", "mlp.0", head=(1, 0))
    with pytest.raises(ValueError, match=r"mlp.2 does not write below what mlp.0 reads"):
        virtual_weights(behind, "mlp.0", "mlp.2")


def test_what_reads_the_stream_reads_through_heads():
    """Of its own layer too, as the stream between attention and MLP has what they wrote."""
    model = spliced("gpt2", "each")
    trace = attribute(model, TOKENS)
    weights = virtual_weights(model, "mlp.1", "mlp.0", head=(1, 2))
    row = trace.targets.where(kind="feature", layer=1, pos=6)[0]
    node = trace.targets[row]
    split = split_by_path(model, trace, node.id)
    columns = trace.sources.where(kind="feature", layer=0)
    got = split.virtual_weights[split.heads.index((1, 2)), columns]
    want = weights[node.feature, [trace.sources[column].feature for column in columns]]
    assert columns
    assert torch.allclose(got, want, rtol=1e-9)


def test_readers_of_the_stream_have_no_norm_to_fold():
    model = spliced("gpt2", "each")
    for layer, reads_stream in ((0, False), (1, True), (2, True)):
        placement = model.placements[model.write_site(f"mlp.{layer}")]
        encoder = placement.dictionary.W_enc.T
        norm = model.model.norm("ln2", layer)
        assert norm is not None
        want = encoder if reads_stream else fold_norm(encoder, norm)
        assert torch.equal(effective_encoder(model.model, placement), want)
    scores = deembed(
        model.placements[model.write_site("mlp.1")].dictionary.W_enc.T, model.model.W_E
    )
    assert deembed_feature(model, "mlp.1", 3)[0][1] == float(scores[3].max())


def test_writes_behind_a_post_norm_are_decoder_rows():
    model = spliced("gemma2", "crossing")
    placement = model.placements[Site("mlp_out", 0)]
    assert torch.equal(
        feature_directions(model.model, placement), placement.dictionary.W_dec.sum(1)
    )
    W_U, norm = model.model.W_U, model.model.norm("final")
    assert norm is not None
    logits = placement.dictionary.W_dec[4].sum(0) @ fold_norm(W_U.T, norm).T
    promoted, suppressed = promoted_and_suppressed(model, "mlp.0", 4)
    assert promoted[0][1] == pytest.approx(float((logits - logits.mean()).max()))
    assert suppressed[0][1] == pytest.approx(float((logits - logits.mean()).min()))


def mean_direct_edges(model: SplicedModel, prompts: Tensor, first: int) -> tuple[Tensor, int]:
    """Direct paths from layer 0's features to layer 1's, position by position from `first` on."""
    sums, n = torch.zeros(40, 40).double(), 0
    for prompt in prompts:
        trace = attribute(model, prompt)
        n += len(prompt) - first
        for row in trace.targets.where(kind="feature", layer=1):
            node = trace.targets[row]
            if node.pos < first:
                continue
            split = split_by_path(model, trace, node.id)
            values = split.values[split.heads.index(None)]
            for column in trace.sources.where(kind="feature", layer=0, pos=node.pos):
                sums[node.feature, trace.sources[column].feature] += values[column]
    return sums / n, n


@pytest.mark.parametrize("first", [0, 1])
def test_expected_attribution_is_the_mean_direct_edge(first: int):
    prompts = torch.stack([TOKENS, TOKENS.flip(0)])
    convention = AROUND.model_copy(update={"first_position": ("read", "left out")[first]})
    parts = {
        0: of(BEHIND, models.transcoder("relu")),
        1: of(convention, models.transcoder("relu", seed=1)),
    }
    model = SplicedModel(models.subject("gemma2", torch.float64), parts)
    found = expected_attribution(model, [prompts], "mlp.1", "mlp.0")
    want, n = mean_direct_edges(model, prompts, first)
    assert found.n_positions == n
    assert want.any()
    assert torch.allclose(found.attribution, want, rtol=1e-9, atol=1e-10)


# --- attention scores ---------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "mixture"), FACTORISED)
def test_sources_add_up_to_the_stream(architecture: str, mixture: str):
    model = spliced(architecture, mixture)
    state = model.state(BATCH)
    names = {n.id for n in traced(architecture, mixture)[1].sources if n.kind == "feature"}
    for layer, pos in product(range(N_LAYERS), (0, 5)):
        sources = stream_sources(model, state, layer, pos)
        got = sources.coefficients @ sources.directions
        want = state.values[Site("resid_pre", layer)][0, pos]
        assert (got - want).abs().max() < 1e-10 * want.abs().max()
        assert len({node.id for node in sources.nodes}) == len(sources.nodes)
        assert {n.id for n in sources.nodes if n.kind == "feature"} <= names


@pytest.mark.parametrize("mixture", ["each", "crossing"])
def test_scores_behind_post_norms_are_sums_of_weights(mixture: str):
    model = spliced("gemma2", mixture)
    score = attention_score(model, TOKENS, 2, 1, key=3)
    assert score.conservation_error() < 1e-9
    assert score.score == pytest.approx(float(score.pairs.sum()), rel=1e-9)
    weights = qk_virtual_weights(model, "mlp.0", "mlp.1", 2, 1, offset=3)
    rows = score.query_sources.where(kind="feature", layer=0)
    columns = score.key_sources.where(kind="feature", layer=1)
    features = [score.query_sources[i].feature for i in rows]
    others = [score.key_sources[i].feature for i in columns]
    assert rows
    assert columns
    want = weights[features][:, others]
    gap = (score.invariant[rows][:, columns] - want).abs().max()
    assert gap < 1e-6 * want.abs().max()  # rotary tables are of float32


# --- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", ["each", "among_saes", "crossing"])
@norms_in_float64()
def test_names_survive_a_graph_file_and_circuits_run(mixture: str, tmp_path: Path):
    model = spliced("gemma2", mixture)
    graph = build_graph(attribute(model, TOKENS, OUTPUTS[0]))
    graph.save(tmp_path / "graph.json")
    loaded = CircuitGraph.load(tmp_path / "graph.json")
    assert [node.id for node in loaded.nodes] == [node.id for node in graph.nodes]
    for node in loaded.nodes:
        if node.kind in ("feature", "error"):
            assert model.placements[model.write_site(f"{node.site}.{node.layer}")]
    corrupted = TOKENS.clone()
    corrupted[:4] = torch.tensor([8, 2, 33, 21])
    runner = CircuitRunner.on_prompts(model, BATCH, corrupted[None])
    circuit = prune(loaded, "influence", node_threshold=0.6, edge_threshold=0.9)
    assert 3 < circuit.n_nodes < graph.n_nodes

    def metric(logits: Tensor) -> Tensor:
        return logits[..., 3] - logits[..., 5]

    whole = faithfulness(runner, graph.nodes, metric)
    assert whole.faithfulness == pytest.approx(1.0, abs=1e-9)
    assert whole.kl == pytest.approx(0.0, abs=1e-9)
    assert faithfulness(runner, circuit.nodes, metric).faithfulness != pytest.approx(1.0, abs=1e-6)
    empty = runner.logits(graph.nodes, torch.zeros(1, graph.n_nodes, dtype=torch.bool))[0]
    assert torch.allclose(empty, runner.empty_logits, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mixture", ["each", "crossing"])
@norms_in_float64()
def test_patching_one_feature_is_the_intervention(mixture: str):
    """Of the highest dictionary, so that errors above, held here and live there, do not differ."""
    model = spliced("gemma2", mixture)
    nodes = build_graph(attribute(model, TOKENS, OUTPUTS[0])).nodes
    runner = CircuitRunner.on_prompts(model, BATCH, TOKENS.flip(0)[None])
    write = model.write_site("mlp.2")
    patchable = runner.patchable(nodes)
    rows = [row for row in nodes.where(kind="feature", layer=2) if patchable[row]]
    assert rows
    for row in rows[:: max(1, len(rows) // 5)]:
        node = nodes[row]
        kept = torch.arange(len(nodes)) != row
        value = float(runner.other.activations[write][0, node.pos, node.feature])
        change = Intervention("mlp.2", node.feature, "set", value, positions=[node.pos])
        want = model.run(BATCH, "exact", interventions=[change]).logits[0, -1]
        assert torch.allclose(runner.logits(nodes, kept[None])[0, 0], want, rtol=1e-9, atol=1e-9)
        assert node.pos < 6 or (want - runner.full_logits[0]).abs().max() > 1e-6


# --- bad targets --------------------------------------------------------------------------------


def test_the_stream_between_sublayers_is_a_target_where_there_is_one():
    direction = DirectionTarget(Site("resid_mid", 1), torch.ones(D_MODEL))
    trace = attribute(spliced("gpt2", "one"), TOKENS, direction)
    state = spliced("gpt2", "one").state(BATCH)
    want = float(state.values[Site("resid_mid", 1)][0, -1].sum())
    assert float(trace.target_values[0]) == pytest.approx(want)
    with pytest.raises(ValueError, match=r"'attn_out', 'mlp_in'.* in a layer .* got resid_mid1"):
        attribute(spliced("neox_parallel", "behind"), TOKENS, direction)


def test_a_feature_target_is_called_by_its_mlp():
    model = spliced("gemma2", "crossing")
    trace = attribute(model, TOKENS, FeatureTarget("mlp.1", 2, pos=3), feature_rows=False)
    assert trace.outputs[0].name == "mlp1.2"
    assert trace.outputs[0].site == Site("resid_mid", 1)
    by_site = attribute(model, TOKENS, FeatureTarget(Site("mlp_out", 1), 2, pos=3))
    assert torch.allclose(by_site.edges[0], trace.edges[0], rtol=1e-10, atol=1e-12)


def test_another_convention_is_another_set():
    """Cross-layer writes behind the post-norm, in one model with none at all."""
    native = SplicedModel(models.subject("gpt2", torch.float64), crossing(NATIVE))
    behind = SplicedModel(models.subject("gpt2", torch.float64), crossing(BEHIND))
    one, other = (attribute(m, TOKENS, OUTPUTS) for m in (native, behind))
    assert [node.id for node in one.sources] == [node.id for node in other.sources]
    assert torch.equal(one.edges, other.edges), "without a post-norm both places are one"
