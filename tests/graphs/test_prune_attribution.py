"""Estimated effects of nodes against patching them, and pruning by them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from attribution import LogitDifference, attribute
from attribution.nodes import Node, NodeTable
from circuits import Dictionary, SplicedModel
from circuits.patching import NodeValues, mean_values, patch_values, zero_values
from circuits.sites import Site
from circuits.spliced import FrozenState
from graphs import CircuitGraph, CircuitRunner
from graphs.build import merge_nodes
from graphs.feature_effects import attribution_effects, integrated_effects
from graphs.prune_attribution import feeding_nodes, prune_attribution
from graphs.scorer import is_candidate
from tests import models, transcoder_places
from tests.graphs.conftest import build_random
from tests.graphs.known_models import KNOWN
from tests.graphs.known_models import metric as known_metric

_CLEAN = torch.stack([models.TOKENS, models.TOKENS.flip(0)])
_CORRUPTED = _CLEAN.clone()
_CORRUPTED[:, 2] = 7
_CORRUPTED[0, -1] = 11


def _metric(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
    """Nothing linear: the log-odds of a token."""
    p = logits.softmax(-1)[:, 5]
    return (p / (1 - p)).log()


def _held(spliced: SplicedModel) -> tuple[CircuitRunner, NodeTable]:
    """Two prompts with their counterparts, and every node of either."""
    runner = CircuitRunner.on_prompts(spliced, _CLEAN, _CORRUPTED)
    traces = (attribute(spliced, tokens, LogitDifference(5, 9)) for tokens in _CLEAN)
    return runner, merge_nodes([trace.sources for trace in traces])


def _toward(clean: FrozenState, other: NodeValues, share: float) -> NodeValues:
    """Part of the way from the clean values to the others."""

    def mix(a: Tensor, b: Tensor) -> Tensor:
        return a + share * (b - a)

    return NodeValues(
        {site: mix(clean.activations[site], value) for site, value in other.activations.items()},
        {site: mix(clean.errors[site], value) for site, value in other.errors.items()},
        {site: mix(clean.values[site], value) for site, value in other.sublayers.items()},
        mix(clean.values[Site("embed")], other.embed),
    )


def _patched(runner: CircuitRunner, nodes: NodeTable, rows: list[int], share: float) -> Tensor:
    """The metric [row, prompt] with one node at a time `share` of the way to its other value."""
    other = _toward(runner.clean, runner.other, share)
    kept = torch.ones(len(rows), len(nodes), dtype=torch.bool)
    kept[range(len(rows)), rows] = False
    logits = replace(runner, other=other).logits(nodes, kept)
    return torch.stack([_metric(one) for one in logits])


def _quiet(architecture: str, mixture: Mapping[str, Dictionary]) -> SplicedModel:
    """With decoders of 3 % of their size: slopes behind full random ones are up to 1e5."""
    small = {key: replace(one, W_dec=0.03 * one.W_dec) for key, one in mixture.items()}
    return SplicedModel(models.subject(architecture, torch.float64), small)


@contextmanager
def _softmax_in_float64() -> Iterator[None]:
    """Attention that asks for a softmax in float32 gets it in its input's own dtype."""
    own = functional.softmax

    def softmax(x: Tensor, dim: int = -1, dtype: object = None, **rest: object) -> Tensor:
        return own(x, dim=dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "softmax", softmax)
        yield


_PLACES: dict[str, tuple[str, Mapping[str, Dictionary]]] = {
    "no dictionaries": ("gpt2", {}),
    "transcoders": ("gpt2", models.MIXTURES["transcoders"]),
    "skip": ("neox_parallel", models.MIXTURES["skip"]),
    "residual": ("gpt2", models.MIXTURES["residual"]),
    "mixed": ("neox_sequential", models.MIXTURES["mixed"]),
    "stream": ("gpt2", transcoder_places.MIXTURES["stream"]),
    "cross-layer": ("gpt2", transcoder_places.MIXTURES["crossing_among_saes"]),
    "grouped heads": ("llama_gqa", models.MIXTURES["mixed"]),
    "post-norms": ("gemma2", transcoder_places.MIXTURES["among_saes"]),
}


@pytest.mark.parametrize("place", _PLACES)
def test_effects_are_the_slope_of_patching(place: str) -> None:
    """Every kind of node, at every site: a small step of each alone, both ways.

    To 1e-6 of the largest effect.
    """
    architecture, mixture = _PLACES[place]
    step = 1e-5
    with transcoder_places.norms_in_float64(), _softmax_in_float64():
        runner, nodes = _held(_quiet(architecture, mixture))
        kinds = {(node.kind, node.site, node.layer) for node in nodes if is_candidate(node)}
        found = attribution_effects(runner.spliced, runner.clean, runner.other, _metric, nodes)
        large = found.abs().amax(0)
        rows: list[int] = []
        for kind, site, layer in sorted(kinds):
            mine = nodes.where(kind=kind, site=site, layer=layer)
            rows.extend(sorted(mine, key=lambda i: -float(large[i]))[:4])
        slope = _patched(runner, nodes, rows, step) - _patched(runner, nodes, rows, -step)
    assert len({nodes[i].kind for i in rows if large[i] > 0}) >= 2
    gap = (found[:, rows].T - slope / (2 * step)).abs().max()
    assert gap < 1e-6 * large.max()
    constants = [i for i, node in enumerate(nodes) if not is_candidate(node)]
    assert not found[:, constants].any()


@pytest.mark.parametrize("name", ["chain", "conjunction", "copy", "missing"])
@pytest.mark.parametrize("how", [attribution_effects, integrated_effects])
def test_exact_where_the_model_is_linear_in_the_node(name: str, how: Callable[..., Tensor]) -> None:
    known = KNOWN[name]()
    runner = CircuitRunner.on_prompts(known.spliced, known.clean, known.corrupted)
    nodes = merge_nodes(
        attribute(known.spliced, tokens, known.target).sources for tokens in known.clean
    )
    found = how(known.spliced, runner.clean, runner.other, known_metric, nodes)
    kept = ~torch.eye(len(nodes), dtype=torch.bool)
    patched = torch.stack([known_metric(one) for one in runner.logits(nodes, kept)]).T
    wanted = patched - known_metric(runner.full_logits)[:, None]
    if name == "conjunction" and how is integrated_effects:
        # On its place's path both tokens leave at once: each has half of what it has alone.
        shared = torch.tensor([node.layer < 1 for node in nodes])
        wanted[:, shared] /= 2
    assert wanted.abs().max() > 1
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_redundant_features_by_hand() -> None:
    """Behind `min(1, x)` at x = 2 the slope is 0; on the way to x = 0 its mean is a half."""
    known = KNOWN["redundant"]()
    runner = CircuitRunner.on_prompts(known.spliced, known.clean, known.corrupted)
    nodes = attribute(known.spliced, known.clean[0], known.target).sources
    rows = [nodes.row(name) for name in ("token@2", "mlp0.2@2", "mlp0.3@2", "mlp1.0@2", "mlp1.1@2")]
    arguments = (known.spliced, runner.clean, runner.other, known_metric, nodes)
    slope, mean = attribution_effects(*arguments), integrated_effects(*arguments)
    wanted = torch.tensor([0.0, 0.0, 0.0, -2.0, 1.0]).double().expand(2, 5)
    torch.testing.assert_close(slope[:, rows], wanted, atol=1e-6, rtol=0)
    wanted = torch.tensor([-1.0, -0.5, -0.5, -2.0, 1.0]).double().expand(2, 5)
    torch.testing.assert_close(mean[:, rows], wanted, atol=1e-6, rtol=0)


def test_one_point_in_the_middle_is_exact_for_a_square() -> None:
    known = KNOWN["chain"]()
    runner = CircuitRunner.on_prompts(known.spliced, known.clean, known.corrupted)
    nodes = attribute(known.spliced, known.clean[0], known.target).sources

    def square(logits: Tensor) -> Tensor:
        return known_metric(logits) ** 2

    arguments = (known.spliced, runner.clean, runner.other, square, nodes)
    at = nodes.row("mlp1.0@2")
    whole = 0.03**2 - 3.03**2
    for steps in (1, 3):
        found = integrated_effects(*arguments, steps=steps)[:, at]
        torch.testing.assert_close(found, torch.full((2,), whole).double(), atol=1e-5, rtol=0)
    slope = attribution_effects(*arguments)[:, at]
    torch.testing.assert_close(slope, torch.full((2,), -18.18).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "layer", "steps", "tolerance"),
    [
        ("feature", 2, 40, 1e-5),
        ("error", 2, 40, 1e-5),
        ("feature", 0, 160, 1e-3),
        ("token", -1, 160, 2e-2),
    ],
)
def test_effects_of_a_place_add_up(kind: str, layer: int, steps: int, tolerance: float) -> None:
    """Completeness, relative to what patching the whole place does.

    With nothing but a norm behind the place the gap falls with the square of the steps; where
    features come and go along the path each kink is met to half a step. The gradient alone is off
    by 14 % to 700 %.
    """
    relu = {f"mlp.{i}": models.transcoder("relu", seed=i) for i in range(models.N_LAYERS)}
    runner, nodes = _held(_quiet("gpt2", relu))
    arguments = (runner.spliced, runner.clean, runner.other, _metric, nodes)
    rows = nodes.where(kind=kind, layer=layer)
    kept = torch.ones(1, len(nodes), dtype=torch.bool)
    kept[:, rows] = False
    whole = _metric(runner.logits(nodes, kept)[0]) - _metric(runner.full_logits)
    found = integrated_effects(*arguments, steps=steps)[:, rows].sum(1)
    first = attribution_effects(*arguments)[:, rows].sum(1)
    assert ((found - whole) / whole).abs().max() < tolerance
    assert ((first - whole) / whole).abs().max() > 0.1


def test_prompts_are_independent_of_each_other() -> None:
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    runner, nodes = _held(spliced)
    for how in (attribution_effects, integrated_effects):
        both = how(spliced, runner.clean, runner.other, _metric, nodes)
        for i in range(2):
            one = CircuitRunner.on_prompts(spliced, _CLEAN[i : i + 1], _CORRUPTED[i : i + 1])
            alone = how(spliced, one.clean, one.other, _metric, nodes)
            torch.testing.assert_close(both[i : i + 1], alone)


def test_zero_and_mean_values() -> None:
    """Tokens stay; a feature that goes to zero has minus gradient times activation."""
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    runner, nodes = _held(spliced)
    zero = zero_values(spliced, runner.clean)
    found = attribution_effects(spliced, runner.clean, zero, _metric, nodes)
    near = attribution_effects(
        spliced, runner.clean, _toward(runner.clean, zero, 0.5), _metric, nodes
    )
    torch.testing.assert_close(near, 0.5 * found)
    assert found[:, nodes.where(kind="feature")].any()
    assert not found[:, nodes.where(kind="token")].any()
    with torch.no_grad():
        mean = mean_values(spliced, spliced.state(_CORRUPTED), runner.clean)
    found = attribution_effects(spliced, runner.clean, mean, _metric, nodes)
    assert found[:, nodes.where(kind="error")].any()
    assert not found[:, nodes.where(kind="token")].any()


def test_features_that_a_prompt_does_not_use_have_no_effect_there() -> None:
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    runner, nodes = _held(spliced)
    found = integrated_effects(spliced, runner.clean, runner.other, _metric, nodes, steps=2)
    off = 0
    for i in nodes.where(kind="feature"):
        node: Node = nodes[i]
        held = runner.clean.activations[spliced.write_site(f"mlp.{node.layer}")]
        inactive = held[:, node.pos, node.feature] == 0
        assert not found[inactive, i].any()
        off += int(inactive.sum())
    assert off > 0


def test_bad_values() -> None:
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    runner, nodes = _held(spliced)
    with torch.no_grad():
        short = patch_values(spliced, spliced.state(_CORRUPTED[:, :3]))
    with pytest.raises(ValueError, match="must line up"):
        attribution_effects(spliced, runner.clean, short, _metric, nodes)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        integrated_effects(spliced, runner.clean, runner.other, _metric, nodes, steps=0)
    absent = [Node(kind="feature", layer=0, site="resid_post", pos=0, feature=0)]
    with pytest.raises(ValueError, match=r"no dictionary at 'resid_post\.0'"):
        attribution_effects(spliced, runner.clean, runner.other, _metric, absent)


def _ids(graph: CircuitGraph) -> list[str]:
    return [node.id for node in graph.nodes]


def test_prune_by_hand(make_graph: Callable[..., CircuitGraph]) -> None:
    """f0.1 feeds only f1.2, which goes; b0 feeds only f0.1; t1 has no edge at all."""
    graph = make_graph(
        "t0 t1 b0 b1 e0 f0.1 f1.2 f1.3 o.logit",
        {
            ("t0", "f1.3"): 1.0,
            ("b0", "f0.1"): 1.0,
            ("b1", "o.logit"): 1.0,
            ("f0.1", "f1.2"): 1.0,
            ("f1.2", "o.logit"): 9.0,
            ("e0", "f1.3"): 1.0,
            ("f1.3", "o.logit"): 0.1,
        },
    )
    effects = torch.tensor([0.5, 0.6, 0.0, 0.0, 0.1, -2.0, 0.2, -1.0, 0.0])
    circuit = prune_attribution(graph, effects=effects, threshold=0.5)
    assert _ids(circuit) == ["token@0", "token@1", "bias.mlp1", "mlp1.3@1", "output.logit"]
    assert circuit.n_edges == 3
    assert circuit.metadata.notes["pruned_by"] == "attribution over nodes (threshold 0.5)"
    assert graph.n_nodes == 9
    # 2.0 + 1.0 of 4.4 are 68 %, with 0.6 82 %.
    circuit = prune_attribution(graph, effects=effects, fraction=0.68)
    assert _ids(circuit) == ["bias.mlp1", "mlp1.3@1", "output.logit"]
    circuit = prune_attribution(graph, effects=effects, fraction=0.69)
    assert _ids(circuit) == ["token@1", "bias.mlp1", "mlp1.3@1", "output.logit"]
    assert _ids(prune_attribution(graph, effects=effects, threshold=0.0)) == _ids(graph)
    nothing = prune_attribution(graph, effects=effects, threshold=3.0)
    assert _ids(nothing) == ["bias.mlp1", "output.logit"]


@given(seed=st.integers(0, 10_000), low=st.floats(0.0, 2.0), high=st.floats(0.0, 2.0))
def test_what_stays_is_large_and_reaches_an_output(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    graph = build_random(seed, density=0.3)
    effects = torch.randn(graph.n_nodes, generator=torch.Generator().manual_seed(seed))
    more, fewer = (prune_attribution(graph, effects=effects, threshold=t) for t in (low, high))
    assert set(_ids(fewer)) <= set(_ids(more))
    large = {n.id for n, e in zip(graph.nodes, effects.abs(), strict=True) if e >= low}
    allowed = [node.id for node in graph.nodes if node.id in large or not is_candidate(node)]
    part = graph.digraph.subgraph(allowed)
    outputs = {node.id for node in graph.outputs}
    reaching = outputs.union(*(nx.ancestors(part, output) for output in outputs))
    lonely = {n for n in large if graph.digraph.out_degree(n) == 0 and n not in outputs}
    is_one = {node.id for node in graph.nodes if is_candidate(node)}
    assert set(_ids(more)) == reaching | (lonely & is_one)
    kept = torch.tensor([node.id in allowed for node in graph.nodes])
    flags = feeding_nodes(graph, kept).tolist()
    assert {n.id for n, f in zip(graph.nodes, flags, strict=True) if f} == reaching


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either threshold or fraction"),
        ({"threshold": 1.0, "fraction": 0.5}, "give either threshold or fraction"),
        ({"threshold": -1.0}, "threshold must not be negative, got -1"),
        ({"threshold": float("nan")}, "threshold must not be negative, got nan"),
        ({"fraction": 1.5}, "a threshold must be a share"),
    ],
)
def test_bad_options(chain: CircuitGraph, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_attribution(chain, effects=torch.ones(5), **options)


def test_bad_effects(chain: CircuitGraph) -> None:
    with pytest.raises(ValueError, match="each of the 5 nodes, got 4, 4 of them finite"):
        prune_attribution(chain, effects=torch.ones(4), threshold=0.1)
    with pytest.raises(ValueError, match="each of the 5 nodes, got 5, 4 of them finite"):
        prune_attribution(chain, effects=torch.tensor([1, 1, 1, 1, torch.nan]), threshold=0.1)
