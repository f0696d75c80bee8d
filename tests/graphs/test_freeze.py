"""Graphs that can be run, against the frozen spliced model itself."""

from dataclasses import replace

import pytest
import torch

from attribution import FeatureTarget, LogitDifference, attribute
from circuits import SplicedModel
from circuits.patching import NodeValues, patch_values, zero_values
from circuits.sites import Site
from circuits.spliced import FrozenState
from graphs import (
    CircuitGraph,
    FrozenGraph,
    acdc_edges,
    build_graph,
    freeze_graph,
    output_gap,
    prune,
)
from tests import models

_TARGET = LogitDifference(5, 9)


def _held(architecture: str, activation: str) -> tuple[SplicedModel, FrozenState, NodeValues]:
    """Two prompts, and two that differ from them in one token."""
    model = models.subject(architecture, torch.float64)
    kept = {
        layer: models.transcoder(activation, seed=layer).to(dtype=torch.float64)
        for layer in range(1, models.N_LAYERS)
    }
    spliced = SplicedModel(model, kept)
    tokens = torch.stack([models.TOKENS, models.TOKENS.flip(0)])
    corrupted = tokens.clone()
    corrupted[:, 2] = 7
    with torch.no_grad():
        state, other = spliced.state(tokens), spliced.state(corrupted)
        return spliced, state, patch_values(spliced, other)


def _nearly(clean: FrozenState, other: NodeValues, step: float) -> NodeValues:
    """A small step from the clean values to the others."""

    def mix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + step * (b - a)

    return NodeValues(
        {site: mix(clean.activations[site], value) for site, value in other.activations.items()},
        {site: mix(clean.errors[site], value) for site, value in other.errors.items()},
        {site: mix(clean.values[site], value) for site, value in other.sublayers.items()},
        mix(clean.values[Site("embed")], other.embed),
    )


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_patched_inputs_spread_as_in_the_frozen_model(architecture: str, activation: str) -> None:
    """A step so small that no feature comes or goes: tokens and the held MLP of layer 0 patched."""
    spliced, clean, other = _held(architecture, activation)
    near = _nearly(clean, other, 1e-7)
    graph = freeze_graph(spliced, clean, near, _TARGET)
    patched = torch.tensor([node.kind in ("token", "sublayer") for node in graph.nodes])
    kept = ~patched[graph.edge_source]
    outputs, activations = graph.run(kept[None])
    values = clean.values | near.sublayers
    frozen = replace(clean, values=values)
    edits = {Site("embed"): lambda _: near.embed}
    logits = _frozen_logits(spliced, frozen, edits)
    wanted = logits[:, 5] - logits[:, 9]
    moved = (wanted - graph.value[:, graph.outputs[0]]).abs().max()
    gap = (outputs[0, :, 0] - wanted).abs().max()
    assert moved > 1e-9
    assert gap < 1e-4 * moved
    assert (activations[0] - graph.activation).abs().max() > 0


def _frozen_logits(spliced: SplicedModel, state: FrozenState, edits: dict) -> torch.Tensor:
    """Last-position logits of the frozen model with other embeddings."""
    model, original = spliced.model, spliced.model.run
    try:
        model.run = lambda tokens, *, edits, capture=(): original(  # type: ignore[method-assign]
            tokens, edits=edits | extra, capture=capture
        )
        extra = edits
        with torch.no_grad():
            logits = spliced.run(state.tokens, mode="frozen", state=state).logits[:, -1]
        cap = model.logit_softcap  # graphs explain logits before the cap
        return cap * (logits / cap).atanh() if cap else logits
    finally:
        del model.run  # type: ignore[attr-defined]


def test_removed_features_carry_their_other_activation() -> None:
    spliced, clean, other = _held("gpt2", "jumprelu")
    graph = freeze_graph(spliced, clean, other, _TARGET)
    write = spliced.write_site("mlp.1")
    for edge in range(0, graph.n_edges, 97):
        node = graph.nodes[int(graph.edge_source[edge])]
        if node.kind != "feature" or node.layer != 1:
            continue
        for prompt in range(2):
            own = clean.activations[write][prompt, node.pos, node.feature]
            new = other.activations[write][prompt, node.pos, node.feature]
            wanted = graph.clean[prompt, edge] * (new / own if own > 0 else 0.0)
            torch.testing.assert_close(graph.patched[prompt, edge], wanted)


def test_zero_ablation_carries_nothing_but_tokens() -> None:
    spliced, clean, _ = _held("llama_gqa", "jumprelu")
    graph = freeze_graph(spliced, clean, zero_values(spliced, clean), _TARGET)
    kinds = [node.kind for node in graph.nodes]
    is_free = torch.tensor([kind in ("feature", "error", "sublayer") for kind in kinds])
    source = graph.edge_source
    assert not graph.patched[:, is_free[source]].any()
    torch.testing.assert_close(graph.patched[:, ~is_free[source]], graph.clean[:, ~is_free[source]])


def test_rows_sum_to_their_values() -> None:
    spliced, clean, other = _held("gemma2", "topk")
    graph = freeze_graph(spliced, clean, other, _TARGET)
    total = torch.zeros_like(graph.value).index_add(1, graph.edge_target, graph.clean)
    targets = graph.value != 0
    torch.testing.assert_close(total[targets], graph.value[targets])
    on = graph.activation > 0
    assert (graph.value[on] > graph.threshold[on]).all()
    torch.testing.assert_close(graph.value[on], graph.activation[on])


def test_targets_need_one_name() -> None:
    spliced, clean, other = _held("gpt2", "jumprelu")
    with pytest.raises(ValueError, match=r"every prompt needs the same targets"):
        freeze_graph(spliced, clean, other)
    graph = freeze_graph(spliced, clean, other, FeatureTarget("mlp.2", 3, 4))
    assert [node.site for node in graph.nodes if node.kind == "output"] == ["mlp2.3"]


def test_pruning_a_circuit_graph_by_its_edges() -> None:
    """Of one prompt: what stays is `acdc_edges`' answer, on the graph's own edges and nodes."""
    spliced, clean, other = _held("gpt2", "jumprelu")
    one, there = clean.select(0), NodeValues(*(_first(part) for part in _parts(other)))
    frozen = freeze_graph(spliced, one, there, _TARGET)
    graph = build_graph(attribute(spliced, one.tokens[0], _TARGET))
    full = frozen.value[:, frozen.outputs]
    threshold = 0.02 * float(full.abs().max())
    circuit = prune(graph, method="acdc-edges", frozen=frozen, threshold=threshold)
    kept = acdc_edges(
        frozen,
        score=output_gap(full),
        threshold=threshold,
        candidates=torch.tensor(
            [n.kind not in ("bias", "position", "output") for n in frozen.nodes]
        )[frozen.edge_source],
    )
    ids = [node.id for node in frozen.nodes]
    pairs = zip(frozen.edge_source[kept].tolist(), frozen.edge_target[kept].tolist(), strict=True)
    wanted = {(ids[source], ids[target]) for source, target in pairs}
    found = set(circuit.digraph.edges)
    assert 0 < len(found) < graph.n_edges
    assert found <= wanted
    assert {target for _, target in wanted - found}.isdisjoint(circuit.digraph)
    assert all(circuit.digraph.out_degree(n.id) for n in circuit.nodes if n.kind != "output")
    assert "edges in graph space" in " ".join(circuit.metadata.notes.values())


def test_a_pruned_graph_is_judged_by_its_own_outputs() -> None:
    spliced, clean, other = _held("gpt2", "jumprelu")
    one, there = clean.select(0), NodeValues(*(_first(part) for part in _parts(other)))
    frozen = freeze_graph(spliced, one, there, _TARGET)
    graph = build_graph(attribute(spliced, one.tokens[0], _TARGET))
    start = prune(graph, method="influence", node_threshold=0.6)
    threshold = 0.05 * float(frozen.value[:, frozen.outputs].abs().max())
    options = {"method": "acdc-edges", "frozen": frozen, "threshold": threshold}
    flags = _flags(start, frozen)
    own = frozen.run(flags[None])[0][0]
    assert not torch.allclose(own, frozen.value[:, frozen.outputs])
    found = prune(start, **options)
    assert set(found.digraph.edges) == set(
        prune(start, score=output_gap(own), **options).digraph.edges
    )
    assert set(found.digraph.edges) != set(
        prune(start, score=output_gap(frozen.value[:, frozen.outputs]), **options).digraph.edges
    )


def _flags(graph: CircuitGraph, frozen: FrozenGraph) -> torch.Tensor:
    """Which edges of `frozen` are in `graph`."""
    there = set(graph.digraph.edges)
    ids = [node.id for node in frozen.nodes]
    ends = zip(frozen.edge_source.tolist(), frozen.edge_target.tolist(), strict=True)
    return torch.tensor([(ids[source], ids[target]) in there for source, target in ends])


def _parts(values: NodeValues) -> list:
    return [values.activations, values.errors, values.sublayers, values.embed]


def _first(part: dict | torch.Tensor) -> dict | torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part[:1]
    return {site: value[:1] for site, value in part.items()}


def test_a_graph_of_other_prompts_is_refused() -> None:
    spliced, clean, other = _held("gpt2", "jumprelu")
    frozen = freeze_graph(spliced, clean, other, _TARGET)
    graph = build_graph(attribute(spliced, clean.tokens[0], FeatureTarget("mlp.2", 3, 4)))
    with pytest.raises(ValueError, match=r"the frozen graph has no output.mlp2.3"):
        prune(graph, method="acdc-edges", frozen=frozen, threshold=0.1)
