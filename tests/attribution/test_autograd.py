"""Edges equal autograd through the frozen model, and predict interventions in it exactly."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attribution import DirectionTarget, LogitDifference, TopLogits, Trace, attribute
from attribution.nodes import Node
from circuits import FrozenState, Intervention, Site, SplicedModel
from tests import models
from tests.models import ARCHITECTURES, D_MODEL, N_LAYERS, TOKENS

BATCH = TOKENS[None]
TARGETS = [
    LogitDifference([3, 4], [5]),
    TopLogits(max_n=2, pos=3),
    DirectionTarget(Site("attn_out", 1), torch.linspace(-1.0, 2.0, D_MODEL), pos=4),
    DirectionTarget(Site("mlp_out", 0), torch.linspace(-1.0, 1.0, D_MODEL), pos=2),
]


class CutModel:
    """The frozen model as autograd sees it: patterns and denominators held, the output of every
    dictionary and of every held MLP a fresh leaf. Shares no formula with the sweep."""

    def __init__(self, spliced: SplicedModel, state: FrozenState) -> None:
        self.spliced, self.state = spliced, state
        self.leaves: dict[Site, Tensor] = {}
        self.arrived: dict[Site, Tensor] = {}
        layers = range(spliced.model.n_layers)
        edits: dict[Site, Callable[[Tensor], Tensor]] = {Site("embed"): self._leaf(Site("embed"))}
        for site in (*spliced.model.scale_sites(), *(Site("pattern", i) for i in layers)):
            edits[site] = self._hold(site)
        for layer in layers:
            edits[Site("mlp_in", layer)] = self._see(Site("mlp_in", layer))
            if not spliced.model.parallel:
                edits[Site("resid_mid", layer)] = self._see(Site("resid_mid", layer))
            edits[Site("mlp_raw_out", layer)] = self._leaf(Site("mlp_raw_out", layer))
            for kind in ("resid_pre", "resid_post", "attn_out", "mlp_out"):
                site = Site(kind, layer)
                placed = site in spliced.placements
                edits[site] = self._leaf(site) if placed else self._see(site)
        edits[Site("unembed_in")] = self._see(Site("unembed_in"))
        # Both names of the stream between two blocks are one tensor: edit it once.
        for layer in range(1, spliced.model.n_layers):
            del edits[Site("resid_pre", layer)]
        with torch.enable_grad():
            spliced.model.run(state.tokens, edits=edits)
        for layer in range(1, spliced.model.n_layers):
            self.arrived[Site("resid_pre", layer)] = self.arrived[Site("resid_post", layer - 1)]

    def _hold(self, site: Site) -> Callable[[Tensor], Tensor]:
        return lambda _: self.state.values[site].clone()

    def _see(self, site: Site) -> Callable[[Tensor], Tensor]:
        def see(value: Tensor) -> Tensor:
            self.arrived[site] = value
            return value

        return see

    def _leaf(self, site: Site) -> Callable[[Tensor], Tensor]:
        def cut(value: Tensor) -> Tensor:
            self.arrived[site] = value
            leaf = self.state.values[site].clone().requires_grad_()
            self.leaves[site] = leaf
            placement = self.spliced.placements.get(site)
            if placement is None or placement.read == site:
                return leaf
            if placement.dictionary.W_skip is not None:
                through = self.arrived[placement.read] @ placement.dictionary.W_skip
                leaf = leaf + through - through.detach()
            self.arrived[site] = leaf  # a transcoder stands for the MLP
            return leaf

        return cut

    def gradients(self, scalar: Tensor) -> dict[Site, Tensor]:
        found = torch.autograd.grad(
            scalar, list(self.leaves.values()), retain_graph=True, allow_unused=True
        )
        zero = torch.zeros(D_MODEL, dtype=scalar.dtype).expand(self.state.n_pos, -1)
        pairs = zip(self.leaves, found, strict=True)
        return {site: zero if g is None else g[0] for site, g in pairs}


def expected_row(cut: CutModel, trace: Trace, scalar: Tensor) -> Tensor:
    """`<gradient at the source's place, the source's vector>` for all columns but biases."""
    state, spliced = cut.state, cut.spliced
    gradients = cut.gradients(scalar)
    row = torch.zeros(len(trace.sources), dtype=scalar.dtype)
    for i, node in enumerate(trace.sources):
        if node.kind == "bias":
            continue
        site, vector = source_vector(spliced, state, node)
        row[i] = gradients[site][node.pos] @ vector
    return row


def source_vector(spliced: SplicedModel, state: FrozenState, node: Node) -> tuple[Site, Tensor]:
    embed = Site("embed")
    if node.kind == "token":
        return embed, state.values[embed][0, node.pos]
    if node.kind == "position":
        return embed, (state.values[Site("resid_pre", 0)] - state.values[embed])[0, node.pos]
    if node.kind == "sublayer":
        site = Site("mlp_raw_out", node.layer)
        return site, state.values[site][0, node.pos]
    site = spliced.write_site(f"{node.site}.{node.layer}")
    if node.kind == "error":
        return site, state.errors[site][0, node.pos]
    dictionary = spliced.placements[site].dictionary
    return site, node.activation * dictionary.W_dec[node.feature]


def target_scalar(cut: CutModel, trace: Trace, row: int) -> Tensor:
    spliced, model = cut.spliced, cut.spliced.model
    node = trace.targets[row]
    if node.kind == "feature":
        placement = spliced.placements[spliced.write_site(f"{node.site}.{node.layer}")]
        x = cut.arrived[placement.read][0, node.pos]
        return x @ placement.dictionary.W_enc[:, node.feature]
    if node.site.startswith("direction"):
        target = TARGETS[2] if "attn" in node.site else TARGETS[3]
        assert isinstance(target, DirectionTarget)
        return cut.arrived[target.site][0, target.pos] @ target.vector.to(cut.state.logits)
    logits = cut.arrived[Site("unembed_in")][0, node.pos] @ model.W_U
    if node.site == "logit difference":
        return logits[[3, 4]].mean() - logits[5]
    token = int(node.site.rpartition("(")[2].rstrip(")"))
    return logits[token] - logits.mean()


@pytest.mark.parametrize("mixture", ["none", "skip", "residual", "mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edges_equal_autograd_through_the_frozen_model(architecture: str, mixture: str):
    spliced = models.spliced(architecture, mixture, torch.float64)
    trace = attribute(spliced, TOKENS, TARGETS)
    cut = CutModel(spliced, spliced.state(BATCH))
    features = trace.targets.where(kind="feature")
    rows = [*trace.targets.where(kind="output"), *features[:: max(1, len(features) // 25)]]
    edges = trace.edges.clone()
    edges[:, trace.sources.where(kind="bias")] = 0.0
    for row in rows:
        want = expected_row(cut, trace, target_scalar(cut, trace, row))
        gap = (edges[row] - want).abs().max() / want.abs().max().clamp_min(1.0)
        assert gap < 1e-10, f"{trace.targets[row].id}: {gap}"


@pytest.mark.parametrize("mixture", ["skip", "residual", "mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edges_predict_interventions_exactly(architecture: str, mixture: str):
    """Adding delta to a source moves each target by edge / activation * delta, to rounding."""
    spliced = models.spliced(architecture, mixture, torch.float64)
    model, cap, delta = spliced.model, spliced.model.logit_softcap, 0.01
    trace = attribute(spliced, TOKENS, LogitDifference(3, 5))
    state = spliced.state(BATCH)
    base = spliced.run(BATCH, "frozen", state=state, hold_features=True)
    targets = [
        (spliced.write_site(f"{n.site}.{n.layer}"), n.pos, n.feature) for n in trace.targets[1:]
    ]

    def difference(logits: Tensor) -> Tensor:
        pair = logits[0, -1, [3, 5]]
        pair = cap * torch.atanh(pair / cap) if cap else pair
        return pair[0] - pair[1]

    columns = trace.sources.where(kind="feature")
    for column in columns[:: max(1, len(columns) // 12)]:
        source = trace.sources[column]
        name = f"{source.site}.{source.layer}"
        change = Intervention(name, source.feature, "add", delta, positions=[source.pos])
        run = spliced.run(BATCH, "frozen", state=state, hold_features=True, interventions=[change])
        moved = [difference(run.logits) - difference(base.logits)]
        for site, pos, feature in targets:
            before = base.pre_activations[site][0, pos, feature]
            moved.append(run.pre_activations[site][0, pos, feature] - before)
        want = trace.edges[:, column] * delta / source.activation
        gap = (torch.stack(moved) - want).abs().max() / want.abs().max().clamp_min(1e-3)
        assert gap < 1e-8, f"{source.id}: {gap}"
    assert model.n_layers == N_LAYERS


def test_gemma_rows_are_before_the_final_softcap():
    """A softcap is not linear: rows explain the logit that goes into it (and say so)."""
    spliced = models.spliced("gemma2", "skip", torch.float64)
    trace = attribute(spliced, TOKENS, LogitDifference(3), feature_rows=False)
    logits = spliced.state(BATCH).logits[0, -1]
    cap = spliced.model.logit_softcap
    assert torch.allclose(cap * torch.tanh(trace.target_values[0] / cap), logits[3], rtol=1e-9)
    assert (trace.target_values[0] - logits[3]).abs() > 1e-5
