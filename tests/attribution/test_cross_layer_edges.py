"""Edges from cross-layer features: they add up over all places written to, and stay exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attribution import (
    DirectionTarget,
    LogitDifference,
    Node,
    TopLogits,
    Trace,
    attribute,
    attribute_batch,
    check_predictions,
    factorise,
    leaf_sources,
    sample_ablations,
    signed_influence,
    split_by_path,
    top_paths,
)
from attribution.invariant.deembedding import fold_norm
from circuits import Intervention, Site, SplicedModel
from circuits.dictionaries import CrossLayerTranscoder
from tests import models
from tests.attribution.test_autograd import TARGETS, CutModel, source_vector, target_scalar
from tests.attribution.test_closed_form import (
    B_ENC_1,
    DEC_0,
    DEC_1,
    ENC_0,
    ENC_1,
    GAIN_1,
    GAIN_F,
    SIGMA,
    W_O,
    W_U,
    W_V,
    by_hand,
    centred,
    hand_model,
)
from tests.attribution.test_closed_form import TOKENS as HAND_TOKENS
from tests.attribution.test_conservation import all_targets, rows_add_up
from tests.attribution.test_random_models import EXAMPLES, effects
from tests.cross_layer import (
    ARCHITECTURES,
    MIXTURES,
    cross_layer,
    own_layer_only,
    rebuilt,
    spliced,
    whole,
    without_later_writes,
)
from tests.models import D_MODEL, N_LAYERS, TOKENS
from tests.random_models import BOS, D_VOCAB, Shape, shapes, subject

OUTPUTS = [LogitDifference([3, 4], [5]), TopLogits(max_n=2, pos=3)]


def every_target(model: SplicedModel) -> list:
    """One of every kind, and directions with nothing but what a single MLP adds."""
    outs = [
        DirectionTarget(Site("mlp_out", i), torch.ones(D_MODEL), pos=5) for i in range(N_LAYERS)
    ]
    return [*all_targets(model), *outs]


# --- every row adds up --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "replace"])
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_every_row_sums_to_its_value(architecture: str, mixture: str, mode):
    model = spliced(architecture, mixture)
    trace = attribute(model, TOKENS, every_target(model), mode=mode)
    assert rows_add_up(trace) < 1e-10
    assert trace.conservation_error() < 1e-10
    active = model.state(TOKENS[None], mode).activations.values()
    features = sum(int(a.count_nonzero()) for a in active)
    assert len(trace.sources.where(kind="feature")) == features
    assert len(trace.targets) == len(trace.outputs) + features


def test_a_sweep_may_skip_the_places_under_an_sae():
    """Nothing of the first target is left below the SAE, where the second one begins."""
    model = spliced("gpt2", "below_sae")
    targets = [LogitDifference(3, 5), DirectionTarget(Site("mlp_in", 1), torch.ones(D_MODEL))]
    together = attribute(model, TOKENS, targets, feature_rows=False)
    assert together.conservation_error() < 1e-10
    for row, target in enumerate(targets):
        alone = attribute(model, TOKENS, target, feature_rows=False)
        assert torch.allclose(together.edges[row], alone.edges[0], rtol=1e-12, atol=1e-14)


def test_no_pair_of_target_and_source_is_in_two_blocks():
    model = spliced("gpt2", "among_saes")
    trace = attribute(model, TOKENS, every_target(model))
    times = torch.zeros(len(trace.targets), len(trace.sources))
    for block in trace.blocks.blocks:
        times[block.targets[:, None], block.sources] += 1
    assert times.max() == 1


def test_writes_to_its_own_layer_and_above_reach_what_reads_above():
    """A feature of layer 0 reaches an MLP's output in each layer, but no other feature of its own
    layer, and nothing of a layer below.
    """
    model = spliced("gpt2")
    trace = attribute(model, TOKENS, every_target(model))
    (column, *_) = trace.sources.where(kind="feature", layer=0, pos=5)
    rows = [i for i, n in enumerate(trace.targets) if n.site.startswith("direction at mlp_out")]
    assert (trace.edges[rows[-3:], column] != 0).all()
    for layer in range(N_LAYERS):
        above = trace.edges[trace.targets.where(kind="feature", layer=layer)]
        for lower in range(N_LAYERS):
            edges = above[:, trace.sources.where(kind="feature", layer=lower)]
            assert bool(edges.any()) == (lower < layer)


def test_a_layer_whose_features_are_silent_has_no_edges():
    parts = whole()
    parts[1] = rebuilt(CrossLayerTranscoder, parts[1], b_enc=torch.full_like(parts[1].b_enc, -1e3))
    model = SplicedModel(models.subject("gpt2", torch.float64), parts)
    trace = attribute(model, TOKENS, OUTPUTS, max_feature_rows=9)
    assert trace.conservation_error() < 1e-10
    assert trace.sources.where(kind="feature", layer=0)
    assert not trace.sources.where(kind="feature", layer=1)
    assert all(block.values.numel() for block in trace.blocks.blocks)


# --- edges are derivatives, and effects of interventions ----------------------------------------


def expected_row(cut: CutModel, trace: Trace, scalar: Tensor) -> Tensor:
    """Gradients of autograd times what each source writes, summed over where it writes."""
    gradients, row = cut.gradients(scalar), torch.zeros(len(trace.sources), dtype=scalar.dtype)
    for i, node in enumerate(trace.sources):
        if node.kind == "bias":
            continue
        if node.kind == "feature" and node.site == "mlp":
            written = writes(cut.spliced, node)
        else:
            site, vector = source_vector(cut.spliced, cut.state, node)
            written = {site: vector}
        row[i] = sum(gradients[site][node.pos] @ vector for site, vector in written.items())
    return row


def writes(model: SplicedModel, node: Node) -> dict[Site, Tensor]:
    """What a transcoder's feature writes, by place."""
    write = model.write_site(f"mlp.{node.layer}")
    directions = model.placements[write].dictionary.W_dec[node.feature].reshape(-1, D_MODEL)
    return {
        Site(write.kind, node.layer + slot): node.activation * direction
        for slot, direction in enumerate(directions)
    }


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_edges_equal_autograd_through_the_frozen_model(architecture: str, mixture: str):
    model = spliced(architecture, mixture)
    trace = attribute(model, TOKENS, TARGETS)
    cut = CutModel(model, model.state(TOKENS[None]))
    features = trace.targets.where(kind="feature")
    edges = trace.edges.clone()
    edges[:, trace.sources.where(kind="bias")] = 0.0
    for row in [*range(len(trace.outputs)), *features[:: max(1, len(features) // 15)]]:
        want = expected_row(cut, trace, target_scalar(cut, trace, row))
        error = (edges[row] - want).abs().max() / want.abs().max().clamp_min(1.0)
        assert error < 1e-10, f"{trace.targets[row].id}: {error}"


@pytest.mark.parametrize("mixture", ["whole", "bottom", "among_saes", "below_sae"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edges_from_features_are_interventions(architecture: str, mixture: str):
    """In the frozen model with features held: on every target, for features of every layer."""
    model = spliced(architecture, mixture)
    trace = attribute(model, TOKENS, OUTPUTS)
    state = model.state(TOKENS[None])
    worst = 0.0
    columns = trace.sources.where(kind="feature")
    for column in columns[:: max(1, len(columns) // 12)]:
        want = effects(model, state, trace, trace.sources[column])
        gap = (trace.edges[:, column] - want).abs().max()
        worst = max(worst, float(gap / want.abs().max().clamp_min(1e-2)))
    assert worst < 1e-8


@st.composite
def spliced_shapes(draw: st.DrawFn) -> tuple[Shape, SplicedModel, Tensor]:
    """Any architecture, a run of layers with cross-layer transcoders, SAEs around them."""
    shape = draw(shapes())
    low = draw(st.integers(0, shape.n_layers - 1))
    high = draw(st.integers(low, shape.n_layers - 1))
    size = {"n_features": draw(st.integers(1, 6)), "d_model": shape.d_model}
    parts = {
        f"mlp.{i}": cross_layer(high + 1 - i, "relu", seed=i, skip=draw(st.booleans()), **size)
        for i in range(low, high + 1)
    }
    saes = {
        f"{site}.{layer}": models.sae(site, "relu", seed=layer, **size)
        for layer in range(shape.n_layers)
        for site in ("attn_out", "resid_post")
        if draw(st.sampled_from((False, False, True)))
    }
    tokens = draw(st.lists(st.integers(0, D_VOCAB - 1), min_size=1, max_size=7))
    return shape, SplicedModel(subject(shape), {**saes, **parts}), torch.tensor([BOS, *tokens])


@EXAMPLES
@given(case=spliced_shapes(), index=st.integers(0, 999), mode=st.sampled_from(("exact", "replace")))
def test_the_ledger_on_random_models(case: tuple[Shape, SplicedModel, Tensor], index: int, mode):
    _, model, tokens = case
    trace = attribute(model, tokens, LogitDifference([1, 2], [3]), mode=mode)
    assert trace.conservation_error() < 1e-9
    columns = trace.sources.where(kind="feature")
    if columns:
        column, state = columns[index % len(columns)], model.state(tokens[None], mode)
        want = effects(model, state, trace, trace.sources[column])
        largest = max(float(x.abs().max()) for x in (trace.target_values, *state.values.values()))
        allowed = 1e-8 * want.abs().max() + 1e-12 * largest
        assert ((trace.edges[:, column] - want).abs() <= allowed).all()


# --- against plain transcoders ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "replace"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_without_later_writes_edges_are_those_of_plain_transcoders(architecture: str, mode):
    base, parts = models.subject(architecture, torch.float64), whole()
    zeros = SplicedModel(base, {i: without_later_writes(part) for i, part in parts.items()})
    plain = SplicedModel(base, {i: own_layer_only(part) for i, part in parts.items()})
    targets = every_target(plain)
    one, other = (attribute(m, TOKENS, targets, mode=mode) for m in (zeros, plain))
    assert [n.id for n in one.sources] == [n.id for n in other.sources]
    assert [n.id for n in one.targets] == [n.id for n in other.targets]
    scale = other.edges.abs().amax(1, keepdim=True)
    assert ((one.edges - other.edges).abs() <= 1e-12 * scale).all()
    assert torch.equal(one.target_values, other.target_values)
    one, other = (attribute(m, TOKENS, OUTPUTS, mode=mode) for m in (zeros, plain))
    assert one.blocks.n_stored == other.blocks.n_stored, "zeros that causality leaves are stored"


# --- by hand ------------------------------------------------------------------------------------

LATER = torch.tensor([[0.0, 4.0, -1.0, 2.0], [3.0, 0.0, 0.0, -2.0]])


def hand_spliced(ov: float = 1.0) -> SplicedModel:
    low = CrossLayerTranscoder(
        ENC_0, torch.stack([DEC_0, LATER], 1), torch.zeros(2), torch.zeros(4)
    )
    high = CrossLayerTranscoder(ENC_1, DEC_1[:, None], B_ENC_1, torch.zeros(4))
    return SplicedModel(hand_model(ov), {0: low, 1: high})


@pytest.mark.parametrize("source", ["mlp0.0@0", "mlp0.0@1", "mlp0.0@2", "mlp0.1@0", "mlp0.1@2"])
def test_an_edge_to_a_logit_by_hand(source: str):
    """`a / sigma_F ([q = k] (d_0 + d_1) . w + A / sigma_1 (d_0 W_V W_O) . w)`: what is written to
    the last layer passes no head, what is written to the first does.
    """
    trace, hand = attribute(hand_spliced(), HAND_TOKENS, LogitDifference(1, 3)), by_hand()
    node = trace.sources[trace.sources.row(source)]
    reader = centred((W_U[:, 1] - W_U[:, 3]) * GAIN_F).double()
    sigma = (centred(hand["stream"][2]).square().mean() + 1e-5).sqrt()
    d_0, d_1 = DEC_0[node.feature].double(), LATER[node.feature].double()
    direct = (d_0 + d_1) @ reader if node.pos == 2 else 0.0
    through = (centred(d_0) * GAIN_1) @ W_V.double() @ W_O.double() @ reader / SIGMA / 3
    want = hand["a"][node.pos, node.feature] / sigma * (direct + through)
    got = float(trace.edges[0, trace.sources.row(source)])
    assert got == pytest.approx(float(want), rel=1e-12)


def test_a_feature_does_not_read_what_is_written_beside_it():
    """Layer 1's features read what is written to layer 0 alone: the same as with a plain one."""
    trace = attribute(hand_spliced(), HAND_TOKENS, LogitDifference(1, 3))
    base = hand_spliced()
    plain = {0: own_layer_only(base.placements[Site("mlp_raw_out", 0)].dictionary),  # type: ignore[arg-type]
             1: own_layer_only(base.placements[Site("mlp_raw_out", 1)].dictionary)}  # type: ignore[arg-type]  # fmt: skip
    other = attribute(SplicedModel(base.model, plain), HAND_TOKENS, LogitDifference(1, 3))
    rows = trace.targets.where(kind="feature", layer=1)
    columns = trace.sources.where(kind="feature", layer=0)
    assert rows
    assert columns
    ours, theirs = (t.edges[rows][:, columns] for t in (trace, other))
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0.0)
    errors = trace.sources.where(kind="error", layer=1)
    want = -by_hand()["a"] @ LATER.double()  # the error of layer 1 undoes the later writes too
    state = base.state(HAND_TOKENS[None])
    own = state.activations[Site("mlp_raw_out", 1)][0] @ DEC_1.double()
    assert torch.allclose(state.errors[Site("mlp_raw_out", 1)][0], want - own, atol=1e-12)
    assert trace.edges[0, errors].any()


# --- how rows are chosen and swept does not matter ----------------------------------------------


@pytest.mark.parametrize("mixture", ["whole", "among_saes", "below_sae", "relu_skip"])
def test_little_memory_batches_and_best_first_rows_give_the_same_edges(mixture: str):
    model = spliced("llama_gqa", mixture)
    tokens, targets = torch.stack([TOKENS, TOKENS.flip(0)]), every_target(model)
    whole_trace = attribute(model, TOKENS, targets)
    little = attribute(model, TOKENS, targets, memory=3 * 6 * len(TOKENS) * D_MODEL * 8)
    part = attribute(model, TOKENS, targets, max_feature_rows=25)
    batch = list(attribute_batch(model, list(tokens), targets))
    assert len(part.targets) < len(whole_trace.targets)
    assert 0 < part.left_out < 1
    for other in (little, part, batch[0]):
        rows = [whole_trace.targets.row(node.id) for node in other.targets]
        assert torch.allclose(other.edges, whole_trace.edges[rows], rtol=1e-10, atol=1e-10)
    assert batch[1].conservation_error() < 1e-10


@pytest.mark.parametrize("mixture", ["whole", "among_saes", "below_sae"])
def test_what_best_first_rows_leave_out_by_hand(mixture: str):
    """The rule of `arriving_influence`, target by target from the last computed feature back."""
    model = spliced("gpt2", mixture)
    targets = [LogitDifference(3, 5), DirectionTarget(Site("mlp_out", 2), torch.ones(D_MODEL))]
    part = attribute(model, TOKENS, targets, max_feature_rows=9)
    shares = part.edges.abs() / part.edges.abs().sum(1, keepdim=True)
    arriving = (shares[:2] / 2).sum(0)
    known = {part.sources.row(n.id): i for i, n in enumerate(part.targets) if n.kind == "feature"}
    assert len(known) == 9
    for column in sorted(known, reverse=True):
        arriving = arriving + arriving[column] * shares[known[column]]
    missing = set(part.sources.where(kind="feature")) - set(known)
    assert part.left_out == pytest.approx(float(arriving[sorted(missing)].sum()), rel=1e-9)


# --- paths and their factors --------------------------------------------------------------------


def test_factors_by_hand():
    model = hand_spliced()
    trace = attribute(model, HAND_TOKENS, LogitDifference(1, 3))
    (edge,) = factorise(model, trace, [(trace.targets[0].id, "mlp0.0@2")])
    paths = {path.head: path for path in edge.paths}
    reader = centred((W_U[:, 1] - W_U[:, 3]) * GAIN_F).double()
    assert paths[None].virtual_weight == pytest.approx(
        float((DEC_0[0] + LATER[0]) @ reader.float())
    )
    for head in (0, 1):
        e = slice(2 * head, 2 * head + 2)
        ov = (centred(DEC_0[0]) * GAIN_1) @ W_V[:, e] @ W_O[e]
        want = float(ov.double() @ reader)
        got = paths.get((1, head))
        assert (got.virtual_weight if got else 0.0) == pytest.approx(want, abs=1e-12)
    assert set(paths) >= {None}
    assert all(path.invariant for path in edge.paths)
    assert sum(path.value for path in edge.paths) + edge.remainder == pytest.approx(edge.edge)
    assert edge.remainder == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_paths_add_up_to_edges_with_weights_alone_in_the_virtual_weights(
    architecture: str, mixture: str
):
    model = spliced(architecture, mixture)
    trace, state = attribute(model, TOKENS, OUTPUTS), model.state(TOKENS[None])
    row = 0
    split = split_by_path(model, trace, trace.targets[row].id)
    direct = split.heads.index(None)
    reader = fold_norm(trace.outputs[row].vector[None], model.model.norm("final"))[0]  # type: ignore[arg-type]
    sigma = state.values[Site("final_scale")][0, -1, 0]
    for column in trace.sources.where(kind="feature", site="mlp", pos=len(TOKENS) - 1):
        node, slots = trace.sources[column], model.placements[
            Site("mlp_raw_out", trace.sources[column].layer)
        ].dictionary  # fmt: skip
        summed = slots.W_dec[node.feature].reshape(-1, D_MODEL)
        cut = {"among_saes": 1, "below_sae": 2}.get(mixture, 0)  # only what is written above
        summed = summed[max(0, cut - node.layer) :]
        want = summed.sum(0) @ reader
        assert float(split.virtual_weights[direct, column]) == pytest.approx(float(want), abs=1e-10)
        share = node.activation * want / sigma
        assert float(split.values[direct, column]) == pytest.approx(float(share), abs=1e-10)
    total = split.values.sum(0) + split.remainder
    assert torch.allclose(total, trace.edges[row], rtol=1e-12, atol=1e-12)


def only_layer_2_attends(trace: Trace, model: SplicedModel) -> list[int]:
    """Sources whose edges into layer 2's features run straight or through one head of layer 2."""
    return trace.sources.where(kind="feature", layer=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_remains_where_one_attention_layer_lies_between(architecture: str):
    model = spliced(architecture)
    trace = attribute(model, TOKENS, OUTPUTS)
    for row in trace.targets.where(kind="feature", layer=2)[::5]:
        split = split_by_path(model, trace, trace.targets[row].id)
        columns = only_layer_2_attends(trace, model)
        scale = trace.edges[row].abs().max()
        assert split.remainder[columns].abs().max() < 1e-12 * scale
    top = attribute(model, TOKENS, OUTPUTS)
    split = split_by_path(model, top, top.targets[0].id)
    columns = top.sources.where(kind="feature", layer=1)
    # To the logits the last layer's heads alone lie above layer 1: what is written to layer 2
    # passes none of them.
    assert split.remainder[columns].abs().max() < 1e-12 * top.edges[0].abs().max()


def test_behind_a_post_norm_paths_are_refused():
    model = spliced("gemma2")
    trace = attribute(model, TOKENS, OUTPUTS)
    source = trace.sources[trace.sources.where(kind="feature")[0]].id
    for ask in (
        lambda: factorise(model, trace, [(trace.targets[0].id, source)]),
        lambda: split_by_path(model, trace, trace.targets[0].id),
    ):
        with pytest.raises(
            ValueError, match=r"one denominator a layer.*cross-layer transcoder mlp.0"
        ):
            ask()


# --- what is built on edges ---------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_hold_in_the_frozen_model(architecture: str):
    """Direct effects with features held, total effects with features live (small changes)."""
    model = spliced(architecture)
    trace = attribute(model, TOKENS, OUTPUTS)
    check = check_predictions(model, trace, sample_ablations(trace, 6), OUTPUTS)
    assert check.max_frozen_error() < 1e-8
    columns = trace.sources.where(kind="feature", layer=0)[::7]
    small = [
        Intervention(f"mlp.{n.layer}", n.feature, "scale", 1 + 1e-7, [n.pos])
        for n in (trace.sources[c] for c in columns)
    ]
    check = check_predictions(model, trace, small, OUTPUTS)
    assert ((check.total - check.live).abs() < 1e-4 * check.total.abs().max()).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_and_paths_add_up_to_the_output(architecture: str):
    model = spliced(architecture)
    trace = attribute(model, TOKENS, OUTPUTS)
    leaves = leaf_sources(trace)
    totals = signed_influence(trace, targets=[0], sources=leaves)
    assert float(totals.sum()) == pytest.approx(float(trace.target_values[0]), rel=1e-9)
    best = top_paths(trace, 0, k=50)
    assert best.total == pytest.approx(float(trace.target_values[0]), rel=1e-9)
    lengths = {len(path.nodes) for path in best.paths}
    assert max(lengths) > 2
    for path in best.paths:
        layers = [node.layer for node in path.nodes if node.kind == "feature"]
        assert layers == sorted(set(layers))
