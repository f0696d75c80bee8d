"""Every pruning algorithm on models whose circuit is known: what it finds, and how it ranks nodes.

Read `RECOVERED` as the table of findings. Algorithms that read the clean value alone (influence,
paths) are fooled by a feature that is loud on every prompt alike; a gradient at the clean point
does not see redundant features, whose slopes cancel there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution import Path, top_paths
from attribution.engine import attribute_batch
from graphs import (
    CircuitGraph,
    CircuitRunner,
    FrozenGraph,
    average_graphs,
    build_graph,
    faithfulness,
    freeze_graph,
    node_influence,
    prune,
)
from graphs.feature_effects import attribution_effects, integrated_effects
from graphs.most_active import top_active
from graphs.prune_attribution import prune_attribution
from graphs.prune_paths import path_scores, prune_paths
from graphs.scorer import is_candidate
from tests.graphs.known_models import KNOWN, Known, metric, roc_auc

THRESHOLDS = [10 ** (k / 2) for k in range(-5, 3)]
"""Of ACDC, in logits: above the 1e-4 that norms let decoys do, up to all there is."""


@dataclass(frozen=True, eq=False)
class Case:
    """A known model with all that the algorithms read."""

    known: Known
    runner: CircuitRunner
    graph: CircuitGraph
    frozen: FrozenGraph
    paths: tuple[Path, ...]

    @property
    def is_known(self) -> Bool[Tensor, " node"]:
        return torch.tensor([node.id in self.known.answers[0] for node in self.graph.nodes])

    def score(self, kept: Bool[Tensor, "circuit node"]) -> Float[Tensor, " circuit"]:
        """Mean distance of the metric from the model's, for circuits run live."""
        logits, full = self.runner.logits(self.graph.nodes, kept), metric(self.runner.full_logits)
        return torch.stack([(metric(one) - full).abs().mean() for one in logits])


@cache
def case(name: str) -> Case:
    known = KNOWN[name]()
    runner = CircuitRunner.on_prompts(known.spliced, known.clean, known.corrupted)
    traces = list(attribute_batch(known.spliced, list(known.clean), known.target))
    frozen = freeze_graph(known.spliced, runner.clean, runner.other, known.target)
    paths: list[Path] = []
    for trace in traces:
        begin = [i for i, n in enumerate(trace.sources) if n.kind != "feature" and is_candidate(n)]
        paths.extend(top_paths(trace, 0, sources=begin, k=40).paths)
    graph = average_graphs([build_graph(trace) for trace in traces])
    return Case(known, runner, graph, frozen, tuple(paths))


def effects(case: Case, how: Callable[..., Tensor]) -> Float[Tensor, " node"]:
    runner = case.runner
    return how(runner.spliced, runner.clean, runner.other, metric, case.graph.nodes).mean(0)


def by_effects(how: Callable[..., Tensor]) -> Callable[[Case], Iterator[CircuitGraph]]:
    def sweep(case: Case) -> Iterator[CircuitGraph]:
        found = effects(case, how)
        for size in sorted({round(v, 9) for v in found.abs().tolist()}, reverse=True):
            yield prune_attribution(case.graph, effects=found, threshold=0.999 * size)

    return sweep


def by_influence(case: Case) -> Iterator[CircuitGraph]:
    for share in torch.linspace(0.1, 1, 19).tolist():
        yield prune(case.graph, "influence", node_threshold=min(share, 1.0), edge_threshold=1.0)


def by_acdc(case: Case) -> Iterator[CircuitGraph]:
    for threshold in THRESHOLDS:
        yield prune(case.graph, "acdc", score=case.score, threshold=threshold)


def by_acdc_edges(case: Case) -> Iterator[CircuitGraph]:
    for threshold in THRESHOLDS:
        yield prune(case.graph, "acdc-edges", frozen=case.frozen, threshold=threshold)


def by_paths(case: Case) -> Iterator[CircuitGraph]:
    for k in range(len(case.paths) + 1):
        yield prune_paths(case.graph, paths=case.paths, k=k)


METHODS: dict[str, Callable[[Case], Iterator[CircuitGraph]]] = {
    "influence": by_influence,
    "paths": by_paths,
    "gradient": by_effects(attribution_effects),
    "integrated": by_effects(integrated_effects),
    "acdc": by_acdc,
    "acdc-edges": by_acdc_edges,
}


@cache
def circuits(name: str, method: str) -> tuple[CircuitGraph, ...]:
    """What a method gives over its sweep."""
    return tuple(METHODS[method](case(name)))


def nodes_of(circuit: CircuitGraph, *, tokens: bool = True) -> frozenset[str]:
    """What was chosen: constants and outputs are not."""
    kinds = ("feature", "error", "sublayer", *(["token"] if tokens else []))
    return frozenset(node.id for node in circuit.nodes if node.kind in kinds)


def edges_of(circuit: CircuitGraph) -> frozenset[tuple[str, str]]:
    ids = [node.id for node in circuit.nodes]
    pairs = zip(circuit.edge_source.tolist(), circuit.edge_target.tolist(), strict=True)
    return frozenset((ids[s], ids[t]) for s, t in pairs if is_candidate(circuit.nodes[s]))


def recovered(name: str, method: str) -> int | None:
    """Which answer the algorithm gives at some threshold, the first if several; None if none.

    Influence always keeps every token, so its choice is compared without them.
    """
    tokens = method != "influence"
    found = {nodes_of(circuit, tokens=tokens) for circuit in circuits(name, method)}
    for i, answer in enumerate(case(name).known.answers):
        if frozenset(a for a in answer if tokens or not a.startswith("token")) in found:
            return i
    return None


def ranking(name: str, method: str) -> Float[Tensor, " node"]:
    """One score a node: for ACDC the largest threshold at which it stays."""
    here = case(name)
    match method:
        case "influence":
            return node_influence(here.graph)
        case "paths":
            scores = path_scores(here.paths)
            return torch.tensor([scores.get(n.id, 0.0) for n in here.graph.nodes]).double()
        case "gradient":
            return effects(here, attribution_effects).abs()
        case "integrated":
            return effects(here, integrated_effects).abs()
    score = torch.zeros(here.graph.n_nodes, dtype=torch.float64)
    for threshold, circuit in zip(THRESHOLDS, circuits(name, method), strict=True):
        kept = nodes_of(circuit)
        score[[i for i, node in enumerate(here.graph.nodes) if node.id in kept]] = threshold
    return score


def auc(name: str, method: str) -> float:
    """Area under the ROC curve over all nodes that can be patched."""
    here = case(name)
    can = torch.tensor([is_candidate(node) for node in here.graph.nodes])
    return roc_auc(ranking(name, method).double().round(decimals=6)[can], here.is_known[can])


def recovery_table() -> str:
    """Models by algorithms: which answer was found, and the area under the ROC curve."""
    rows = [f"{'':12}" + "".join(f"{method:>18}" for method in METHODS)]
    for name in KNOWN:
        cells = (f"{recovered(name, m)!s:>9} {auc(name, m):.3f}" for m in METHODS)
        rows.append(f"{name:12}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(rows)


_Found = dict[str, tuple[int | None, float]]
_PERFECT: _Found = dict.fromkeys(METHODS, (0, 1.0))
RECOVERED: dict[str, _Found] = {
    "chain": _PERFECT,
    "conjunction": _PERFECT,
    # Of a redundant pair ACDC keeps one, whose partner it then ranks last. The gradient at the
    # clean point is 0 for both and for their token.
    "redundant": _PERFECT | {"gradient": (None, 0.7), "acdc": (2, 0.9)},
    # What is loud on every prompt alike comes first for those that read the clean value alone.
    "decoy": _PERFECT | {"influence": (None, 0.958), "paths": (None, 0.948)},
    # No edge crosses an unreplaced MLP: what needs edges does not see the token behind it. (The
    # choice of influence is compared without tokens.)
    "copy": _PERFECT | {"influence": (0, 0.824), "paths": (1, 0.833), "acdc-edges": (1, 0.833)},
    "missing": _PERFECT,
}
"""By model and algorithm: which of the known answers it finds, and the area under its ROC curve."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KNOWN)
def test_what_each_algorithm_finds(name: str, method: str) -> None:
    answer, area = RECOVERED[name][method]
    assert recovered(name, method) == answer
    assert auc(name, method) == pytest.approx(area, abs=6e-4)


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"redundant", "copy"}))
def test_acdc_over_edges_finds_the_edges(name: str) -> None:
    found = {edges_of(circuit) for circuit in circuits(name, "acdc-edges")}
    assert case(name).known.edges in found


def test_edges_behind_redundant_features() -> None:
    """Both features stay, as layer 1 needs their sum; one token edge is enough to make it 1."""
    known = case("redundant").known
    found = {edges_of(circuit) for circuit in circuits("redundant", "acdc-edges")}
    assert known.edges not in found
    assert known.edges - {("token@2", "mlp0.2@2")} in found


@pytest.mark.parametrize("name", ["chain", "conjunction", "copy"])
def test_paths_find_the_edges(name: str) -> None:
    found = {edges_of(circuit) for circuit in circuits(name, "paths")}
    assert case(name).known.edges in found


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_nodes_do_all_and_each_is_needed(name: str) -> None:
    """Live, with everything else patched."""
    here = case(name)
    kept = here.is_known
    mine = faithfulness(here.runner, here.graph.nodes, metric, kept=kept)
    assert mine.faithfulness == pytest.approx(1.0, abs=1e-4)
    assert mine.kl < 1e-6
    for node in kept.nonzero()[:, 0].tolist() if name != "redundant" else ():
        fewer = kept.clone()
        fewer[node] = False
        rest = faithfulness(here.runner, here.graph.nodes, metric, kept=fewer)
        assert rest.faithfulness == pytest.approx(0.0, abs=1e-4), here.graph.nodes[node].id


def test_most_active_features_are_no_circuit_where_a_decoy_is_louder() -> None:
    here = case("decoy")
    control = top_active(here.graph.nodes, here.is_known)
    ids = {node.id for node, flag in zip(here.graph.nodes, control.tolist(), strict=True) if flag}
    assert ids == {"token@2", "mlp0.4@2", "mlp1.1@2"}
    measured = faithfulness(here.runner, here.graph.nodes, metric, kept=control)
    assert measured.faithfulness == pytest.approx(0.0, abs=1e-4)


def test_top_active_fills_every_layer_as_the_circuit_does() -> None:
    here = case("redundant")
    kept = here.is_known.clone()
    kept[[here.graph.nodes.row(name) for name in ("mlp1.0@2", "mlp1.1@2")]] = False
    error = here.graph.nodes.row("error.mlp0@1")
    kept[error] = True
    before = kept.clone()
    control = top_active(here.graph.nodes, kept)
    assert torch.equal(kept, before)
    assert control[error]
    is_feature = here.graph.is_kind("feature")
    assert torch.equal(control & ~is_feature, kept & ~is_feature)
    for layer, size in ((0, 2), (1, 0)):
        mine = torch.tensor([node.layer == layer for node in here.graph.nodes]) & is_feature
        chosen = [here.graph.nodes[i].activation for i in (control & mine).nonzero()[:, 0].tolist()]
        left = [here.graph.nodes[i].activation for i in (~control & mine).nonzero()[:, 0].tolist()]
        assert len(chosen) == size
        assert min(chosen, default=torch.inf) >= max(left)
    with pytest.raises(ValueError, match="one flag a node, got 1 for"):
        top_active(here.graph.nodes, kept[:1])


def test_area_under_the_curve_by_hand() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0])
    assert roc_auc(scores, torch.tensor([True, True, False, False])) == 0.625
    assert roc_auc(scores, torch.tensor([True, False, True, False])) == 1.0


def test_the_table_names_every_model_and_algorithm() -> None:
    lines = recovery_table().splitlines()
    assert lines[0].split() == list(METHODS)
    assert [line.split()[0] for line in lines[1:]] == list(KNOWN)
