"""Edge circuits of the live model: anchors, a slow definition, and ACDC one edge at a time."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution import LogitDifference
from attribution.engine import attribute_batch
from circuits import SplicedModel
from circuits.sites import Site
from circuits.subject import Edit
from graphs import CircuitGraph, CircuitRunner, average_graphs, build_graph, freeze_graph
from graphs.live_acdc import LogitScore, acdc_live_edges, live_edge_order, mean_kl
from graphs.live_circuits import LiveCircuits
from graphs.live_edges import LiveEdges, Others, live_edges
from graphs.live_runs import LiveRuns
from graphs.proof.choices import ProofChoices
from graphs.proof.runners import make_runner
from graphs.prune_acdc_live_edges import prune_acdc_live_edges
from graphs.scorer import is_candidate
from tests import cross_layer, models
from tests.graphs.known_models import KNOWN, YES
from tests.graphs.spliced_models import mixed_spliced

_TOKENS = torch.tensor([[3, 7, 11, 2, 5], [8, 1, 4, 19, 6]])
_SPLICED: dict[str, Callable[[], SplicedModel]] = {
    "mixed": mixed_spliced,
    "cross-layer": lambda: cross_layer.spliced("gpt2", "whole"),
    "saes": lambda: cross_layer.spliced("gpt2", "among_saes"),
    "parallel": lambda: SplicedModel(
        models.subject("neox_parallel", torch.float64),
        {i: models.transcoder("topk", seed=i).to(dtype=torch.float64) for i in (1, 2)},
    ),
}


@cache
def _runner(name: str, value: str = "corrupted") -> CircuitRunner:
    other = _TOKENS.clone()
    other[:, 2], other[0, 1] = 13, 9
    if value == "corrupted":
        return CircuitRunner.on_prompts(_SPLICED[name](), _TOKENS, other)
    choices = ProofChoices(value=value, errors="as chosen", component=("features", "MLPs"))  # type: ignore[arg-type]
    reference = other.flip(0) if value == "mean" else None
    return make_runner(choices, _SPLICED[name](), _TOKENS, reference)


@cache
def _all_pairs(name: str, value: str = "corrupted") -> LiveCircuits:
    """Every source upstream of every target."""
    runner = _runner(name, value)
    frozen = freeze_graph(runner.spliced, runner.clean, runner.other, LogitDifference(5, 9))
    nodes = live_edges(runner, frozen, others="removed")[0].nodes
    empty = torch.zeros(0, dtype=torch.long)
    pairs = LiveEdges(nodes, empty, empty, "removed").upstream.nonzero().T
    return LiveCircuits(LiveEdges(nodes, pairs[0], pairs[1], "removed"), LiveRuns(runner, nodes))


def _some_edges(circuits: LiveCircuits, seed: int, share: float) -> Bool[Tensor, " edge"]:
    """Those among two tokens, the output and a random part of the other nodes."""
    edges, generator = circuits.edges, torch.Generator().manual_seed(seed)
    inside = torch.rand(len(edges.nodes), generator=generator) < share
    inside[[edges.nodes.row("token@1"), edges.nodes.row("token@2"), edges.output]] = True
    return inside[edges.edge_source] & inside[edges.edge_target]


@pytest.mark.parametrize("name", _SPLICED)
@pytest.mark.parametrize("value", ["corrupted", "mean", "zero"])
def test_all_edges_are_the_model_and_none_the_other_prompts(name: str, value: str) -> None:
    runner = _runner(name, value)
    frozen = freeze_graph(runner.spliced, runner.clean, runner.other, LogitDifference(5, 9))
    whole = LiveCircuits.of_graph(runner, frozen, others="kept")
    everything = torch.ones(1, whole.edges.n_edges, dtype=torch.bool)
    torch.testing.assert_close(whole.logits(everything)[0], runner.full_logits, atol=1e-9, rtol=0)
    few = LiveCircuits.of_graph(runner, frozen, others="removed")
    nothing = few.logits(torch.zeros_like(everything))[0]
    torch.testing.assert_close(nothing, runner.empty_logits, atol=1e-9, rtol=0)
    assert (runner.full_logits - runner.empty_logits).abs().max() > 0.01


@pytest.mark.parametrize("name", _SPLICED)
def test_the_edges_out_of_a_set_of_nodes_are_that_node_circuit(name: str) -> None:
    circuits, runner = _all_pairs(name), _runner(name)
    nodes = circuits.edges.nodes
    kept = torch.rand(3, len(nodes), generator=torch.Generator().manual_seed(0)) < 0.6
    found = circuits.logits(kept[:, circuits.edges.edge_source])
    wanted = runner.logits(list(nodes), kept)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    assert (wanted - runner.full_logits).abs().amax((1, 2)).min() > 0.01


def _slow_logits(circuits: LiveCircuits, kept: Bool[Tensor, " edge"], prompt: int) -> Tensor:
    """The definition: one node at a time, each in a whole run of one prompt."""
    edges, runner = circuits.edges, circuits.runs.runner
    spliced, nodes = runner.spliced, edges.nodes
    clean, other = runner.clean.select(prompt), runner.other
    pairs = zip(edges.edge_target.tolist(), edges.edge_source.tolist(), strict=True)
    reads = {pair for pair, flag in zip(pairs, kept.tolist(), strict=True) if flag}
    sites = {spliced.write_site(p.name): (p.site, s.layer) for s, p in spliced.placements.items()}
    carried: dict[int, Tensor] = {}

    def run(target: int) -> tuple[Tensor, dict[Site, Tensor]]:
        inputs: dict[Site, Tensor] = {}
        live: dict[Site, Tensor] = {}
        used: dict[Site, Tensor] = {}

        def value(row: int, mine: Tensor, theirs: Tensor) -> Tensor:
            return mine if (target, row) in reads else theirs

        def splice(site: Site):
            placement = spliced.placements[site]

            def edit(y: Tensor) -> Tensor:
                x = y if placement.read == site else inputs[placement.read]
                live[site] = placement.dictionary.encode(x)
                used[site] = live[site].clone()
                error = clean.errors[site].clone()
                for row, node in enumerate(nodes):
                    if (node.site, node.layer) != sites[site]:
                        continue
                    if node.kind == "error":
                        theirs = other.errors[site][prompt, node.pos]
                        error[0, node.pos] = value(row, error[0, node.pos].clone(), theirs)
                    elif node.kind == "feature":
                        at = node.pos, node.feature
                        if clean.activations[site][0][at] != 0:
                            mine = carried.get(row, torch.tensor(0.0))
                            theirs = other.activations[site][prompt][at]
                            used[site][0][at] = value(row, mine, theirs)
                return spliced.reconstruct(site, used, x) + error

            return edit

        def embed(_: Tensor) -> Tensor:
            mine, theirs = clean.values[Site("embed")][0], other.embed[prompt]
            rows = [nodes.row(f"token@{pos}") for pos in range(len(mine))]
            return torch.stack([value(r, mine[p], theirs[p]) for p, r in enumerate(rows)])[None]

        def sublayer(site: Site):
            def edit(y: Tensor) -> Tensor:
                rows = [nodes.row(f"sublayer.mlp{site.layer}@{p}") for p in range(y.shape[1])]
                theirs = other.sublayers[site][prompt]
                return torch.stack([value(r, y[0, p], theirs[p]) for p, r in enumerate(rows)])[None]

            return edit

        edits: dict[Site, Edit] = {Site("embed"): embed}
        for site, placement in spliced.placements.items():
            if placement.read != site:
                edits[placement.read] = lambda x, at=placement.read: inputs.setdefault(at, x)
            edits[site] = splice(site)
        edits |= {site: sublayer(site) for site in other.sublayers}
        with torch.no_grad():
            logits, _ = spliced.model.run(clean.tokens, edits=edits)
        return logits[0, -1], live

    order = sorted(range(len(nodes)), key=lambda row: int(edges.moments[row]))
    for row in order:
        node = nodes[row]
        if node.kind == "feature":
            site = spliced.write_site(f"{node.site}.{node.layer}")
            carried[row] = run(row)[1][site][0, node.pos, node.feature]
    return run(edges.output)[0]


@pytest.mark.parametrize("name", ["mixed", "cross-layer"])
def test_every_target_is_run_for_itself(name: str) -> None:
    """Random edges, so that no two targets read alike."""
    circuits = _all_pairs(name)
    generator = torch.Generator().manual_seed(3)
    kept = torch.rand(2, circuits.edges.n_edges, generator=generator) < 0.5
    found = circuits.logits(kept)[1, 1]
    wanted = _slow_logits(circuits, kept[1], prompt=1)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def test_edges_of_a_graph_have_their_place_but_for_constants() -> None:
    runner = _runner("mixed")
    frozen = freeze_graph(runner.spliced, runner.clean, runner.other, LogitDifference(5, 9))
    edges, place = live_edges(runner, frozen, others="removed")
    constant = torch.tensor([not is_candidate(node) for node in frozen.nodes])[frozen.edge_source]
    assert torch.equal(place == -1, constant)
    assert place.unique().tolist() == list(range(-1, edges.n_edges))


def test_a_source_may_act_where_the_graph_has_no_edge() -> None:
    """A head brings the first token to an unreplaced MLP, which no edge of a graph crosses."""
    known = KNOWN["copy"]()
    runner = CircuitRunner.on_prompts(known.spliced, known.clean, known.corrupted)
    frozen = freeze_graph(known.spliced, runner.clean, runner.other, known.target)
    full, empty = runner.full_logits, runner.empty_logits
    assert (full - empty).abs().max() > 0.1
    answers: dict[Others, Tensor] = {"kept": full, "removed": empty}
    for others, wanted in answers.items():
        circuits = LiveCircuits.of_graph(runner, frozen, others=others)
        everything = torch.ones(1, circuits.edges.n_edges, dtype=torch.bool)
        gap = (circuits.logits(everything)[0] - wanted).abs().max()
        assert gap < 1e-3, others


def _one_at_a_time(
    circuits: LiveCircuits, start: Bool[Tensor, " edge"], score: LogitScore, threshold: float
) -> Bool[Tensor, " edge"]:
    """ACDC as the paper tells it: every candidate is a whole circuit."""
    kept, (current,) = start.clone(), score(circuits.logits(start[None])).tolist()
    for edge in live_edge_order(circuits):
        if not kept[edge]:
            continue
        tried = kept.clone()
        tried[edge] = False
        (value,) = score(circuits.logits(tried[None])).tolist()
        if value - current < threshold:
            kept, current = tried, value
    return kept


@pytest.mark.parametrize(
    ("name", "seed", "share", "threshold", "batch"),
    [
        ("mixed", 2, 0.03, 1e-5, 3),
        ("mixed", 1, 0.03, 1e-4, 1),
        ("cross-layer", 1, 0.06, 1e-5, 8),
    ],
)
def test_the_answer_is_the_sequential_one(
    name: str, seed: int, share: float, threshold: float, batch: int
) -> None:
    circuits = _all_pairs(name)
    start = _some_edges(circuits, seed, share)
    score = mean_kl(circuits.logits(start[None])[0])
    before = circuits.tally.rows
    found = acdc_live_edges(circuits, score=score, threshold=threshold, start=start, batch=batch)
    between = circuits.tally.rows
    wanted = _one_at_a_time(circuits, start, score, threshold)
    assert torch.equal(found, wanted)
    assert 3 < int(found.sum()) < int(start.sum()) - 3
    assert 2 * (between - before) <= circuits.tally.rows - between


def test_other_pairs_may_stay_throughout() -> None:
    """A few edges of the whole model: the rest of it is kept, so that more reads every node."""
    runner = _runner("mixed")
    whole = _all_pairs("mixed")
    chosen = _some_edges(whole, 0, 0.03).nonzero().flatten()[::5]
    target, source = whole.edges.edge_target[chosen], whole.edges.edge_source[chosen]
    edges = LiveEdges(whole.edges.nodes, target, source, "kept")
    circuits = LiveCircuits(edges, LiveRuns(runner, edges.nodes))
    score = mean_kl(runner.full_logits)
    start = torch.ones(len(chosen), dtype=torch.bool)
    found = acdc_live_edges(circuits, score=score, threshold=1e-6)
    assert torch.equal(found, _one_at_a_time(circuits, start, score, 1e-6))
    assert 0 < int(found.sum()) < len(chosen)


def test_only_a_strict_gain_removes_at_threshold_zero() -> None:
    circuits = _all_pairs("mixed")
    start = _some_edges(circuits, 1, 0.02)

    def indifferent(logits: Float[Tensor, "circuit prompt d_vocab"]) -> Float[Tensor, " circuit"]:
        return torch.zeros(len(logits))

    kept = acdc_live_edges(circuits, score=indifferent, threshold=0.0, start=start)
    assert torch.equal(kept, start)
    assert not acdc_live_edges(circuits, score=indifferent, threshold=1e-9, start=start).any()


def test_what_is_run_is_counted() -> None:
    """Two prompts: layer 0 reads its own transcoder's input; nothing else is on the way."""
    runner = _runner("mixed")
    nodes = _all_pairs("mixed").edges.nodes
    feature = next(i for i, n in enumerate(nodes) if n.kind == "feature" and n.layer == 0)
    token = nodes.row(f"token@{nodes[feature].pos}")
    target = torch.tensor([len(nodes) - 1, feature])
    edges = LiveEdges(nodes, target, torch.tensor([feature, token]), "removed")
    circuits = LiveCircuits(edges, LiveRuns(runner, nodes, max_rows=4))
    circuits.logits(torch.tensor([[True, True], [True, False], [False, True]]))
    count = circuits.tally
    assert (count.calls, count.rows, count.blocks) == (1 + 2, 2 * 2 + 3 * 2, 4 * 1 + 6 * 3)
    seen: list[float] = []
    acdc_live_edges(
        circuits, score=mean_kl(runner.full_logits), threshold=9.0, progress=seen.append
    )
    assert seen == [0.5, 1.0]
    assert not edges.reads(torch.zeros(2, dtype=torch.bool)).any()


def test_removals_that_change_nothing_cost_nothing() -> None:
    """Tokens that are the same on both prompts."""
    runner = _runner("mixed")
    nodes = _all_pairs("mixed").edges.nodes
    same = torch.tensor([nodes.row("token@0"), nodes.row("token@3"), nodes.row("token@4")])
    edges = LiveEdges(nodes, torch.full((3,), len(nodes) - 1), same, "removed")
    circuits = LiveCircuits(edges, LiveRuns(runner, nodes))
    assert not acdc_live_edges(circuits, score=mean_kl(runner.full_logits), threshold=1e-9).any()
    assert circuits.tally.calls == 1


_CONSTANT = ("position@", "bias.")


def _edges_of(graph: CircuitGraph) -> set[tuple[str, str]]:
    ids = [node.id for node in graph.nodes]
    pairs = zip(graph.edge_source.tolist(), graph.edge_target.tolist(), strict=True)
    return {(ids[source], ids[target]) for source, target in pairs}


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"redundant", "copy"}))
def test_known_edges_are_found(name: str) -> None:
    known = KNOWN[name]()
    runner = CircuitRunner.on_prompts(known.spliced, known.clean, known.corrupted)
    traces = attribute_batch(known.spliced, list(known.clean), known.target)
    graph = average_graphs([build_graph(trace) for trace in traces])

    def gap(logits: Float[Tensor, "circuit prompt d_vocab"]) -> Float[Tensor, " circuit"]:
        return (logits - runner.full_logits)[..., YES].abs().mean(-1)

    circuit = prune_acdc_live_edges(graph, runner=runner, threshold=0.03, score=gap)
    ids: Sequence[str] = [node.id for node in circuit.nodes]
    can_go = {node.id for node in circuit.nodes if is_candidate(node)}
    assert {pair for pair in _edges_of(circuit) if pair[0] in can_go} == known.edges
    constants = [(one, end) for one, end in _edges_of(graph) if one.startswith(_CONSTANT)]
    stayed = {pair for pair in _edges_of(circuit) if pair[0].startswith(_CONSTANT)}
    assert stayed == {pair for pair in constants if pair[1] in ids}
    assert circuit.metadata.notes["pruned_by"] == (
        "ACDC over edges of the live model (threshold 0.03, other pairs removed)"
    )


def test_sources_are_earlier_and_not_to_the_right() -> None:
    edges = _all_pairs("mixed").edges
    assert int(edges.upstream.sum()) == edges.n_edges
    target, source = edges.edge_target.tolist(), edges.edge_source.tolist()
    pairs = [(edges.nodes[s], edges.nodes[t]) for s, t in zip(source, target, strict=True)]
    assert all(s.pos <= t.pos for s, t in pairs)
    assert all(s.layer <= t.layer and t.kind in ("feature", "output") for s, t in pairs)
    within = {(s.kind, s.site, t.site) for s, t in pairs if s.layer == t.layer}
    assert within == {("feature", "attn_out", "mlp"), ("error", "attn_out", "mlp")} & within
    assert {s.kind for s, _ in pairs} == {"token", "error", "sublayer", "feature"}


def test_outputs_are_one() -> None:
    """An edge into one of a graph's outputs stands for those into all of them."""
    runner = _runner("mixed")
    targets = [LogitDifference([5], []), LogitDifference([9], [])]
    frozen = freeze_graph(runner.spliced, runner.clean, runner.other, targets)
    edges, place = live_edges(runner, frozen, others="removed")
    into = torch.isin(frozen.edge_target, frozen.outputs) & (place >= 0)
    assert len(frozen.outputs) == 2
    assert int(into.sum()) == 2 * int((edges.edge_target == edges.output).sum())
    assert (edges.edge_target[place[into]] == edges.output).all()


def test_bad_input() -> None:
    circuits = _all_pairs("mixed")
    score = mean_kl(circuits.runs.runner.full_logits)
    with pytest.raises(ValueError, match=r"want threshold >= 0 and batch >= 1, got -1"):
        acdc_live_edges(circuits, score=score, threshold=-1.0)
    with pytest.raises(ValueError, match=r"got 0.1 and 0"):
        acdc_live_edges(circuits, score=score, threshold=0.1, batch=0)
    nodes, output = circuits.edges.nodes, circuits.edges.output
    ends = torch.tensor([nodes.row("token@4")]), torch.tensor([output])
    others: Others = "removed"
    with pytest.raises(ValueError, match=r"got output.logits -> token@4"):
        LiveEdges(nodes, *ends, others)
    twice = torch.tensor([output, output]), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"want every edge once, got 1 again"):
        LiveEdges(nodes, *twice, others)
