"""From a trace to a graph, and from several graphs to their mean."""

import pytest
import torch

from attribution.edges import Edges
from attribution.nodes import Node, NodeTable
from attribution.trace import Trace
from graphs import average_graphs, build_graph

TOKEN = Node(kind="token", layer=-1, site="embed", pos=0, feature=4)
BIAS = Node(kind="bias", layer=0, site="mlp", pos=-1)
LOW = Node(kind="feature", layer=0, site="mlp", pos=0, feature=1, activation=2.0)
HIGH = Node(kind="feature", layer=1, site="mlp", pos=0, feature=2, activation=3.0)
OUT = Node(kind="output", layer=2, site="logit", pos=0, activation=0.5)


@pytest.fixture
def trace() -> Trace:
    edges = torch.tensor([[0.0, 0.25, 1.0, -2.0], [3.0, 0.0, 0.0, 0.0], [0.5, 0.0, -0.5, 0.0]])
    return Trace(
        targets=NodeTable([OUT, LOW, HIGH]),
        sources=NodeTable([TOKEN, BIAS, LOW, HIGH]),
        blocks=Edges.from_dense(edges),
        target_values=edges.sum(1),
        tokens=torch.tensor([4]),
        token_strings=(" a",),
        model_name="toy",
        n_layers=2,
    )


def edges_of(graph) -> dict[tuple[str, str], float]:
    return {(s, t): a for s, t, a in graph.digraph.edges(data="attribution")}


def test_build_keeps_every_nonzero_edge_and_all_nodes(trace):
    graph = build_graph(trace)
    assert list(graph.nodes) == [TOKEN, BIAS, LOW, HIGH, OUT]
    assert edges_of(graph) == {
        (BIAS.id, OUT.id): 0.25,
        (LOW.id, OUT.id): 1.0,
        (HIGH.id, OUT.id): -2.0,
        (TOKEN.id, LOW.id): 3.0,
        (TOKEN.id, HIGH.id): 0.5,
        (LOW.id, HIGH.id): -0.5,
    }
    assert graph.metadata.model_dump() == {
        "model": "toy",
        "prompt": " a",
        "tokens": (" a",),
        "n_layers": 2,
        "target": "logit",
        "notes": {},
    }


def test_incoming_edges_sum_to_the_target_values(trace):
    graph = build_graph(trace)
    for node, value in zip(trace.targets, trace.target_values.tolist(), strict=True):
        incoming = graph.digraph.in_edges(node.id, data="attribution")
        assert sum(a for _, _, a in incoming) == pytest.approx(value)


def test_mean_counts_absent_edges_as_zero(make_graph):
    a = make_graph("t0 f0.1 o.x", {("t0", "f0.1"): 4.0, ("f0.1", "o.x"): 1.0})
    b = make_graph("t0 f0.2 o.x", {("t0", "f0.2"): 6.0, ("f0.2", "o.x"): 1.0, ("t0", "o.x"): 1.0})
    c = make_graph("t0 f0.1 o.x", {("f0.1", "o.x"): 2.0, ("t0", "o.x"): -1.0})
    mean = average_graphs([a, b, c])
    assert edges_of(mean) == pytest.approx(
        {
            ("token@0", "mlp0.1@1"): 4 / 3,
            ("mlp0.1@1", "output.x"): 1.0,
            ("token@0", "mlp0.2@1"): 2.0,
            ("mlp0.2@1", "output.x"): 1 / 3,
        }
    )  # t0 -> x cancels
    assert mean.metadata.notes == {"n_prompts": "3"}
    assert mean.metadata.prompt.startswith("mean over 3 prompts, the first: <|bos|>")


def test_mean_equals_the_dense_mean(random_graph):
    graphs = [random_graph(seed, density=0.3) for seed in range(5)]
    n = graphs[0].n_nodes
    dense = torch.zeros(5, n, n)
    for matrix, graph in zip(dense, graphs, strict=True):
        matrix[graph.edge_target, graph.edge_source] = graph.edge_attribution
    mean = average_graphs(graphs)
    got = torch.zeros(n, n)
    got[mean.edge_target, mean.edge_source] = mean.edge_attribution
    torch.testing.assert_close(got, dense.mean(0))


def test_mean_activation_is_over_the_graphs_that_have_the_node(make_graph):
    a = make_graph("t0 f0.1 o.x", {("f0.1", "o.x"): 1.0})
    b = make_graph("t0 o.x", {("t0", "o.x"): 1.0})
    table = NodeTable(
        [n.model_copy(update={"activation": 4.5}) if n.kind == "feature" else n for n in a.nodes]
    )
    c = type(a)(table, a.edge_target, a.edge_source, a.edge_attribution, a.metadata)
    mean = average_graphs([a, b, c])
    assert mean.nodes[mean.nodes.row("mlp0.1@1")].activation == pytest.approx((1.5 + 4.5) / 2)


def test_mean_of_different_tokens_shows_the_alternatives(chain):
    def reworded(word: str, vocabulary_id: int):
        tokens = ("<|bos|>", word, " year", "\n")
        table = [
            n.model_copy(update={"feature": vocabulary_id}) if n.id == "token@1" else n
            for n in chain.nodes
        ]
        metadata = chain.metadata.model_copy(update={"tokens": tokens})
        return type(chain)(
            NodeTable(table),
            chain.edge_target,
            chain.edge_source,
            chain.edge_attribution,
            metadata,
        )

    mean = average_graphs([reworded(" Ann", 1), reworded(" Bob", 2)])
    assert mean.metadata.tokens == ("<|bos|>", " Ann| Bob", " year", "\n")
    assert mean.nodes[mean.nodes.row("token@1")].feature == -1
    assert mean.nodes[mean.nodes.row("token@0")].feature == 7
    many = average_graphs([reworded(word, 1) for word in (" Ann", " Bob", " Cat")])
    assert many.metadata.tokens[1] == " Ann| Bob|…"


def test_mean_of_one_is_the_graph_itself(chain):
    mean = average_graphs([chain])
    assert edges_of(mean) == edges_of(chain)
    assert mean.metadata == chain.metadata


def test_misaligned_graphs_are_refused(chain, make_graph):
    shorter = type(chain)(
        chain.nodes,
        chain.edge_target,
        chain.edge_source,
        chain.edge_attribution,
        chain.metadata.model_copy(update={"tokens": ("a",)}),
    )
    with pytest.raises(ValueError, match=r"share model, n_layers and number of tokens.*graph 1"):
        average_graphs([chain, shorter])
    with pytest.raises(ValueError, match=r"share their outputs.*output\.other"):
        average_graphs([chain, make_graph("t0 o.other", {("t0", "o.other"): 1.0})])
    with pytest.raises(ValueError, match="at least one graph"):
        average_graphs([])
