"""The ledger on random small models, dictionaries, prompts and targets, in float64.

Nothing here shares a formula with the sweep: values come from runs of the model, edges from
interventions in the frozen model, paths from models in which all heads but one are silent.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution import (
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    Node,
    ProbabilityDifference,
    Target,
    TopLogits,
    Trace,
    attribute,
    factorise,
    split_by_path,
)
from attribution.effects.observing import ListeningModel
from circuits import FrozenState, Intervention, Site, SplicedModel, SubjectModel
from circuits.spliced import canonical
from tests.random_models import (
    AROUND_NORMS,
    BOS,
    GROUPED,
    IN_FLOAT64,
    PARALLEL,
    POST_NORMS,
    Case,
    cases,
    hf_model,
    readable,
)

EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MORE = settings(EXAMPLES, max_examples=20)
"""For what is cheap."""
INDEX = st.integers(0, 9999)
"""Picks an entry, modulo how many there are."""
_RANK = {
    "resid_pre": 0,
    "attn_out": 2,
    "resid_mid": 3,
    "mlp_in": 3,
    "mlp_raw_out": 4,
    "mlp_out": 5,
    "resid_post": 6,
}
_HEADS = 1
"""Order of places inside a block; heads read at 1 and write at 2."""


def traced(case: Case) -> tuple[SplicedModel, Trace]:
    spliced = case.spliced()
    return spliced, attribute(spliced, case.tokens, case.targets(), mode=case.mode)


def size(x: Tensor) -> float:
    """The largest magnitude, or 0 if there is nothing."""
    return float(x.abs().max()) if x.numel() else 0.0


def read_site(spliced: SplicedModel, trace: Trace, row: int) -> Site:
    """Where a target reads."""
    if row < len(trace.outputs):
        return trace.outputs[row].site
    return spliced.placements[write_site(spliced, trace.targets[row])].read


def write_site(spliced: SplicedModel, node: Node) -> Site:
    """Where a feature, an error or a held MLP writes."""
    if node.kind == "sublayer":
        return Site("mlp_raw_out", node.layer)
    return spliced.write_site(f"{node.site}.{node.layer}")


# --- every row adds up --------------------------------------------------------------------------


@EXAMPLES
@given(case=cases())
@example(case=AROUND_NORMS)
def test_every_row_adds_up(case: Case):
    spliced, trace = traced(case)
    gap = (trace.edges.sum(1) - trace.target_values).abs()
    largest = trace.edges.abs().amax(1).maximum(trace.target_values.abs())
    assert size(gap / largest.clamp_min(1e-30)) < 1e-9
    assert trace.conservation_error() < 1e-9
    state = spliced.state(case.tokens[None], case.mode)
    active = sum(int(a.count_nonzero()) for a in state.activations.values())
    assert len(trace.targets) == len(trace.outputs) + active
    assert len(trace.sources.where(kind="feature")) == active
    assert trace.edges.isfinite().all()


# --- values are what the model computes ---------------------------------------------------------


def watch(spliced: SplicedModel, case: Case) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits, and what arrives at each place (before any SAE there), without the engine."""
    model, arrived = spliced.model, {}
    kinds = (*readable(model.parallel), "mlp_raw_out")
    sites = [Site(kind, layer) for kind in kinds for layer in range(model.n_layers)]  # type: ignore[arg-type]
    is_bos = (case.tokens == BOS)[None, :, None]
    is_first = (torch.arange(len(case.tokens)) == 0)[None, :, None]

    def see(site: Site) -> Callable[[Tensor], Tensor]:
        def edit(value: Tensor) -> Tensor:
            arrived[site] = value
            placed = spliced.placements.get(site)
            if placed is None or case.mode == "exact":
                return value
            known = placed.dictionary.convention.first_position != "left out"
            left_out = is_bos if known else is_bos | is_first
            new = torch.where(left_out, value, placed.dictionary(arrived[placed.read]))
            if placed.read != site:  # a transcoder stands for the MLP
                arrived[site] = new
            return new

        return edit

    edits = {site: see(site) for site in {*map(canonical, sites), Site("unembed_in")}}
    fresh = {site: torch.clone for site in model.scale_sites()}  # norms in float64
    logits, _ = model.run(case.tokens[None], edits=edits | fresh)
    return logits[0], {site: value[0] for site, value in arrived.items()}


def uncapped(model: SubjectModel, logits: Tensor) -> Tensor:
    cap = model.logit_softcap
    return cap * torch.atanh(logits / cap) if cap else logits


def model_values(target: Target, spliced: SplicedModel, logits: Tensor, arrived: Mapping) -> Tensor:
    """What the rows of `target` stand for, from logits and from what arrives at each place."""
    at = uncapped(spliced.model, logits[target.pos])
    match target:
        case LogitDifference():
            wrong = at[target.wrong].mean() if target.wrong else at.new_zeros(())  # type: ignore[index]
            return (at[target.correct].mean() - wrong)[None]  # type: ignore[index]
        case ProbabilityDifference():
            free = logits[target.pos].clone().requires_grad_()
            with torch.enable_grad():
                p = free.softmax(-1)
                metric = p[target.correct].sum() - p[target.wrong].sum()
                (gradient,) = torch.autograd.grad(metric, free)
            return (gradient @ at)[None]
        case TopLogits():
            p, ids = logits[target.pos].softmax(-1).sort(descending=True)
            before = p.cumsum(0) - p  # of likelier tokens
            kept = ids[: target.max_n][before[: target.max_n] < target.mass]
            return at[kept] - at.mean()
        case FeatureTarget():
            placed = spliced.placements[spliced.write_site(target.site)]
            x = arrived[placed.read][target.pos]
            return placed.dictionary.pre_activations(x)[target.feature][None]
        case DirectionTarget():
            return (arrived[canonical(target.site)][target.pos] @ target.vector.double())[None]


@MORE
@given(case=cases())
@example(case=GROUPED)
@example(case=replace(AROUND_NORMS, mode="replace"))
def test_values_are_what_the_model_computes(case: Case):
    spliced, trace = traced(case)
    logits, arrived = watch(spliced, case)
    outputs = torch.cat([model_values(t, spliced, logits, arrived) for t in case.targets()])
    features, activations = [], []
    for node in trace.targets[len(outputs) :]:
        placed = spliced.placements[write_site(spliced, node)]
        z = placed.dictionary.pre_activations(arrived[placed.read][node.pos])
        features.append(z[node.feature])
        activations.append(placed.dictionary.activate(z)[node.feature])
        assert node.activation == pytest.approx(float(activations[-1]), rel=1e-9, abs=1e-9)
    want = torch.stack([*outputs, *features])
    assert len(want) == len(trace.target_values)
    scale = max(map(size, (logits, *arrived.values())))
    assert size(trace.target_values - want) < 1e-10 * scale
    assert size(trace.edges.sum(1) - want) < 1e-9 * scale
    if case.mode == "exact":  # and against transformers alone
        with torch.no_grad():
            own = hf_model(case.shape)(case.tokens[None]).logits[0]
        tolerance = 1e-9 if case.shape.family in IN_FLOAT64 else 1e-4
        assert size(own - logits) < tolerance * size(logits)


# --- edges respect time and height --------------------------------------------------------------


def height(model: SubjectModel, site: Site, *, reads: bool) -> tuple[int, float]:
    """When a place is computed. In a parallel block the MLP reads what the heads read."""
    if site.kind == "unembed_in":
        return model.n_layers, 0
    if site.kind == "mlp_in" and model.parallel:
        return site.layer, _HEADS
    after = 0.5 if site.kind == "mlp_out" and not reads else 0  # an SAE reads what it replaces
    return site.layer, _RANK[site.kind] + after


def source_height(spliced: SplicedModel, node: Node) -> tuple[int, float]:
    if node.kind in ("token", "position"):
        return -1, 0
    if node.site == "mlp":  # the MLP itself or its transcoder, in front of a post-norm or behind
        return height(spliced.model, Site("mlp_raw_out", node.layer), reads=False)
    return height(spliced.model, write_site(spliced, node), reads=False)


def reachable(spliced: SplicedModel, read: Site) -> Callable[[Node, tuple[int, float]], bool]:
    """Whether the stream or attention may carry anything from a source at a height to a place."""
    model, placed = spliced.model, spliced.placements
    high, mlp = height(model, read, reads=True), spliced.mlp_site(read.layer)
    stream = [site for site in placed if site.kind in ("resid_pre", "resid_post")]
    cuts = [height(model, site, reads=True) for site in stream]
    lowest = -1, 0.0
    if read.kind == "mlp_out" and (mlp not in placed or placed[mlp].dictionary.W_skip is None):
        lowest = read.layer, _RANK["mlp_raw_out"]  # nothing leads through the MLP

    def reach(source: Node, low: tuple[int, float]) -> bool:
        if source.kind == "sublayer" and Site("mlp_out", source.layer) in placed:  # by an SAE
            return read == Site("mlp_out", source.layer)
        return lowest <= low < high and not any(low < cut < high for cut in cuts)

    return reach


@EXAMPLES
@given(case=cases())
def test_nothing_comes_from_later_positions_or_higher_places(case: Case):
    spliced, trace = traced(case)
    lows = {i: source_height(spliced, n) for i, n in enumerate(trace.sources) if n.kind != "bias"}
    for row, target in enumerate(trace.targets):
        reach = reachable(spliced, read_site(spliced, trace, row))
        barred = [
            column
            for column, low in lows.items()
            if trace.sources[column].pos > target.pos or not reach(trace.sources[column], low)
        ]
        assert not trace.edges[row, barred].any(), target.id


# --- how rows are computed does not matter ------------------------------------------------------


@EXAMPLES
@given(case=cases(), n_rows=st.integers(0, 40), room=st.integers(0, 12))
def test_memory_and_the_choice_of_rows_change_no_edge(case: Case, n_rows: int, room: int):
    spliced, whole = traced(case)
    memory = 2 * room * case.shape.d_model * 8 * len(case.prompt)  # `room` gradients at the end
    little = attribute(spliced, case.tokens, case.targets(), mode=case.mode, memory=memory)
    part = attribute(spliced, case.tokens, case.targets(), mode=case.mode, max_feature_rows=n_rows)
    assert [node.id for node in little.targets] == [node.id for node in whole.targets]
    n_outputs = len(whole.outputs)
    assert len(part.targets) <= n_outputs + n_rows
    for other in (little, part):
        assert [node.id for node in other.sources] == [node.id for node in whole.sources]
        rows = [whole.targets.row(node.id) for node in other.targets]
        assert rows[:n_outputs] == list(range(n_outputs))
        scale = whole.edges[rows].abs().amax(1, keepdim=True)
        assert ((other.edges - whole.edges[rows]).abs() <= 1e-11 * scale).all()
        assert torch.equal(other.target_values, whole.target_values[rows])
    if part.left_out == 0:  # nothing reaches the outputs through features without a row
        known = [whole.sources.row(node.id) for node in part.targets[n_outputs:]]
        missing = set(whole.sources.where(kind="feature")) - set(known)
        assert not part.edges[:, sorted(missing)].any()
    else:
        assert len(part.targets) == n_outputs + n_rows


# --- edges are effects of interventions ---------------------------------------------------------


class Pushed(ListeningModel):
    """A view of a model with something added to the residual stream's first value."""

    def __init__(self, spliced: SplicedModel, sites: set[Site], push: Tensor | None) -> None:
        transcoded = {site for site, p in spliced.placements.items() if p.read != site}
        super().__init__(spliced.model, sites, transcoded)
        self._push = push

    def run(self, tokens: Tensor, *, edits: Any = None, capture: Any = ()) -> Any:
        if self._push is not None:
            edits = {**(edits or {}), Site("embed"): lambda x: x + self._push}
        return super().run(tokens, edits=edits, capture=capture)


def observe(
    spliced: SplicedModel,
    state: FrozenState,
    trace: Trace,
    change: Intervention | None = None,
    push: Tensor | None = None,
) -> Tensor:
    """The values of all targets in the frozen model with features held."""
    seen = SplicedModel.__new__(SplicedModel)
    seen.placements = spliced.placements
    seen.model = model = Pushed(spliced, {readout.site for readout in trace.outputs}, push)
    run = seen.run(
        state.tokens,
        mode="frozen",
        state=state,
        hold_features=True,
        interventions=[] if change is None else [change],
    )
    values = [
        model.arrived(readout.site)[0, readout.pos] @ readout.vector + readout.constant
        for readout in trace.outputs
    ]
    for node in trace.targets[len(values) :]:
        z = run.pre_activations[write_site(spliced, node)]
        values.append(z[0, node.pos, node.feature])
    return torch.stack(values)


def effects(spliced: SplicedModel, state: FrozenState, trace: Trace, source: Node) -> Tensor:
    """How every target changes if `source` writes twice what it writes, all else held."""
    base, pos = observe(spliced, state, trace), source.pos
    if source.kind == "feature":
        change = Intervention(
            f"{source.site}.{source.layer}",
            source.feature,
            "add",
            source.activation,
            positions=[pos],
        )
        return observe(spliced, state, trace, change=change) - base
    if source.kind in ("error", "sublayer"):
        site = write_site(spliced, source)
        held = state.values if source.kind == "sublayer" else state.errors
        twice = held[site].clone()
        twice[0, pos] *= 2
        name = "values" if source.kind == "sublayer" else "errors"
        doubled = replace(state, **{name: held | {site: twice}})
        return observe(spliced, doubled, trace) - base
    push = torch.zeros_like(state.values[Site("embed")])
    push[0, pos] = state.values[Site("embed")][0, pos]
    if source.kind == "position":
        push[0, pos] = state.read(Site("resid_pre", 0))[0, pos] - push[0, pos]
    return observe(spliced, state, trace, push=push) - base


def pick_source(trace: Trace, kind: int, index: int) -> int:
    """A column that is no bias, of a kind picked first: there are many more features."""
    kinds = sorted({node.kind for node in trace.sources} - {"bias"})
    columns = trace.sources.where(kind=kinds[kind % len(kinds)])
    return columns[index % len(columns)]


@MORE
@given(case=cases(), kind=INDEX, index=INDEX)
@example(case=GROUPED, kind=1, index=0)
@example(case=AROUND_NORMS, kind=1, index=0)
def test_edges_are_effects_of_interventions(case: Case, kind: int, index: int):
    spliced, trace = traced(case)
    state = spliced.state(case.tokens[None], case.mode)
    rounding = 1e-13 * max(size(x) for x in (trace.target_values, *state.values.values()))
    for column in {pick_source(trace, kind + i, index + i) for i in range(3)}:
        source = trace.sources[column]
        want, edges = effects(spliced, state, trace, source), trace.edges[:, column]
        assert ((edges - want).abs() <= 1e-7 * want.abs() + rounding).all(), source.id


# --- edges are sums over paths of products of factors -------------------------------------------


def one_head_at_most(spliced: SplicedModel, source: Node, read: Site) -> bool:
    """Whether no way leads from a source to a place through two heads or a linear skip."""
    model, placed = spliced.model, spliced.placements
    low, high = source_height(spliced, source), height(model, read, reads=True)
    ways = 0
    for layer in range(model.n_layers):
        attention, mlp = Site("attn_out", layer), spliced.mlp_site(layer)
        if attention not in placed or read == attention:
            ways += low < (layer, _HEADS) and (layer, _RANK["attn_out"]) <= high
        if mlp in placed and placed[mlp].dictionary.W_skip is not None:
            skips_from = height(model, Site("mlp_in", layer), reads=True)
            if low < skips_from and (layer, _RANK["mlp_raw_out"]) < high:
                return False
    return ways <= 1


@MORE
@given(case=cases(), row=INDEX, index=INDEX)
@example(case=PARALLEL, row=-1, index=0)
@example(case=POST_NORMS, row=-1, index=0)
@example(case=AROUND_NORMS, row=-1, index=0)
def test_paths_add_up_to_edges_and_factors_multiply_to_paths(case: Case, row: int, index: int):
    spliced, trace = traced(case)
    row, n_sources = row % len(trace.targets), len(trace.sources)
    target, read = trace.targets[row], read_site(spliced, trace, row)
    split = split_by_path(spliced, trace, target.id)
    assert torch.equal(split.edges, trace.edges[row])
    assert size(split.values.sum(0) + split.remainder - split.edges) <= 1e-12 * size(split.values)
    columns = trace.edges[row].abs().topk(min(4, n_sources)).indices.tolist()
    columns += [index % n_sources, (index + 1) % n_sources]
    pairs = [(target.id, trace.sources[column].id) for column in columns]
    for column, edge in zip(columns, factorise(spliced, trace, pairs), strict=True):
        assert edge.edge == float(trace.edges[row, column])
        assert edge.source == trace.sources[column]
        for path in edge.paths:
            factors = path.activation * path.attention / prod(path.scales.values())
            value = float(split.values[split.heads.index(path.head), column])
            assert factors * path.virtual_weight == pytest.approx(value, rel=1e-10, abs=1e-300)
        total = sum(path.value for path in edge.paths) + edge.remainder
        assert total == pytest.approx(edge.edge, rel=1e-10, abs=1e-12 * size(split.values))
    rounding = 1e-11 * size(split.values)
    for column, source in enumerate(trace.sources):
        if source.kind != "bias" and one_head_at_most(spliced, source, read):
            assert abs(float(split.remainder[column])) <= rounding, source.id
            if not trace.edges[row, column]:
                assert size(split.values[:, column]) <= rounding, source.id


def silenced(state: FrozenState, heads: set[tuple[int, int]]) -> FrozenState:
    """The state with only these heads' patterns left."""
    values = dict(state.values)
    for site, pattern in state.values.items():
        if site.kind == "pattern":
            kept = [(site.layer, head) in heads for head in range(pattern.shape[1])]
            values[site] = pattern * torch.tensor(kept).double()[:, None, None]
    return replace(state, values=values)


@EXAMPLES
@given(case=cases(skips=False), row=INDEX, head=INDEX, kind=INDEX, index=INDEX)
def test_a_path_is_what_is_left_when_all_other_heads_are_silent(
    case: Case, row: int, head: int, kind: int, index: int
):
    spliced, trace = traced(case)
    column, row = pick_source(trace, kind, index), row % len(trace.targets)
    layer, head = divmod(head % (case.shape.n_layers * case.shape.n_heads), case.shape.n_heads)
    split = split_by_path(spliced, trace, trace.targets[row].id)
    state = spliced.state(case.tokens[None], case.mode)
    rounding = 1e-13 * max(size(x) for x in (trace.target_values, *state.values.values()))

    def left(heads: set[tuple[int, int]]) -> float:
        return float(effects(spliced, silenced(state, heads), trace, trace.sources[column])[row])

    def path(head: tuple[int, int] | None) -> float:
        if head not in split.heads:
            return 0.0
        return float(split.values[split.heads.index(head), column])

    direct, with_head = left(set()), left({(layer, head)})
    assert path(None) == pytest.approx(direct, rel=1e-7, abs=rounding)
    assert path((layer, head)) == pytest.approx(with_head - direct, rel=1e-7, abs=2 * rounding)


@EXAMPLES
@given(case=cases(), row=INDEX)
def test_virtual_weights_are_the_same_at_every_position(case: Case, row: int):
    """Features of one name, and tokens of one id, have one weight a path: nothing of the prompt."""
    spliced, trace = traced(case)
    rows = trace.targets.where(kind="feature")
    assume(rows)
    first = trace.targets[rows[row % len(rows)]]
    weights: dict[tuple, list[Tensor]] = {}
    place = {"site": first.site, "layer": first.layer, "feature": first.feature}
    for row in trace.targets.where(kind="feature", **place)[:3]:
        split = split_by_path(spliced, trace, trace.targets[row].id)
        for column, node in enumerate(trace.sources):
            if node.kind in ("feature", "token") and node.pos <= trace.targets[row].pos:
                name = (node.kind, node.site, node.layer, node.feature)
                weights.setdefault(name, []).append(split.virtual_weights[:, column])
    largest = max(size(w) for found in weights.values() for w in found)
    for name, found in weights.items():
        assert size(torch.stack(found) - found[0]) <= 1e-12 * largest, name


# --- corners ------------------------------------------------------------------------------------


@EXAMPLES
@given(case=cases(max_layers=2))
def test_no_target_at_all_explains_the_features(case: Case):
    spliced = case.spliced()
    n_active = sum(
        int(a.count_nonzero())
        for a in spliced.state(case.tokens[None], case.mode).activations.values()
    )
    if not n_active:
        with pytest.raises(ValueError, match="nothing to explain"):
            attribute(spliced, case.tokens, [], mode=case.mode)
        return
    trace = attribute(spliced, case.tokens, [], mode=case.mode)
    assert len(trace.targets) == n_active
    assert trace.conservation_error() < 1e-9
    names = {placement.site for placement in spliced.placements.values()}
    assert names >= {node.site for node in trace.targets}
