"""Positions by role: names, graphs of mixed prompts, and circuits back on every prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attribution import LogitDifference, Node, NodeTable, attribute
from circuits import SplicedModel
from graphs import CircuitGraph, CircuitRunner, GraphMetadata, build_graph
from graphs.task_circuits import (
    RoleGraph,
    RoleRunner,
    collapse,
    name_positions,
    nodes_on,
    order_columns,
    prove_roles,
    role_graph,
)
from tests.graphs.spliced_models import mixed_spliced

TOKEN_IDS = (5, 6, 6, 7)
ROLES = {"s": 1, "end": 3}
NAMES = ("before s", "s", "between s and end", "end")
TARGET = LogitDifference(3, 4)


def token(pos: int, feature: int | None = None) -> Node:
    """The token at a position, 5 6 6 7 unless said otherwise."""
    feature = TOKEN_IDS[pos] if feature is None else feature
    return Node(kind="token", layer=-1, site="embed", pos=pos, feature=feature)


def feature(pos: int, activation: float = 1.0, index: int = 0, layer: int = 0) -> Node:
    return Node(
        kind="feature", layer=layer, site="mlp", pos=pos, feature=index, activation=activation
    )


BIAS = Node(kind="bias", layer=0, site="mlp", pos=-1)
OUT = Node(kind="output", layer=2, site="logit", pos=3)


def graph_of(
    edges: Mapping[tuple[Node, Node], float], n_pos: int = 4, out: Node = OUT
) -> CircuitGraph:
    """A float64 graph from {(source, target): attribution}; every end is a node."""
    ends = {node.id: node for pair in edges for node in pair} | {out.id: out}
    nodes = NodeTable(list(ends.values()))
    return CircuitGraph(
        nodes=nodes,
        edge_target=torch.tensor([nodes.row(target.id) for _, target in edges]),
        edge_source=torch.tensor([nodes.row(source.id) for source, _ in edges]),
        edge_attribution=torch.tensor(list(edges.values()), dtype=torch.float64),
        metadata=GraphMetadata(
            model="toy", prompt="p", tokens=("x",) * n_pos, n_layers=2, target="logit"
        ),
    )


def edges_of(graph: CircuitGraph) -> dict[tuple[str, str], float]:
    """{(source, target): attribution}, in the order of the graph's edges."""
    ids = [node.id for node in graph.nodes]
    columns = (graph.edge_source, graph.edge_target, graph.edge_attribution)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {(ids[source], ids[target]): value for source, target, value in rows}


class TestNames:
    def test_roles_and_the_gaps_around_them(self):
        assert name_positions({"io": 1, "s1": 3, "end": 5}, 7) == (
            *("before io", "io", "between io and s1", "s1", "between s1 and end", "end"),
            "after end",
        )

    def test_roles_at_one_place_share_a_name(self):
        assert name_positions({"subject": 1, "s1": 1, "end": 2}, 3) == (
            *("before s1=subject", "s1=subject", "end"),
        )

    @given(
        st.integers(1, 12).flatmap(
            lambda n: st.tuples(
                st.just(n),
                st.dictionaries(st.sampled_from("abcdef"), st.integers(0, n - 1), min_size=1),
            )
        )
    )
    def test_every_position_has_one_name_and_every_name_is_one_stretch(self, drawn):
        n_pos, roles = drawn
        names = name_positions(roles, n_pos)
        assert len(names) == n_pos
        for role, pos in roles.items():
            assert role in names[pos].split("=")
        starts = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
        assert len(starts) == len(set(starts))
        for name in set(names) - {names[pos] for pos in roles.values()}:
            assert name.startswith(("before ", "between ", "after "))

    @pytest.mark.parametrize("roles", [{}, {"s": 4}, {"s": -1}])
    def test_refusals(self, roles):
        with pytest.raises(ValueError, match=r"at least one role, each at a position in \[0, 4\)"):
            name_positions(roles, 4)

    def test_columns_follow_the_prompts(self):
        short, long = name_positions({"a": 1, "end": 2}, 3), name_positions({"a": 3, "end": 7}, 8)
        assert order_columns([short, long]) == ("before a", "a", "between a and end", "end")

    def test_columns_of_both_orders_lie_where_they_are_on_average(self):
        """`b` at 0 of 2, then at 1 of 2: on average left of `a`, at 1 of 2 and at 2 of 2."""
        assert order_columns([("b", "a", "end"), ("x", "b", "a")]) == ("x", "b", "a", "end")

    def test_columns_of_a_gap_count_its_middle(self):
        assert order_columns([("gap", "r", "gap", "gap", "gap")]) == ("r", "gap")


class TestCollapse:
    def test_edges_of_a_name_add_up(self):
        graph = graph_of(
            {
                (token(1), feature(1, 2.0)): 1.0,
                (token(1), feature(2, 3.0)): 10.0,
                (token(2), feature(2, 3.0)): 100.0,
                (BIAS, feature(2, 3.0)): 0.5,
                (feature(1, 2.0), OUT): 4.0,
                (feature(2, 3.0), OUT): -1.0,
            }
        )
        names = ("before", "both", "both", "end")
        small = collapse(graph, names, ("end", "both", "before"))
        assert edges_of(small) == {
            ("token@1", "mlp0.0@1"): 111.0,
            ("bias.mlp0", "mlp0.0@1"): 0.5,
            ("mlp0.0@1", "output.logit"): 3.0,
        }
        assert small.nodes[small.nodes.row("mlp0.0@1")].activation == 5.0
        assert small.nodes[small.nodes.row("token@1")].feature == 6
        assert small.nodes[small.nodes.row("output.logit")].pos == 0
        assert small.nodes[small.nodes.row("bias.mlp0")].pos == -1
        assert small.metadata.tokens == ("end", "both", "before")
        assert small.metadata.notes["positions"] == "roles"

    def test_tokens_that_differ_lose_their_id(self):
        graph = graph_of({(token(0), OUT): 1.0, (token(1), OUT): 1.0})
        small = collapse(graph, ("a", "a", "a", "end"), ("a", "end"))
        assert small.nodes[small.nodes.row("token@0")].feature == -1

    def test_positions_of_roles_are_noted_no_more(self):
        graph = graph_of({(token(0), OUT): 1.0}).with_notes(roles="{}", pruned_by="me")
        assert collapse(graph, NAMES, NAMES).metadata.notes == {
            "pruned_by": "me",
            "positions": "roles",
        }

    def test_names_that_are_the_positions_change_nothing(self):
        graph = graph_of({(token(1), feature(2)): 1.5, (feature(2), OUT): -2.0})
        same = collapse(graph, NAMES, NAMES)
        assert list(same.nodes) == list(graph.nodes)
        assert edges_of(same) == edges_of(graph)
        assert same.edge_attribution.dtype == torch.float64

    @pytest.mark.parametrize(
        ("names", "columns"), [(NAMES[:3], NAMES), (NAMES, NAMES[:3]), ((*NAMES, "x"), NAMES)]
    )
    def test_refusals(self, names, columns):
        with pytest.raises(ValueError, match="one name for each of the 4 tokens"):
            collapse(graph_of({(token(0), OUT): 1.0}), names, columns)


class TestRoleGraph:
    def test_mean_spread_and_shares(self):
        first = graph_of({(token(1), OUT): 3.0, (feature(2, 4.0), OUT): 1.0})
        out = OUT.model_copy(update={"pos": 1})
        second = graph_of({(token(0, 9), out): 1.0}, n_pos=2, out=out)
        roles = role_graph([first, second], [NAMES, ("s", "end")])
        assert roles.columns == ("before s", "s", "between s and end", "end")
        graph = roles.graph
        assert edges_of(graph) == {
            ("token@1", "output.logit"): 2.0,
            ("mlp0.0@2", "output.logit"): 0.5,
        }
        by_edge = dict(zip(edges_of(graph), roles.edge_spread.tolist(), strict=True))
        assert by_edge == {
            ("token@1", "output.logit"): 1.0,  # of 3 and 1
            ("mlp0.0@2", "output.logit"): 0.5,  # of 1 and 0
        }
        share = dict(zip(edges_of(graph), roles.edge_share.tolist(), strict=True))
        assert share == {("token@1", "output.logit"): 1.0, ("mlp0.0@2", "output.logit"): 0.5}
        ids = [node.id for node in graph.nodes]
        assert dict(zip(ids, roles.node_share.tolist(), strict=True)) == {
            "token@1": 1.0,
            "mlp0.0@2": 0.5,
            "output.logit": 1.0,
        }
        assert graph.nodes[graph.nodes.row("mlp0.0@2")].activation == 4.0
        assert graph.nodes[graph.nodes.row("token@1")].feature == -1
        assert graph.metadata.notes["n_prompts"] == "2"
        assert roles.names == (NAMES, ("s", "end"))

    def test_numbers_follow_their_edges_into_a_circuit(self):
        graphs = [
            graph_of({(token(0), OUT): a, (token(1), OUT): b, (token(2), OUT): c})
            for a, b, c in [(1.0, 10.0, 100.0), (3.0, 14.0, 108.0)]
        ]
        roles = role_graph(graphs, [NAMES, NAMES])
        circuit = roles.restrict(roles.graph.subgraph(["token@2", "token@0", "output.logit"]))
        assert edges_of(circuit.graph) == {
            ("token@0", "output.logit"): 2.0,
            ("token@2", "output.logit"): 104.0,
        }
        assert circuit.edge_spread.tolist() == [1.0, 4.0]
        assert circuit.edge_share.tolist() == [1.0, 1.0]
        assert circuit.node_share.tolist() == [1.0, 1.0, 1.0]
        assert circuit.names == roles.names

    def test_edges_in_any_order_keep_their_numbers(self):
        graph = graph_of({(token(2), OUT): 3.0, (token(0), OUT): 1.0, (token(1), OUT): 2.0})
        nodes = NodeTable(sorted(graph.nodes, key=lambda node: node.id))
        rows = torch.tensor([nodes.row(node.id) for node in graph.nodes])
        other = replace(
            graph,
            nodes=nodes,
            edge_target=rows[graph.edge_target],
            edge_source=rows[graph.edge_source],
        )
        numbers = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
        places = torch.arange(4, dtype=torch.float64)
        roles = RoleGraph(other, numbers, numbers / 4, places, (NAMES,))
        assert roles.restrict(graph).edge_spread.tolist() == [3.0, 1.0, 2.0]
        circuit = roles.restrict(other.subgraph(["token@1", "token@2", "output.logit"]))
        assert circuit.node_share.tolist() == [
            places[other.nodes.row(node.id)] for node in circuit.graph.nodes
        ]
        assert circuit.edge_share.tolist() == [0.75, 0.5]
        assert circuit.edge_spread.tolist() == circuit.graph.edge_attribution.tolist() == [3.0, 2.0]

    def test_circuits_of_something_else_are_refused(self):
        roles = role_graph([graph_of({(token(0), OUT): 1.0, (token(1), feature(1)): 1.0})], [NAMES])
        with pytest.raises(ValueError, match="got node token@2, which it"):
            roles.restrict(graph_of({(token(2), OUT): 1.0}))
        with pytest.raises(ValueError, match="got 1 edges that it has not"):
            roles.restrict(graph_of({(token(1), OUT): 1.0, (token(0), OUT): 1.0}))

    def test_refusals(self):
        graph = graph_of({(token(0), OUT): 1.0})
        with pytest.raises(ValueError, match="got 1 for 2 graphs"):
            role_graph([graph, graph], [NAMES])
        with pytest.raises(ValueError, match="got 0 for 0 graphs"):
            role_graph([], [])


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return mixed_spliced()


PROMPTS = tuple(
    torch.tensor(tokens)
    for tokens in [[1, 9, 8, 7, 2], [3, 1, 4, 11, 5, 2], [6, 2, 5, 13, 3, 2], [7, 7, 2, 17, 8]]
)
OTHERS = tuple(
    torch.tensor(tokens)
    for tokens in [[1, 5, 8, 7, 12], [3, 2, 6, 11, 5, 2], [6, 9, 5, 8, 3, 2], [7, 3, 2, 12, 8]]
)
PROMPT_NAMES = tuple(
    name_positions(roles, n)
    for roles, n in [
        ({"s": 1, "end": 4}, 5),
        ({"s": 1, "io": 2, "end": 5}, 6),
        ({"io": 1, "s": 3, "end": 5}, 6),
        ({"s": 1, "end": 4}, 5),
    ]
)
COLUMNS = order_columns(PROMPT_NAMES)


@pytest.fixture(scope="module")
def traces(spliced):
    return [attribute(spliced, tokens, TARGET) for tokens in PROMPTS]


@pytest.fixture(scope="module")
def roles(traces) -> RoleGraph:
    return role_graph([build_graph(trace) for trace in traces], PROMPT_NAMES, COLUMNS)


def row_sums(graph: CircuitGraph) -> dict[str, float]:
    total = torch.zeros(graph.n_nodes, dtype=torch.float64)
    total = total.index_add(0, graph.edge_target, graph.edge_attribution.double())
    return {node.id: value for node, value in zip(graph.nodes, total.tolist(), strict=True)}


def summed_values(trace, names: Sequence[str]) -> dict[str, float]:
    """What the rows of a trace sum to, over the positions of a name."""
    sums: dict[str, float] = {}
    for node, value in zip(trace.targets, trace.target_values.tolist(), strict=True):
        moved = node.model_copy(update={"pos": COLUMNS.index(names[node.pos])})
        sums[moved.id] = sums.get(moved.id, 0.0) + value
    return sums


def test_rows_by_role_add_up_to_the_pre_activations_of_their_positions(traces):
    for trace, names in zip(traces, PROMPT_NAMES, strict=True):
        found = row_sums(collapse(build_graph(trace), names, COLUMNS))
        wanted = summed_values(trace, names)
        assert len(wanted) > 10
        for target, value in wanted.items():
            assert found[target] == pytest.approx(value, abs=1e-9)


def test_mean_rows_add_up_to_the_mean_over_prompts(traces, roles):
    found = row_sums(roles.graph)
    parts = [summed_values(t, n) for t, n in zip(traces, PROMPT_NAMES, strict=True)]
    for target in set().union(*parts):
        wanted = sum(part.get(target, 0.0) for part in parts) / len(parts)
        assert found[target] == pytest.approx(wanted, abs=1e-9)


def test_every_edge_is_in_one_edge_by_role(traces, roles):
    parts = [
        edges_of(collapse(build_graph(trace), names, COLUMNS))
        for trace, names in zip(traces, PROMPT_NAMES, strict=True)
    ]
    stacked = {edge: [part.get(edge, 0.0) for part in parts] for edge in edges_of(roles.graph)}
    assert set().union(*parts) == stacked.keys()
    values = torch.tensor(list(stacked.values()), dtype=torch.float64)
    torch.testing.assert_close(roles.edge_spread, values.std(1, correction=0), atol=1e-12, rtol=0)
    present = [sum(edge in part for part in parts) / len(parts) for edge in stacked]
    assert roles.edge_share.tolist() == present


def test_nodes_come_back_at_the_positions_of_each_prompt():
    columns = ("s", "gap", "other", "end")
    nodes = [feature(1, index=3), token(0), feature(2), BIAS, OUT]
    found, origin = nodes_on(nodes, columns, ("gap", "s", "gap", "end"))
    assert [node.id for node in found] == [
        *("mlp0.3@0", "mlp0.3@2", "token@1", "bias.mlp0", "output.logit")
    ]
    assert origin.tolist() == [0, 0, 1, 3, 4]
    assert found[2].feature == -1
    assert {node.activation for node in found} == {0.0}


def test_an_output_of_a_gap_comes_back_once():
    found, origin = nodes_on([token(0), OUT], ("x", "y", "z", "all"), ("all", "all"))
    assert [(node.id, node.pos) for node in found] == [("output.logit", 1)]
    assert origin.tolist() == [1]


def test_nodes_of_no_column_are_refused():
    with pytest.raises(ValueError, match=r"below the number of columns, 2, got mlp0\.0@2"):
        nodes_on([feature(2)], ("s", "end"), ("s", "end"))


@pytest.fixture(scope="module")
def runner(spliced) -> RoleRunner:
    return RoleRunner.on_prompts(spliced, PROMPTS, OTHERS, PROMPT_NAMES, COLUMNS)


def test_prompts_of_one_alignment_are_run_together(runner):
    assert [members for members, _, _ in runner.groups] == [[0, 3], [1], [2]]


def test_mixed_prompts_run_as_each_by_itself(spliced, runner, roles):
    nodes = roles.graph.nodes
    kept = torch.rand(3, len(nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    found = runner.logits(nodes, kept)
    for i, (clean, other, names) in enumerate(zip(PROMPTS, OTHERS, PROMPT_NAMES, strict=True)):
        alone = CircuitRunner.on_prompts(spliced, clean[None], other[None])
        own, origin = nodes_on(nodes, COLUMNS, names)
        wanted = alone.logits(own, kept[:, origin])[:, 0]
        torch.testing.assert_close(found[:, i], wanted, atol=1e-9, rtol=0)
        torch.testing.assert_close(runner.full_logits[i], alone.full_logits[0], atol=1e-9, rtol=0)
        torch.testing.assert_close(runner.empty_logits[i], alone.empty_logits[0], atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def metric(runner):
    """How far the model's answer is above the corrupted run's: larger with the model, always."""
    right, wrong = runner.full_logits.argmax(-1), runner.empty_logits.argmax(-1)
    assert bool((right != wrong).all())
    rows = torch.arange(len(right))
    return lambda logits: logits[rows, right] - logits[rows, wrong]


def test_whole_and_empty_circuits_are_the_model_and_nothing(runner, roles, metric):
    nodes = roles.graph.nodes
    whole = torch.ones(len(nodes), dtype=torch.bool)
    proof = prove_roles(runner, nodes, whole, metric, controls=~whole[None], batch=1)
    assert proof.faithfulness.value == pytest.approx(1.0, abs=1e-9)
    assert proof.kl.value == pytest.approx(0.0, abs=1e-9)
    assert proof.control_faithfulness == pytest.approx([0.0], abs=1e-9)
    assert proof.metric_circuit == pytest.approx(proof.metric_model, abs=1e-9)
    assert (proof.n_prompts, proof.n_alignments) == (4, 3)


def test_a_proof_is_a_ratio_of_means_over_all_frames(runner, roles, metric):
    nodes = roles.graph.nodes
    generator = torch.Generator().manual_seed(1)
    flags = torch.rand(3, len(nodes), generator=generator) < 0.6
    proof = prove_roles(runner, nodes, flags[0], metric, controls=flags[1:], batch=2, seed=5)
    parts = [metric(logits).mean() for logits in runner.logits(nodes, flags)]
    model, empty = metric(runner.full_logits).mean(), metric(runner.empty_logits).mean()
    wanted = [float((part - empty) / (model - empty)) for part in parts]
    assert proof.faithfulness.value == pytest.approx(wanted[0], abs=1e-9)
    assert proof.control_faithfulness == pytest.approx(wanted[1:], abs=1e-9)
    assert proof.metric_circuit == pytest.approx(float(parts[0]), abs=1e-9)
    assert proof.metric_empty == pytest.approx(float(empty), abs=1e-9)
    again = prove_roles(runner, nodes, flags[0], metric, seed=5)
    assert again.faithfulness.model_dump() == pytest.approx(proof.faithfulness.model_dump())
    assert again.control_faithfulness == []
    other = prove_roles(runner, nodes, flags[0], metric, seed=6)
    assert abs(other.faithfulness.low - again.faithfulness.low) > 1e-6
    assert again.kl.value > 0


def test_prompts_that_do_not_line_up_are_refused(spliced):
    with pytest.raises(ValueError, match=r"of the same lengths, got lengths \[5\], \[6\]"):
        RoleRunner.on_prompts(spliced, PROMPTS[:1], OTHERS[1:2], PROMPT_NAMES[:1], COLUMNS)
    with pytest.raises(ValueError, match=r"got lengths \[5\], \[5\] and \[6\]"):
        RoleRunner.on_prompts(spliced, PROMPTS[:1], OTHERS[:1], PROMPT_NAMES[1:2], COLUMNS)
    with pytest.raises(ValueError, match=r"got lengths \[\]"):
        RoleRunner.on_prompts(spliced, [], [], [], COLUMNS)
