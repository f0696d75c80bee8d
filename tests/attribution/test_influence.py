"""Influence over all paths: by hand, against inverses, against autograd with features live."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution import LogitDifference, Trace, attribute
from attribution.edges import Edges
from attribution.effects.flow import build_flow, pull, push
from attribution.effects.influence import (
    absolute_influence,
    leaf_sources,
    linear_flow,
    signed_influence,
)
from circuits import FrozenState, Site, SplicedModel
from circuits.spliced import site_name
from graphs import build_graph, node_influence
from tests import models
from tests.attribution.traces import hand_trace, random_trace
from tests.models import ARCHITECTURES, N_LAYERS, TOKENS

BATCH = TOKENS[None]
CHAIN = ("t0 t1 e0 f0.5 f1.3", "o.logit f0.5 f1.3", {"f0.5": 2.0, "f1.3": 4.0, "o.logit": 4.0})
CHAIN_EDGES = {
    ("t0", "f0.5"): 3.0,
    ("e0", "f0.5"): -1.0,
    ("f0.5", "f1.3"): 3.0,
    ("t1", "f1.3"): 1.0,
    ("f1.3", "o.logit"): 2.0,
    ("f0.5", "o.logit"): 1.5,
    ("t1", "o.logit"): 0.5,
}


def square(trace: Trace, rows: Tensor) -> Tensor:
    """`[source, source]`: the given rows in the place of the features that have them."""
    n = len(trace.sources)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for row in trace.targets.where(kind="feature"):
        matrix[trace.sources.row(trace.targets[row].id)] = rows[row]
    return matrix


def over_all_paths(first: Tensor, onward: Tensor) -> Tensor:
    """`E (I - N)^-1` by a dense inverse."""
    return first @ torch.linalg.inv(torch.eye(len(onward), dtype=torch.float64) - onward)


def dense_signed(trace: Trace) -> Tensor:
    edges = trace.blocks.dense().double()
    activation = torch.tensor([n.activation for n in trace.targets], dtype=torch.float64)
    return over_all_paths(edges, square(trace, edges / activation[:, None]))


def dense_absolute(trace: Trace) -> Tensor:
    size = trace.blocks.dense().double().abs()
    shares = size / size.sum(1, keepdim=True).clamp_min(1e-10)
    return over_all_paths(shares, square(trace, shares))


def test_signed_influence_of_the_chain_by_hand():
    trace = hand_trace(*CHAIN, CHAIN_EDGES)
    # f1 hands 2 on; f0 gets 1.5 directly and 2 * 3/4 through f1: 3 in all, which its sources share
    # as 3 to -1 (in units of its activation, 2); t1 gets 0.5 and 2 * 1/4.
    want = torch.tensor([[4.5, 1.0, -1.5, 3.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(signed_influence(trace), want)
    leaves = signed_influence(trace, sources=leaf_sources(trace))
    assert leaves.sum() == pytest.approx(4.0)  # the value of the output


def test_absolute_influence_of_the_chain_by_hand():
    trace = hand_trace(*CHAIN, CHAIN_EDGES)
    # shares: output 1/2 f1, 3/8 f0, 1/8 t1; f1 3/4 f0, 1/4 t1; f0 3/4 t0, 1/4 e0
    f0 = 3 / 8 + 1 / 2 * 3 / 4
    want = torch.tensor([[f0 * 3 / 4, 1 / 8 + 1 / 8, f0 / 4, f0, 1 / 2]], dtype=torch.float64)
    torch.testing.assert_close(absolute_influence(trace), want)


def test_influence_of_one_feature_on_another():
    trace = hand_trace(*CHAIN, CHAIN_EDGES)
    between = signed_influence(trace, targets=["f1.3@1", "mlp0.5@1"][1:], sources=["token@0"])
    assert between.tolist() == [[3.0]]
    rows, columns = trace.targets.where(layer=1), trace.sources.where(kind="feature", layer=0)
    assert signed_influence(trace, targets=rows, sources=columns).tolist() == [[3.0]]
    assert signed_influence(trace, targets=["mlp1.3@1"], sources="token@0").tolist() == [[4.5]]
    own = signed_influence(trace, targets=["mlp0.5@1"], sources=["mlp0.5@1", "mlp1.3@1"])
    assert own.tolist() == [[0.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_substitution_equals_the_inverse(seed: int):
    trace = random_trace(seed)
    n_targets, n_sources = trace.blocks.shape
    everything = range(n_targets)
    signed, absolute = dense_signed(trace), dense_absolute(trace)
    torch.testing.assert_close(signed_influence(trace, targets=everything), signed)
    torch.testing.assert_close(absolute_influence(trace, targets=everything), absolute)
    torch.testing.assert_close(signed_influence(trace), signed[:2])
    flow, eye = linear_flow(trace), torch.eye(n_sources, dtype=torch.float64)
    torch.testing.assert_close(push(flow, eye), pull(flow, list(everything)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_any_two_sets_of_nodes(seed: int, data: st.DataObject):
    trace = random_trace(seed)
    n_targets, n_sources = trace.blocks.shape
    rows = data.draw(st.permutations(range(n_targets)))[: data.draw(st.integers(1, 6))]
    columns = data.draw(st.permutations(range(n_sources)))[: data.draw(st.integers(1, 6))]
    names = [trace.sources[c].id for c in columns]
    want = dense_signed(trace)[rows][:, columns]
    torch.testing.assert_close(signed_influence(trace, targets=rows, sources=names), want)
    want = dense_absolute(trace)[rows][:, columns]
    torch.testing.assert_close(absolute_influence(trace, targets=rows, sources=names), want)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_leaves_add_up_in_random_traces(seed: int):
    trace = random_trace(seed)
    leaves = leaf_sources(trace)
    assert {trace.sources[c].id for c in leaves if trace.sources[c].kind == "feature"} == {
        "mlp1.7@1"
    }
    totals = signed_influence(trace, targets=range(len(trace.targets)), sources=leaves)
    torch.testing.assert_close(totals.sum(1), trace.target_values)
    shares = absolute_influence(trace, sources=leaves).sum(1)
    has_edges = trace.blocks.dense()[:2].any(1)
    torch.testing.assert_close(shares, has_edges.double())


def test_absolute_influence_is_that_of_graphs():
    """Another implementation, which works on the edges of a graph until nothing is left."""
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    trace = attribute(spliced, TOKENS, [LogitDifference([3], [4]), LogitDifference(5)])
    graph = build_graph(trace)
    want = node_influence(graph, torch.tensor([0.25, 0.75]))
    got = torch.tensor([0.25, 0.75]).double() @ absolute_influence(trace)
    at = [graph.nodes.row(node.id) for node in trace.sources]
    torch.testing.assert_close(got, want[at])


class LiveModel:
    """The frozen model as autograd sees it with features live: patterns, denominators and
    unreplaced MLPs held, dictionaries computed, errors and embeddings leaves, and a leaf of zeros
    added to all activations. Shares no formula with traces."""

    def __init__(self, spliced: SplicedModel, state: FrozenState) -> None:
        self.spliced, self.state = spliced, state
        self.leaves: dict[tuple[str, Site], Tensor] = {}
        self.arrived: dict[Site, Tensor] = {}
        self.pre_activations: dict[Site, Tensor] = {}
        layers = range(N_LAYERS)
        held = (*spliced.model.scale_sites(), *(Site("pattern", i) for i in layers))
        edits = {site: self._hold(site) for site in held}
        for layer in layers:
            site = Site("mlp_raw_out", layer)
            if site not in spliced.placements:
                edits[site] = self._constant("sublayer", site)
        edits[Site("embed")] = self._constant("token", Site("embed"))
        reads = {p.read for write, p in spliced.placements.items() if p.read != write}
        for site in (*reads, Site("resid_pre", 0), Site("unembed_in")):
            edits[site] = self._see(site)
        edits.update({site: self._splice(site) for site in spliced.placements})
        with torch.enable_grad():
            spliced.model.run(state.tokens, edits=edits)

    def _hold(self, site: Site):
        return lambda _: self.state.values[site].clone()

    def _leaf(self, name: str, site: Site, value: Tensor) -> Tensor:
        self.leaves[name, site] = leaf = value.clone().requires_grad_()
        return leaf

    def _constant(self, name: str, site: Site):
        return lambda _: self._leaf(name, site, self.state.values[site])

    def _see(self, site: Site):
        def see(value: Tensor) -> Tensor:
            self.arrived[site] = value
            return value

        return see

    def _splice(self, write: Site):
        placement = self.spliced.placements[write]

        def splice(y: Tensor) -> Tensor:
            self.arrived[write] = y
            x = self.arrived[placement.read]
            self.pre_activations[write] = z = placement.dictionary.pre_activations(x)
            a = placement.dictionary.activate(z)
            a = a + self._leaf("feature", write, torch.zeros_like(a))
            error = self._leaf("error", write, self.state.errors[write])
            return placement.dictionary.decode(a, x) + error

        return splice

    def total(self, trace: Trace, scalar: Tensor) -> Tensor:
        """Gradient times value of every source but biases (0 there)."""
        inputs = list(self.leaves.values())
        stream = self.arrived[Site("resid_pre", 0)]
        found = torch.autograd.grad(scalar, [*inputs, stream], retain_graph=True, allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(self.leaves.items(), found[:-1], strict=True)
        }
        at_stream = torch.zeros_like(stream) if found[-1] is None else found[-1]
        row = torch.zeros(len(trace.sources), dtype=scalar.dtype)
        for column, node in enumerate(trace.sources):
            if node.kind == "feature":
                write = self.spliced.write_site(f"{node.site}.{node.layer}")
                g = gradients["feature", write][0, node.pos, node.feature]
                row[column] = g * node.activation
            elif node.kind == "position":
                values = self.state.values
                vector = values[Site("resid_pre", 0)] - values[Site("embed")]
                row[column] = at_stream[0, node.pos] @ vector[0, node.pos]
            elif node.kind != "bias":
                (site,) = (
                    s
                    for kind, s in gradients
                    if kind == node.kind and (s.kind == "embed" or site_name(s) == node.site)
                    if s.kind == "embed" or s.layer == node.layer
                )
                value = self.leaves[node.kind, site].detach()
                row[column] = gradients[node.kind, site][0, node.pos] @ value[0, node.pos]
        return row


@pytest.mark.parametrize("mixture", ["transcoders", "skip", "residual", "mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_signed_influence_is_gradient_times_value_with_features_live(
    architecture: str, mixture: str
):
    spliced = models.spliced(architecture, mixture, torch.float64)
    trace = attribute(spliced, TOKENS, LogitDifference([3], [4]))
    live = LiveModel(spliced, spliced.state(BATCH))
    features = trace.targets.where(kind="feature")
    rows = [0, *features[:: max(1, len(features) // 12)]]
    totals = signed_influence(trace, targets=rows)
    not_bias = [i for i, node in enumerate(trace.sources) if node.kind != "bias"]
    weights = spliced.model.W_U[:, 3] - spliced.model.W_U[:, 4]
    for row, total in zip(rows, totals, strict=True):
        node = trace.targets[row]
        if node.kind == "output":
            scalar = live.arrived[Site("unembed_in")][0, -1] @ weights
        else:
            write = spliced.write_site(f"{node.site}.{node.layer}")
            scalar = live.pre_activations[write][0, node.pos, node.feature]
        want = live.total(trace, scalar)
        gap = (total - want)[not_bias].abs().max() / want.abs().max().clamp_min(1.0)
        assert gap < 1e-9, f"{node.id}: {gap}"
    indirect = (totals - trace.blocks.rows(rows)).abs().amax(1) > 1e-6
    assert indirect.any(), "no path through a feature: nothing was tested"


@pytest.mark.parametrize("mixture", models.MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_leaves_add_up_to_every_value(architecture: str, mixture: str):
    spliced = models.spliced(architecture, mixture, torch.float64)
    trace = attribute(spliced, TOKENS, [LogitDifference([3], [4]), LogitDifference(7, pos=2)])
    leaves = leaf_sources(trace)
    assert all(trace.sources[c].kind != "feature" for c in leaves)
    totals = signed_influence(trace, targets=range(len(trace.targets)), sources=leaves)
    size = totals.abs().amax(1).maximum(trace.target_values.abs()).clamp_min(1e-12)
    assert ((totals.sum(1) - trace.target_values).abs() / size).max() < 1e-9


def test_a_feature_without_a_row_is_a_leaf():
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    trace = attribute(spliced, TOKENS, LogitDifference([3], [4]), feature_rows=False)
    assert leaf_sources(trace) == list(range(len(trace.sources)))
    torch.testing.assert_close(signed_influence(trace), trace.blocks.dense())


@pytest.mark.parametrize("nodes", [["mlp9.9@9"], [99], [-99]])
def test_unknown_nodes_are_refused(nodes: list):
    trace = hand_trace(*CHAIN, CHAIN_EDGES)
    with pytest.raises(ValueError, match=r"no node .* among 3; give rows of the table or ids"):
        signed_influence(trace, targets=nodes)
    with pytest.raises(ValueError, match=r"no node .* among 5; give rows of the table or ids"):
        absolute_influence(trace, sources=nodes)


def test_a_node_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"give each node once, got \['token@0', 'token@0'\]"):
        signed_influence(hand_trace(*CHAIN, CHAIN_EDGES), sources=[0, "token@0"])


def test_activations_that_are_not_pre_activations_are_refused():
    values = CHAIN[2] | {"f0.5": 2.0}
    trace = hand_trace(CHAIN[0], CHAIN[1], values, CHAIN_EDGES)
    trace.target_values[1] = 3.5  # as a soft threshold would give
    with pytest.raises(ValueError, match="activation 2 but pre-activation 3"):
        signed_influence(trace)
    absolute_influence(trace)  # shares need no slope


@pytest.mark.parametrize("source", ["f1.3", "f1.4"])
def test_edges_that_do_not_lead_upwards_are_refused(source: str):
    sources, targets = "t0 f0.5 f1.3 f1.4", "o.logit f0.5 f1.3 f1.4"
    values = {"o.logit": 1.0, "f0.5": 1.0, "f1.3": 1.0, "f1.4": 1.0}
    target = "f0.5" if source == "f1.3" else "f1.3"
    trace = hand_trace(sources, targets, values, {(source, target): 1.0})
    with pytest.raises(ValueError, match="have edges from features that do not lie below"):
        signed_influence(trace)


def test_a_target_without_edges_has_no_influence():
    values = CHAIN[2] | {"o.nothing": 0.0}
    trace = hand_trace(CHAIN[0], "o.nothing o.logit f0.5 f1.3", values, CHAIN_EDGES)
    assert not absolute_influence(trace)[0].any()
    assert not signed_influence(trace)[0].any()
    assert absolute_influence(trace)[1].any()


def test_what_is_pushed_stays_as_it_was():
    trace = hand_trace(*CHAIN, CHAIN_EDGES)
    start = torch.eye(5, dtype=torch.float64)
    push(linear_flow(trace), start)
    assert torch.equal(start, torch.eye(5, dtype=torch.float64))


def test_gains_scale_what_is_passed_on():
    """`build_flow` by itself: a gain of 0 leaves the edges, of 1 adds the product."""
    trace = hand_trace("t0 f0.5", "o.logit f0.5", {"o.logit": 1.0, "f0.5": 1.0}, {})
    edges = Edges.from_dense(torch.tensor([[5.0, 3.0], [2.0, 0.0]]))
    for gain, want in ((0.0, 5.0), (1.0, 11.0), (-0.5, 2.0)):
        flow = build_flow(edges, trace.targets, trace.sources, torch.full((2,), gain))
        assert pull(flow, [0])[0, 0] == want
        assert push(flow, torch.eye(2))[0, 0] == want
