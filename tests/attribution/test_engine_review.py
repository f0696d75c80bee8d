"""The engine where rows add up whatever happens: which bias is whose, BOS, memory, float32."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attribution import (
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    Trace,
    attribute,
    attribute_batch,
    descent,
    factorise,
    split_by_path,
)
from attribution.columns import index_columns
from attribution.rows import INSIDE, Rows, sweeps
from attribution.targets import Readout
from circuits import FrozenState, Intervention, Site, SplicedModel
from circuits.spliced import HeldMode
from tests import models
from tests.attribution.test_autograd import CutModel, source_vector
from tests.models import ARCHITECTURES, D_MODEL, N_LAYERS, TOKENS

BOS_INSIDE = torch.tensor([0, 3, 17, 0, 42, 9])
VECTOR = torch.linspace(-1.0, 2.0, D_MODEL)
KINDS = ("resid_post", "attn_out", "mlp_in", "mlp_out")


def targets_everywhere(spliced: SplicedModel) -> list:
    """A logit, a direction at every place and a feature of every dictionary, at several places."""
    directions = [
        DirectionTarget(Site(kind, layer), VECTOR, pos=1 + layer)
        for layer in range(N_LAYERS)
        for kind in KINDS
    ]
    features = [FeatureTarget(write, i, pos=i - 2) for i, write in enumerate(spliced.placements)]
    return [LogitDifference(3, 5), LogitDifference(7, 8, pos=0), *directions, *features]


def attention_writes(spliced: SplicedModel, state: FrozenState, layer: int) -> Tensor:
    """What biases alone make attention write, head by head, past any post-norm."""
    model, heads = spliced.model, spliced.model.heads(layer)
    before, after = model.norm("ln1", layer), model.norm("ln1_post", layer)
    assert before is not None
    pattern = state.values[Site("pattern", layer)][0]
    written = heads.b_O.expand(state.n_pos, -1)
    for head in range(model.n_heads):
        value = before.bias @ heads.W_V[head] + heads.b_V[head]
        written = written + pattern[head].sum(1)[:, None] * (value @ heads.W_O[head])
    if after is None:
        return written
    return after.linear(written, state.values[Site("ln1_post_scale", layer)][0]) + after.bias


def expected_biases(cut: CutModel, trace: Trace, readout: Readout) -> dict[str, float]:
    """By bias node: `<gradient where the bias is added, the bias>`, summed over positions."""
    spliced, state, model = cut.spliced, cut.state, cut.spliced.model
    scalar = cut.arrived[readout.site][0, readout.pos] @ readout.vector
    places = {f"arriving {site}": tensor for site, tensor in cut.arrived.items()}
    places |= {f"leaving {site}": tensor for site, tensor in cut.leaves.items()}
    live = {name: tensor for name, tensor in places.items() if tensor.requires_grad}
    found = torch.autograd.grad(scalar, list(live.values()), retain_graph=True, allow_unused=True)
    gradients = {n: g[0] for n, g in zip(live, found, strict=True) if g is not None}

    def pushed(place: str, vector: Tensor) -> float:
        return float((gradients[place] * vector).sum()) if place in gradients else 0.0

    want = {"bias.target": readout.constant}
    for layer in range(N_LAYERS):
        mlp_in, raw = Site("mlp_in", layer), Site("mlp_raw_out", layer)
        ln2, after = model.norm("ln2", layer), model.norm("ln2_post", layer)
        assert ln2 is not None
        written = attention_writes(spliced, state, layer)
        want[f"bias.attn{layer}"] = pushed(f"arriving {Site('attn_out', layer)}", written)
        of_mlp = pushed(f"arriving {mlp_in}", ln2.bias)
        if readout.site == mlp_in:  # what the target itself reads is not the skip's
            want["bias.target"] += float(readout.vector @ ln2.bias)
            of_mlp -= float(readout.vector @ ln2.bias)
        if raw in spliced.placements:
            of_mlp += pushed(f"leaving {raw}", spliced.placements[raw].dictionary.b_dec)
        if after is not None:
            of_mlp += pushed(f"arriving {Site('mlp_out', layer)}", after.bias)
        want[f"bias.mlp{layer}"] = of_mlp
    for write, placement in spliced.placements.items():
        if write.kind != "mlp_raw_out":
            want[f"bias.{write}"] = pushed(f"leaving {write}", placement.dictionary.b_dec)
    final = model.norm("final")
    assert final is not None
    reads_final = readout.site.kind == "unembed_in"
    want[f"bias.final{N_LAYERS}"] = float(readout.vector @ final.bias) if reads_final else 0.0
    return want


class Expected:
    """Rows by autograd, `<gradient at the source's place, the source's vector>`; 0 at biases."""

    def __init__(self, spliced: SplicedModel, state: FrozenState, trace: Trace) -> None:
        nodes = [(i, node) for i, node in enumerate(trace.sources) if node.kind != "bias"]
        self.columns = [i for i, _ in nodes]
        found = [source_vector(spliced, state, node) for _, node in nodes]
        self.places = [(site, node.pos) for (site, _), (_, node) in zip(found, nodes, strict=True)]
        self.vectors = torch.stack([vector for _, vector in found])
        self.n_sources = len(trace.sources)

    def row(self, cut: CutModel, readout: Readout) -> Tensor:
        read = cut.arrived[readout.site][0, readout.pos]
        gradients = cut.gradients(read @ readout.vector)
        row = self.vectors.new_zeros(self.n_sources)
        at_places = torch.stack([gradients[site][pos] for site, pos in self.places])
        row[self.columns] = (at_places * self.vectors).sum(1)
        return row


@pytest.mark.parametrize("mixture", ["skip", "mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_bias_is_booked_on_its_own_node(architecture: str, mixture: str):
    """A bias on the wrong node leaves every sum as it is; autograd knows where each is added."""
    spliced = models.spliced(architecture, mixture, torch.float64)
    trace = attribute(spliced, TOKENS, targets_everywhere(spliced), feature_rows=False)
    cut = CutModel(spliced, spliced.state(TOKENS[None]))
    biases = [trace.sources[i].id for i in trace.sources.where(kind="bias")]
    for row, readout in enumerate(trace.outputs):
        want = expected_biases(cut, trace, readout)
        assert sorted(want) == sorted(biases)
        for name, value in want.items():
            got = float(trace.edges[row, trace.sources.row(name)])
            assert got == pytest.approx(value, rel=1e-9, abs=1e-10), f"{readout.name}: {name}"


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "gemma2", "neox_parallel"])
def test_in_replace_mode_only_bos_has_errors(architecture: str):
    """Where BOS stands, at the start or later, the true value goes on; rows still add up."""
    spliced = models.spliced(architecture, "mixed", torch.float64)
    trace = attribute(spliced, BOS_INSIDE, targets_everywhere(spliced), mode="replace")
    assert trace.conservation_error() < 1e-9
    state, run = (
        spliced.state(BOS_INSIDE[None], "replace"),
        spliced.run(BOS_INSIDE[None], "replace"),
    )
    gap = (state.logits - run.logits).abs().max()
    assert gap < 1e-6 * run.logits.abs().max()  # HF's RMSNorm is float32
    is_bos = spliced.model.bos_token == BOS_INSIDE
    for write, error in state.errors.items():
        size = state.values[write].abs().max()
        assert error[0, ~is_bos].abs().max() < 1e-12 * size
        assert error[0, is_bos].abs().amax(1).min() > 1e-4 * size
    cut, expected = CutModel(spliced, state), Expected(spliced, state, trace)
    for row, readout in enumerate(trace.outputs):
        want = expected.row(cut, readout)
        got = trace.edges[row].clone()
        got[trace.sources.where(kind="bias")] = 0.0
        assert (got - want).abs().max() < 1e-10 * want.abs().max().clamp_min(1.0), readout.name


def test_an_intervention_at_bos_moves_the_true_value_in_replace_mode():
    """At BOS what goes on is the true value, plus the change of the features."""
    write = Site("resid_post", N_LAYERS - 1)
    spliced = SplicedModel(models.subject("gpt2", torch.float64), {write: models.sae("resid_post")})
    model, state = spliced.model, spliced.state(BOS_INSIDE[None], "replace")
    change = Intervention(write, 11, "add", 2.0, positions=[3])
    run = spliced.run(BOS_INSIDE[None], "replace", interventions=[change])
    x = state.read(write)[0, 3] + 2.0 * spliced.placements[write].dictionary.W_dec[11]
    norm = model.norm("final")
    assert norm is not None
    scale = (x.var(unbiased=False) + 1e-5).sqrt()
    want = (norm.linear(x, scale[None]) + norm.bias) @ model.W_U
    assert torch.allclose(run.logits[0, 3], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("room", [1, 5, 33, 10_000])
def test_sweeps_keep_to_the_memory(room: int):
    """Every target once, never more than there is room for, and no more sweeps than that takes."""
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    state = spliced.state(TOKENS[None])
    columns = index_columns(spliced, state)
    features = columns.feature_columns(spliced.model.device)
    outputs = [r for t in targets_everywhere(spliced) for r in t.readouts(spliced, state)]
    feature_row = torch.full((len(columns.nodes),), -1)
    feature_row[features] = torch.arange(len(features)) + len(outputs)
    memory = room * state.n_pos * D_MODEL * 8
    found = list(sweeps(spliced, columns, Rows(outputs, feature_row), state.n_pos, memory))
    rows = torch.cat([group.rows for _, groups in found for group in groups])
    assert rows.sort().values.tolist() == list(range(len(outputs) + len(features)))
    for pos in range(state.n_pos):
        here = [groups for at, groups in found if at == pos]
        most = max(1, memory // ((pos + 1) * D_MODEL * 8))
        sizes = [sum(len(group.rows) for group in groups) for groups in here]
        assert max(sizes) <= most
        alone = [groups[0].site.kind in INSIDE for groups in here]
        assert all(len(groups) == 1 for groups, one in zip(here, alone, strict=True) if one)
        in_stream = [size for size, one in zip(sizes, alone, strict=True) if not one]
        assert len(in_stream) == -(-sum(in_stream) // most)


@pytest.mark.parametrize(("rows", "round_to"), [(1, 1), (16, 8), (40, 128)])
@pytest.mark.parametrize("architecture", ["neox_parallel", "gemma2"])
def test_products_of_any_size_give_the_same_edges(
    architecture: str, rows: int, round_to: int, monkeypatch: pytest.MonkeyPatch
):
    """Rows that make a product's size round belong to the next targets, and must not change."""
    spliced = models.spliced(architecture, "skip", torch.float64)
    whole = attribute(spliced, TOKENS, targets_everywhere(spliced))
    monkeypatch.setattr(descent, "_ROWS", rows)
    monkeypatch.setattr(descent, "_ROUND", round_to)
    parts = attribute(spliced, TOKENS, targets_everywhere(spliced))
    size = whole.edges.abs().amax(1, keepdim=True)
    assert ((parts.edges - whole.edges).abs() <= 1e-11 * size).all()


def test_best_first_in_float32_takes_the_rows_of_float64():
    kept = [
        attribute(models.spliced("gpt2", "transcoders", dtype), TOKENS, max_feature_rows=30)
        for dtype in models.DTYPES
    ]
    assert [n.id for n in kept[0].targets] == [n.id for n in kept[1].targets]
    assert kept[0].left_out == pytest.approx(kept[1].left_out, rel=1e-4)


@pytest.mark.parametrize("n_rows", [10, 60])
def test_best_first_never_takes_a_row_that_nothing_reaches(n_rows: int):
    """Outputs at position 0 can only be reached from there, however many rows are allowed."""
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    target = LogitDifference(7, 8, pos=0)
    whole = attribute(spliced, TOKENS, target)
    at_zero = len(whole.targets.where(kind="feature", pos=0))
    trace = attribute(spliced, TOKENS, target, max_feature_rows=n_rows)
    assert {node.pos for node in trace.targets} == {0}
    assert len(trace.targets) == 1 + min(n_rows, at_zero)
    assert (trace.left_out == 0.0) == (n_rows >= at_zero)


def test_a_batch_takes_as_many_rows_as_asked_for():
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    prompts = [TOKENS, TOKENS.flip(0)]
    target = LogitDifference(3, 4)
    outputs = list(attribute_batch(spliced, prompts, target, feature_rows=False))
    best = list(attribute_batch(spliced, prompts, target, max_feature_rows=4))
    assert [len(trace.targets) for trace in (*outputs, *best)] == [1, 1, 5, 5]


class OneLayerCut(CutModel):
    """The frozen model with the attention of one layer, or of none, and no linear skips."""

    def __init__(self, spliced: SplicedModel, state: FrozenState, live: int | None) -> None:
        self.live = live
        super().__init__(spliced, state)

    def _see(self, site: Site) -> Callable[[Tensor], Tensor]:
        see = super()._see(site)
        if site.kind == "attn_out" and site.layer != self.live:
            return lambda value: see(value).detach()
        return see

    def _leaf(self, site: Site) -> Callable[[Tensor], Tensor]:
        def cut(value: Tensor) -> Tensor:
            self.arrived[site] = value
            self.leaves[site] = self.state.values[site].clone().requires_grad_()
            return self.leaves[site]

        return cut


@pytest.mark.parametrize(
    ("architecture", "mixture", "mode"),
    [
        ("gpt2", "residual", "exact"),
        ("gpt2", "mixed", "replace"),
        ("neox_parallel", "mixed", "exact"),
        ("gemma2", "mixed", "exact"),
    ],
)
def test_paths_are_those_of_a_model_with_one_live_layer(
    architecture: str, mixture: str, mode: HeldMode
):
    """Whatever place a target reads: no attention leaves the direct path, one layer its heads."""
    spliced = models.spliced(architecture, mixture, torch.float64)
    trace = attribute(spliced, TOKENS, targets_everywhere(spliced), mode=mode, feature_rows=False)
    state = spliced.state(TOKENS[None], mode)
    expected = Expected(spliced, state, trace)
    cuts = {live: OneLayerCut(spliced, state, live) for live in (None, *range(N_LAYERS))}
    for row, readout in enumerate(trace.outputs):
        split = split_by_path(spliced, trace, trace.targets[row].id)
        rows = {live: expected.row(cut, readout) for live, cut in cuts.items()}
        direct, size = rows.pop(None), float(split.values.abs().max())
        own = readout.site.layer if readout.site.kind == "attn_out" else None
        want = {None: direct} | {live: total - direct for live, total in rows.items()}
        if own is not None:  # its heads are all there is between the stream and the target
            want = {live: direct if live == own else 0 * direct for live in want}
        for live, value in want.items():
            mine = [i for i, h in enumerate(split.heads) if (h if h is None else h[0]) == live]
            got = split.values[mine].sum(0)
            assert (got - value).abs().max() <= 1e-10 * size, f"{readout.name}, layer {live}"


@pytest.mark.parametrize("mode", ["exact", "replace"])
def test_factors_are_of_the_state_that_was_traced(mode: HeldMode):
    """Paths come strongest first; what errors and held MLPs write is not made of weights."""
    spliced = SplicedModel(models.subject("gpt2", torch.float64), {0: models.transcoder()})
    trace = attribute(spliced, BOS_INSIDE, LogitDifference(3, 5), mode=mode, feature_rows=False)
    target = trace.targets[0].id
    split = split_by_path(spliced, trace, target)
    state = spliced.state(BOS_INSIDE[None], mode)
    assert torch.equal(split.scales["final"], state.values[Site("final_scale")][0, :, 0])
    sources = [node.id for node in trace.sources if node.kind != "bias"]
    for edge in factorise(spliced, trace, [(target, source) for source in sources]):
        assert edge == split.edge(edge.source.id)
        values = [abs(path.value) for path in edge.paths]
        assert values == sorted(values, reverse=True)
        of_weights = edge.source.kind in ("feature", "token", "position")
        assert all(path.invariant == of_weights for path in edge.paths)
    assert {"error", "sublayer"} <= {node.kind for node in trace.sources}
