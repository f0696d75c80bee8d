"""The attribution graphs of circuit-tracer and Neuronpedia: ours for them, and theirs here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from attribution import TopLogits, attribute
from attribution.nodes import Node, NodeTable
from circuits import SplicedModel, load_dictionaries, load_model
from graphs import CircuitGraph, GraphMetadata, build_graph, node_influence, prune
from graphs.exchange import GraphView, attribution_document, from_attribution, import_graph
from graphs.exchange.attribution_read import feature_indices
from graphs.exchange.attribution_records import NodeRecord
from graphs.exchange.attribution_write import cumulative_share
from graphs.exchange.spelling import cantor_pair, cantor_unpair
from tests.graphs.exchanged import assert_same

MADE = Path(__file__).parents[1] / "fixtures" / "circuit_tracer_graphs"


@given(st.integers(0, 10**18), st.integers(0, 10**18))
def test_cantor_there_and_back(x: int, y: int):
    assert cantor_unpair(cantor_pair(x, y)) == (x, y)


def test_cantor_by_hand():
    found = [cantor_unpair(number) for number in range(6)]
    assert found == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    with pytest.raises(ValueError, match="not negative is wanted, got -1"):
        cantor_unpair(-1)
    with pytest.raises(ValueError, match="not negative is wanted, got 0 and -1"):
        cantor_pair(0, -1)


# A graph that circuit-tracer made.


def test_a_graph_of_circuit_tracer():
    graph, view = import_graph(MADE / "pruned.json")
    wanted = load_file(MADE / "expected.safetensors")
    known = _rows_of_circuit_tracer(wanted)
    rows = torch.tensor([known[node.id] for node in graph.nodes])
    assert rows.tolist() == sorted(wanted["nodes"].tolist())
    assert torch.equal(rows[graph.edge_target], wanted["target"])
    assert torch.equal(rows[graph.edge_source], wanted["source"])
    assert torch.equal(graph.edge_attribution, wanted["weight"])
    assert graph.metadata.n_layers == 3
    assert graph.metadata.model == "random-transcoders"
    assert graph.metadata.tokens == ("<end>", "w3", "w7", "w5", "w11")
    assert graph.metadata.notes["node_threshold"] == "0.95"
    weights = [view.weights[node.id] for node in graph.outputs]
    torch.testing.assert_close(torch.tensor(weights), wanted["probability"], atol=0.0, rtol=1e-6)


def test_ids_that_collide_in_it_are_told_apart():
    records = json.loads((MADE / "pruned.json").read_text())["nodes"]
    same = [r["feature_type"] for r in records if r["node_id"] == "0_0_4"]
    assert same == ["cross layer transcoder", "mlp reconstruction error"]
    graph = import_graph(MADE / "pruned.json").graph
    for name in ("mlp0.0@4", "error.mlp0@4"):
        assert int((graph.edge_source == graph.nodes.row(name)).sum()) > 0
    fed = graph.nodes.row("error.mlp0@4")
    assert not bool((graph.edge_target == fed).any())


def test_influence_as_circuit_tracer_ranks_it():
    """Its slider's numbers, from the whole matrix, on our side."""
    wanted = load_file(MADE / "expected.safetensors")
    target, source = wanted["matrix"].nonzero(as_tuple=True)
    known = _rows_of_circuit_tracer(wanted)
    whole = CircuitGraph(
        NodeTable([_named(name) for name in known]),
        target,
        source,
        wanted["matrix"][target, source],
        GraphMetadata(model="m", prompt="", tokens=(), n_layers=3, target="logits"),
    )
    share = cumulative_share(node_influence(whole, wanted["probability"]))
    graph = import_graph(MADE / "pruned.json").graph
    records = json.loads((MADE / "pruned.json").read_text())["nodes"]
    said = {n.id: r["influence"] for n, r in zip(graph.nodes, records, strict=True)}
    checked = {name: float(share[known[name]]) for name, value in said.items() if value is not None}
    assert len(checked) == len(said) - 3
    assert checked == pytest.approx({name: said[name] for name in checked}, abs=1e-5)


def test_graphs_of_others_are_pruned_and_handed_on():
    found = import_graph(MADE / "pruned.json")
    smaller = prune(found.graph, node_threshold=0.5)
    assert 0 < smaller.n_edges < found.graph.n_edges
    document = attribution_document(found.graph, slug="again", view=found.view)
    assert document["metadata"]["scan"] == "random-transcoders"
    first = json.loads((MADE / "pruned.json").read_text())
    for name in ("layer", "ctx_idx", "feature_type", "activation", "clerp", "is_target_logit"):
        assert [n[name] for n in document["nodes"]] == [n[name] for n in first["nodes"]], name
    again = from_attribution(json.dumps(document), "again")
    assert_same(again.graph, found.graph)
    assert again.view == found.view


def _rows_of_circuit_tracer(wanted: dict[str, torch.Tensor]) -> dict[str, int]:
    names = [f"mlp{layer}.{index}@{pos}" for layer, pos, index in wanted["features"].tolist()]
    names += [f"error.mlp{layer}@{pos}" for layer in range(3) for pos in range(5)]
    names += [f"token@{pos}" for pos in range(5)]
    names += [f"output.'w{word}' ({word})" for word in (8, 15, 17)]
    return {name: row for row, name in enumerate(names)}


def _named(name: str) -> Node:
    kind = "output" if name.startswith("output.") else "error"
    return Node(kind=kind, layer=0, site=name.removeprefix("output."), pos=0)


# Ours for the viewers.


def test_what_viewers_read_by_hand(chain: CircuitGraph):
    view = GraphView(
        labels={"mlp1.3@1": "years"},
        groups={"inputs": ("token@0", "token@1")},
        pinned=("mlp1.3@1",),
        weights={"output.logit": 0.5},
    )
    document = attribution_document(chain, slug="by-hand", scan="gpt2", view=view)
    metadata, state = document["metadata"], document["qParams"]
    assert (metadata["slug"], metadata["scan"], metadata["schema_version"]) == (
        "by-hand",
        "gpt2",
        1,
    )
    assert metadata["prompt_tokens"] == ["<|bos|>", " The", " year", "\n"]
    assert state["pinnedIds"] == ["1_3_1"]
    assert state["supernodes"] == [["inputs", "E_7_0", "E_7_1"]]
    columns = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "clerp", "activation")
    assert [tuple(node[c] for c in columns) for node in document["nodes"]] == [
        ("E_7_0", 0, "E", 0, "embedding", "", None),
        ("E_7_1", 1, "E", 1, "embedding", "", None),
        ("error.mlp0@1", -1, "0", 1, "mlp reconstruction error", "", None),
        ("1_3_1", 13, "1", 1, "cross layer transcoder", "years", 1.5),
        ("4_-5_3", -5, "4", 3, "logit", 'Output "logit" (p=0.500)', None),
    ]
    assert [node["token_prob"] for node in document["nodes"]] == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert [node["is_target_logit"] for node in document["nodes"]] == [False] * 4 + [True]
    assert document["links"][1] == {"source": "error.mlp0@1", "target": "1_3_1", "weight": -1.0}
    # Influence: 1.5 of 2 over the feature, of which 3 in 4 from the token, 1 in 4 from the error;
    # summed in order .75 .5625 .25 .1875 of 1.75.
    influence = [node["influence"] for node in document["nodes"]]
    assert influence[:4] == pytest.approx([1.3125 / 1.75, 1.5625 / 1.75, 1.0, 0.75 / 1.75])
    assert influence[4] is None
    found = from_attribution(json.dumps(document), "here")
    assert_same(found.graph, chain)
    assert found.view == view


def test_every_kind_has_its_type_and_a_number_of_its_own(random_graph: Callable[..., CircuitGraph]):
    document = attribution_document(random_graph(0), slug="s")
    types = {node["node_id"]: node["feature_type"] for node in document["nodes"]}
    assert types["position@0"] == "position embedding"
    assert types["bias.mlp0"] == "bias"
    assert types["sublayer.mlp2@1"] == "unreplaced mlp error"
    keys = [(n["layer"], n["feature"], n["ctx_idx"]) for n in document["nodes"]]
    assert len(set(keys)) == len(keys)
    places = {node["node_id"]: node["ctx_idx"] for node in document["nodes"]}
    assert (places["bias.mlp0"], places["sublayer.mlp2@1"]) == (0, 1)


def test_other_places_than_mlps_are_told_apart(make_graph: Callable[..., CircuitGraph]):
    graph = make_graph("f1.3 e1 o.logit", {("f1.3", "o.logit"): 1.0})
    other = [n.model_copy(update={"site": "resid_post"}) for n in graph.nodes[:2]]
    more = [
        other[0].model_copy(update={"feature": 4}),
        other[1].model_copy(update={"site": "attn"}),
    ]
    table = NodeTable([*other, *graph.nodes, *more])
    rows = (torch.tensor([4, 4]), torch.tensor([0, 2]))
    both = CircuitGraph(table, *rows, torch.tensor([1.0, 2.0]), graph.metadata)
    document = attribution_document(both, slug="s")
    names = [(n["node_id"], n["feature_type"]) for n in document["nodes"]]
    assert names[:4] == [
        ("resid_post1.3@1", "resid_post feature"),
        ("error.resid_post1@1", "resid_post reconstruction error"),
        ("1_3_1", "cross layer transcoder"),
        ("error.mlp1@1", "mlp reconstruction error"),
    ]
    assert len({n["feature"] for n in document["nodes"]}) == 7
    assert_same(from_attribution(json.dumps(document), "here").graph, both)


def test_shares_by_hand():
    found = cumulative_share(torch.tensor([0.0, 1.0, 0.0, 3.0]))
    assert found.tolist() == [1.0, 1.0, 1.0, 0.75]
    assert cumulative_share(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_shares_of_equals_are_in_order_and_none_is_above_one():
    equal = torch.zeros(20_000, dtype=torch.float64)
    equal[::2] = 1.0
    found = cumulative_share(equal)
    torch.testing.assert_close(found[::2], torch.arange(1, 10_001).double() / 10_000)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(200, 50, generator=generator, dtype=torch.float64)
    assert max(float(cumulative_share(row).max()) for row in drawn) == 1.0


def test_outputs_that_would_be_spelled_alike(make_graph: Callable[..., CircuitGraph]):
    graph = make_graph("t0 o.'a'·(5) o.\"a\"·(5)", {("t0", "o.'a'·(5)"): 1.0})
    nodes = [n.model_copy(update={"site": n.site.replace("·", " ")}) for n in graph.nodes]
    edges = (graph.edge_target, graph.edge_source, graph.edge_attribution)
    both = CircuitGraph(NodeTable(nodes), *edges, graph.metadata)
    document = attribution_document(both, slug="s")
    assert [n["node_id"] for n in document["nodes"][1:]] == ["4_5_3", 'output."a" (5)']
    assert document["nodes"][1]["clerp"] == 'Output "a" (p=0.500)'
    assert_same(from_attribution(json.dumps(document), "here").graph, both)


def test_views_that_do_not_belong(chain: CircuitGraph):
    for view in (
        GraphView(labels={"mlp9.9@9": ""}),
        GraphView(groups={"a": ("mlp9.9@9",)}),
        GraphView(pinned=("mlp9.9@9",)),
        GraphView(weights={"output.logit": 1.0, "mlp9.9@9": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"the view names \['mlp9\.9@9'\]"):
            attribution_document(chain, slug="s", view=view)
    with pytest.raises(ValueError, match="weights must be given for every output"):
        attribution_document(chain, slug="s", view=GraphView(weights={"token@0": 1.0}))


# The same graph without what we add, as another program would have written it.


@pytest.fixture(scope="module")
def traced() -> CircuitGraph:
    spliced = SplicedModel(load_model("tiny"), load_dictionaries("tiny"))
    return prune(build_graph(attribute(spliced, "from the year 17", target=TopLogits(2))))


def test_a_plain_file_gives_the_same_nodes(traced: CircuitGraph):
    keep = traced.select(traced.is_kind("feature", "token", "error", "output"))
    document = _plain(attribution_document(keep, slug="s"))
    graph = from_attribution(json.dumps(document), "here").graph
    blank = [
        n.model_copy(update={"activation": 0.0} if n.kind == "output" else {}) for n in keep.nodes
    ]
    metadata = keep.metadata.model_copy(update={"notes": graph.metadata.notes})
    edges = (keep.edge_target, keep.edge_source, keep.edge_attribution)
    assert_same(graph, CircuitGraph(NodeTable(blank), *edges, metadata))
    assert graph.metadata.notes["scan"] == "tiny"


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    for record in (document["metadata"], *document["nodes"]):
        del record["circuitloom"]
    return document


FOREIGN: dict[str, Any] = {
    "metadata": {"prompt_tokens": ["a", " b"], "info": {"creator_name": "x"}},
    "nodes": [
        {"node_id": "E_5_0", "feature_type": "embedding", "layer": "E", "ctx_idx": 0},
        {"node_id": "x", "feature_type": "embedding", "layer": "E", "ctx_idx": 1},
        {"node_id": "0_2_1", "feature_type": "transcoder", "layer": 0, "ctx_idx": 1, "feature": 5},
        {"node_id": "e", "feature_type": "mlp reconstruction error", "layer": 1, "ctx_idx": 1},
        {"node_id": "o", "feature_type": "logit", "layer": "3", "ctx_idx": -1, "clerp": "c"},
    ],
    "links": [
        {"source": "x", "target": "0_2_1", "weight": 0.1},
        {"source": "0_2_1", "target": "o", "weight": 2},
        {"source": "e", "target": "o", "weight": -1.5},
    ],
}


def foreign() -> dict[str, Any]:
    return json.loads(json.dumps(FOREIGN))


def test_a_file_with_little_in_it():
    graph, view = from_attribution(json.dumps(foreign()), "here")
    assert [node.id for node in graph.nodes] == [
        "token@0",
        "token@1",
        "mlp0.2@1",
        "error.mlp1@1",
        "output.'c'",
    ]
    assert [node.feature for node in graph.nodes] == [5, -1, 2, -1, -1]
    assert [node.layer for node in graph.nodes] == [-1, -1, 0, 1, 2]
    assert graph.outputs[0].pos == 1
    assert graph.edge_attribution.dtype == torch.float64
    assert graph.edge_attribution.tolist() == [0.1, 2.0, -1.5]
    assert graph.metadata == GraphMetadata(
        model="unknown",
        prompt="a b",
        tokens=("a", " b"),
        n_layers=2,
        target="'c'",
        notes={"info": '{"creator_name": "x"}'},
    )
    assert view == GraphView()
    assert from_attribution(json.dumps(foreign()), "here", n_layers=7).graph.outputs[0].layer == 7


def test_state_of_a_viewer():
    document = foreign()
    document["qParams"] = {
        "pinnedIds": "o,gone,0_2_1",
        "supernodes": [["g", "e"], ["g", "gone", "x"], []],
        "linkType": "both",
    }
    document["nodes"][2]["clerp"] = "name"
    document["nodes"][4]["token_prob"] = 0.25
    view = from_attribution(json.dumps(document), "here").view
    assert view == GraphView(
        labels={"mlp0.2@1": "name"},
        groups={"g": ("error.mlp1@1",), "g (2)": ("token@1",)},
        pinned=("output.'c'", "mlp0.2@1"),
        weights={"output.'c'": 0.25},
    )


@pytest.mark.parametrize(
    ("ids", "numbers", "wanted"),
    [
        (["3_8_1", "2_9_1"], [None, 4], [8, 9]),
        (["a", "2_9_1"], [cantor_pair(3, 8), cantor_pair(2, 4)], [8, 4]),
        (["a", "b"], [cantor_pair(3, 8), 4], [cantor_pair(3, 8), 4]),
        (["3_8_0", "2_9_0"], [7, 4], [7, 4]),
    ],
)
def test_numbers_of_features(ids: list[str], numbers: list[int | None], wanted: list[int]):
    records = [
        NodeRecord(node_id=i, feature_type="transcoder", layer=layer, ctx_idx=1, feature=number)
        for i, number, layer in zip(ids, numbers, (3, "2"), strict=True)
    ]
    assert feature_indices(records, "here") == wanted


ERROR = {"node_id": "0_2_1", "feature_type": "mlp reconstruction error", "layer": 2, "ctx_idx": 1}
LATE = {"node_id": "3_0_1", "feature_type": "transcoder", "layer": "3", "ctx_idx": 1}
EARLY = {"node_id": "1_0_1", "feature_type": "transcoder", "layer": "1", "ctx_idx": 1}


def colliding(*links: tuple[str, str]) -> str:
    """Nodes in order: x, feature 0_2_1, 1_0_1, 3_0_1, errors e and 0_2_1, E_5_0, o."""
    document = foreign()
    token, x, feature, error, out = document["nodes"]
    document["nodes"] = [x, feature, EARLY, LATE, error, ERROR, token, out]
    document["links"] = [{"source": s, "target": t, "weight": 1.0} for s, t in links]
    return json.dumps(document)


@pytest.mark.parametrize(
    ("links", "wanted"),
    [
        ([("x", "0_2_1")], ["token@1 mlp0.2@1"]),
        ([("0_2_1", "1_0_1")], ["mlp0.2@1 mlp1.0@1"]),
        ([("0_2_1", "o"), ("0_2_1", "o")], ["mlp0.2@1 output.'c'", "error.mlp2@1 output.'c'"]),
        ([("0_2_1", "3_0_1"), ("1_0_1", "3_0_1")], ["mlp0.2@1 mlp3.0@1", "mlp1.0@1 mlp3.0@1"]),
        ([("e", "3_0_1"), ("0_2_1", "3_0_1")], ["error.mlp1@1 mlp3.0@1", "error.mlp2@1 mlp3.0@1"]),
    ],
)
def test_colliding_ends(links: list[tuple[str, str]], wanted: list[str]):
    graph = from_attribution(colliding(*links), "here").graph
    ends = zip(graph.edge_source.tolist(), graph.edge_target.tolist(), strict=True)
    assert [f"{graph.nodes[s].id} {graph.nodes[t].id}" for s, t in ends] == wanted


@pytest.mark.parametrize(
    "links",
    [
        [("0_2_1", "o")],
        [("x", "o"), ("0_2_1", "o"), ("E_5_0", "o")],
        [("e", "o"), ("1_0_1", "o"), ("0_2_1", "o")],
    ],
)
def test_colliding_ends_that_could_be_either(links: list[tuple[str, str]]):
    fault = r"here: the link 0_2_1 -> o could come from mlp0\.2@1 or error\.mlp2@1"
    with pytest.raises(ValueError, match=fault):
        from_attribution(colliding(*links), "here")


FAULTS = [
    (lambda d: d.pop("links"), "links: Field required"),
    (lambda d: d["metadata"].pop("prompt_tokens"), "prompt_tokens: Field required"),
    (lambda d: d.update(nodes={}), "nodes: Input should be a valid"),
    (lambda d: d["nodes"][0].update(feature_type="lorsa"), "of type 'lorsa'; want one of"),
    (lambda d: d["nodes"][2].update(layer="E"), "'0_2_1' should have a block's number .*got 'E'"),
    (lambda d: d["nodes"][3].update(layer=10**30), "'e' should have a block's number"),
    (lambda d: d["nodes"][3].update(layer=-2), "'e' should have a block's number"),
    (lambda d: d["nodes"][2].update(ctx_idx=2), "ctx_idx 2, but there are 2 prompt_tokens"),
    (lambda d: d["nodes"][2].update(ctx_idx=-1), "ctx_idx -1, but there are 2"),
    (lambda d: d["nodes"][4].update(ctx_idx=-2), "ctx_idx -2, but there are 2"),
    (lambda d: d["nodes"][2].update(ctx_idx=0.5), "ctx_idx: Input should be a valid integer"),
    (lambda d: d["nodes"][2].update(node_id="q", feature=None), "the feature 'q' has no number"),
    (lambda d: d["nodes"][2].update(node_id="q", feature=-3), r"has no number \(got -3\)"),
    (lambda d: d["nodes"][2].update(activation=float("nan")), "activation: .*finite"),
    (lambda d: d["nodes"][1].update(node_id="E_5_0"), "2 nodes have the id 'E_5_0'"),
    (lambda d: d["nodes"].append(d["nodes"][3] | {"node_id": "e2"}), "ids must be unique"),
    (lambda d: d["nodes"].pop(), "an end that is no node: 'o'"),
    (lambda d: d["links"][0].update(source="gone"), "an end that is no node: 'gone'"),
    (lambda d: d["links"][0].update(weight=float("inf")), "weight: .*finite"),
    (lambda d: d["links"][0].update(weight="much"), "weight: .*valid number"),
    (lambda d: d["links"][1].update(target="x"), "must not form a cycle"),
    (lambda d: d["links"].append(d["links"][0]), "each edge may occur once"),
    (lambda d: (d["nodes"].pop(), d["links"].clear()), "at least one node of kind 'output'"),
    (lambda d: d["metadata"].update(circuitloom={"version": 1}), "circuitloom.model: Field"),
    (lambda d: d["nodes"][0].update(circuitloom={"kind": "x"}), "circuitloom.kind"),
]


@pytest.mark.parametrize(("damage", "fault"), FAULTS, ids=range(len(FAULTS)))
def test_faults(damage: Callable, fault: str):
    document = foreign()
    damage(document)
    with pytest.raises(ValueError, match=fault) as caught:
        from_attribution(json.dumps(document), "here.json")
    assert str(caught.value).startswith("here.json")


def test_numbers_too_long_to_be_any():
    for number in ("1" * 5000, "1e999"):
        text = json.dumps(foreign()).replace("-1.5", number)
        with pytest.raises(ValueError, match=r"here: .*(finite|valid|Invalid)"):
            from_attribution(text, "here")
