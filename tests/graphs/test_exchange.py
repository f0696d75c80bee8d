"""Graphs to the files of other programs and back: nothing is lost, nothing broken gets in."""

import json
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings

from graphs import CircuitGraph
from graphs.exchange import (
    FORMS,
    GraphView,
    attribution_document,
    export_graph,
    from_attribution,
    from_graphml,
    from_node_link,
    graphml,
    import_graph,
    node_link,
    node_link_schema,
)
from graphs.exchange.node_link import SCHEMA_FILE
from tests.graphs.exchanged import assert_same, build, parts

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@QUICK
@given(parts())
def test_node_link_loses_nothing(made: tuple):
    graph = build(made)
    assert_same(from_node_link(json.dumps(node_link(graph)), "here"), graph)


@QUICK
@given(parts())
def test_graphml_loses_nothing(made: tuple):
    graph = build(made)
    assert_same(from_graphml(graphml(graph), "here"), graph)


@QUICK
@given(parts())
def test_attribution_graph_loses_nothing(made: tuple):
    graph = build(made)
    text = json.dumps(attribution_document(graph, slug="s"))
    found = from_attribution(text, "here")
    assert_same(found.graph, graph)
    assert found.view.weights == {}


@pytest.mark.parametrize("form", FORMS)
def test_files_are_told_apart(form: str, random_graph: Callable[..., CircuitGraph], tmp_path: Path):
    graph = random_graph(0).with_notes(said='"multigraph": "edges": {')
    export_graph(graph, tmp_path / "g.x", form=form)
    found = import_graph(tmp_path / "g.x")
    assert_same(found.graph, graph)
    assert found.view == GraphView()


def test_a_byte_order_mark_is_no_fault(chain: CircuitGraph, tmp_path: Path):
    file = tmp_path / "g.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(node_link(chain)).encode())
    assert_same(import_graph(file).graph, chain)


def test_networkx_reads_node_link_as_our_own_digraph(random_graph: Callable[..., CircuitGraph]):
    graph = random_graph(1)
    found = nx.node_link_graph(json.loads(json.dumps(node_link(graph))), edges="links")
    own = graph.digraph
    assert dict(found.nodes(data=True)) == dict(own.nodes(data=True))
    assert dict(found.adjacency()) == dict(own.adjacency())
    assert found.graph.pop("version") == 1
    assert found.graph.pop("dtype") == "float32"
    assert found.graph | {"tokens": tuple(found.graph["tokens"])} == own.graph


def test_the_published_schema_is_current():
    """If this fails, write `node_link_schema()` to the file again."""
    written = json.dumps(node_link_schema(), indent=1, sort_keys=True) + "\n"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == written


def test_the_schema_closes_every_record():
    schema = node_link_schema()
    assert schema["required"] == ["directed", "multigraph", "graph", "nodes", "links"]
    records = [schema, *schema["$defs"].values()]
    assert [record["additionalProperties"] for record in records] == [False] * 4
    required = ["id", "kind", "layer", "site", "pos", "feature", "activation"]
    assert schema["$defs"]["NodeRecord"]["required"] == required


def test_graphml_is_readable_elsewhere(chain: CircuitGraph):
    found = nx.parse_graphml(graphml(chain))
    assert found.nodes["mlp1.3@1"] == {
        "kind": "feature",
        "layer": 1,
        "site": "mlp",
        "pos": 1,
        "feature": 3,
        "activation": 1.5,
    }
    assert found.edges["mlp1.3@1", "output.logit"] == {"attribution": 1.5, "row": 2}
    assert found.graph["model"] == "toy"
    assert json.loads(found.graph["tokens"]) == ["<|bos|>", " The", " year", "\n"]


def test_graphml_after_a_viewer_took_out_and_moved(chain: CircuitGraph):
    found = nx.parse_graphml(graphml(chain))
    found.remove_node("token@1")
    for name in found:
        found.nodes[name]["x"] = 0.5
    text = "\n".join(nx.generate_graphml(found))
    keep = [node.id for node in chain.nodes if node.id != "token@1"]
    assert_same(from_graphml(text, "here"), chain.subgraph(keep))


BROKEN = [
    ("", "neither XML nor a JSON object"),
    ("[1]", "neither XML nor a JSON object"),
    ("{", "Invalid JSON"),
    ('{"multigraph": false}', "directed: Field required"),
    ('{"a": 1}', "metadata: Field required"),
    ('{"a": ' + "[" * 100_000, "recursion limit"),
    ('{"multigraph": ' + "[" * 100_000, "recursion limit"),
    ("<a>", "no GraphML that can be read"),
    ("<a/>", "no GraphML that can be read"),
    ("<a>" * 50_000 + "</a>" * 50_000, "no GraphML that can be read"),
    ('<!DOCTYPE x [<!ENTITY a "a">]><graphml>&a;</graphml>', "declares a document type"),
    ('<graphml xmlns="http://graphml.graphdrawing.org/xmlns"/>', "no GraphML that can be read"),
]


@pytest.mark.parametrize(("text", "fault"), BROKEN, ids=range(len(BROKEN)))
def test_broken_files_are_named(text: str, fault: str, tmp_path: Path):
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=fault) as caught:
        import_graph(file)
    assert str(file) in str(caught.value)


def test_text_that_is_none(tmp_path: Path):
    (tmp_path / "g.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"g\.json should be UTF-8 text, but byte 7"):
        import_graph(tmp_path / "g.json")
    with pytest.raises(OSError, match="No such file"):
        import_graph(tmp_path / "none.json")


NODE_LINK = [
    (lambda d: d["nodes"][0].update(pos=True), r"nodes\.0\.pos: .*got True"),
    (lambda d: d["nodes"][0].update(layer="1"), r"nodes\.0\.layer: .*got '1'"),
    (lambda d: d["nodes"][0].update(activation=float("nan")), r"nodes\.0\.activation: .*finite"),
    (lambda d: d["nodes"][0].update(kind="neuron"), r"nodes\.0\.kind: .*got 'neuron'"),
    (lambda d: d["nodes"][0].update(id="token@9"), "called 'token@9' but its columns say"),
    (lambda d: d["nodes"][0].update(colour="red"), r"nodes\.0\.colour: Extra inputs"),
    (lambda d: d["nodes"].append(d["nodes"][0]), "node ids must be unique"),
    (lambda d: d["links"][0].update(source="mlp9.9@9"), "an end that is no node: 'mlp9.9@9'"),
    (lambda d: d["links"][0].update(target="mlp9.9@9"), "an end that is no node: 'mlp9.9@9'"),
    (lambda d: d["links"][0].update(attribution=float("inf")), "attribution: .*finite"),
    (lambda d: d["links"][0].update(attribution=1e300), "attributions must be finite, got inf"),
    (lambda d: d["links"].append(d["links"][0]), "each edge may occur once"),
    (lambda d: d["links"][0].update(target="token@0"), "must not form a cycle"),
    (lambda d: d["nodes"][-1].update(kind="sublayer", id="sublayer.logit3@3"), "no node"),
    (lambda d: d["graph"].update(version=2), r"graph\.version: .*got 2"),
    (lambda d: d["graph"].update(dtype="float16"), r"graph\.dtype"),
    (lambda d: d.update(directed=False), "directed: .*got False"),
]


@pytest.mark.parametrize(("damage", "fault"), NODE_LINK, ids=range(len(NODE_LINK)))
def test_faults_of_node_link(damage: Callable, fault: str, chain: CircuitGraph):
    document = node_link(chain)
    damage(document)
    with pytest.raises(ValueError, match=fault) as caught:
        from_node_link(json.dumps(document), "here.json")
    assert str(caught.value).startswith("here.json")


GRAPHML = [
    (('<edge source="token@0"', '<edge source="token@7"'), "'token@7' is no node"),
    (('<data key="d0">toy</data>', ""), "nothing"),
    (("mlp1.3@1", "mlp1.4@1"), "called 'mlp1.4@1' but its columns say 'mlp1.3@1'"),
    (("directed", "undirected"), "directed graph"),
    (
        ('attr.name="attribution" attr.type="double"', 'attr.name="w" attr.type="double"'),
        "needs an",
    ),
    (('attr.name="dtype"', 'attr.name="type"'), "dtype: Field required"),
    (('attr.name="kind"', 'attr.name="sort"'), "kind: Field required"),
    (
        ('attr.name="activation" attr.type="double"', 'attr.name="activation" attr.type="string"'),
        "activation: Input should be a valid number",
    ),
    ((">1.5<", ">nan<"), "must be finite"),
    ((">1.5<", ">much<"), "no GraphML that can be read"),
]


@pytest.mark.parametrize(("swap", "fault"), GRAPHML, ids=range(len(GRAPHML)))
def test_faults_of_graphml(swap: tuple[str, str], fault: str, chain: CircuitGraph):
    text = graphml(chain)
    if fault == "nothing":  # the name of the model may be empty, and then XML leaves it out
        assert from_graphml(text.replace(">toy<", "><"), "here").metadata.model == ""
        return
    assert swap[0] in text
    with pytest.raises(ValueError, match=fault) as caught:
        from_graphml(text.replace(*swap), "here.graphml")
    assert str(caught.value).startswith("here.graphml")


def test_graphml_with_an_edge_twice(chain: CircuitGraph):
    text = graphml(chain)
    start = text.index("<edge")
    edge = text[start : text.index("</edge>") + len("</edge>")]
    with pytest.raises(ValueError, match="at most one edge from node to node"):
        from_graphml(text.replace(edge, edge + edge), "here")


def test_forms_that_cannot(chain: CircuitGraph, tmp_path: Path):
    with pytest.raises(ValueError, match=r"form must be one of circuitloom, .*got 'dot'"):
        export_graph(chain, tmp_path / "x", form="dot")
    with pytest.raises(ValueError, match="graphml holds neither a view nor a scan"):
        export_graph(chain, tmp_path / "x", form="graphml", view=GraphView())
    with pytest.raises(ValueError, match="node-link holds neither a view nor a scan"):
        export_graph(chain, tmp_path / "x", form="node-link", scan="gpt2")
    with pytest.raises(ValueError, match="a slug is letters"):
        export_graph(chain, tmp_path / "a b.json", form="attribution-graph")
    assert list(tmp_path.iterdir()) == []
