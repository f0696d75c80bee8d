"""Any graph, for round trips: every kind of node, awkward names, any finite numbers."""

import torch
from hypothesis import strategies as st

from attribution.nodes import Node, NodeTable
from graphs import CircuitGraph, GraphMetadata

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
AWKWARD = st.sampled_from(
    [
        *("\n", "\r\n", "\t", "\x00", "\x1b", "\x85", "\u2028", "\ufffe", "\uffff", "é", "𝄞", " "),
        *('"', "'", "\\", "\\n", "<", "&amp;", "]]>", "<!DOCTYPE", "a,b", "(p=", "1"),
        '"multigraph":',
    ]
)
NAME = st.one_of(TEXT, AWKWARD, st.builds("{}{}".format, AWKWARD, TEXT))
SITE = st.one_of(st.sampled_from(["mlp", "attn", "resid_post", "embed"]), NAME)
NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 5e-324, 1e308, 0.1, 1 / 3, 2.0**53 + 2]),
)
KINDS = ["feature", "token", "position", "error", "sublayer", "bias"]


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[Node], list[tuple[int, int]], list[float], str, dict]:
    """Of a valid graph: edges run from earlier to later nodes of a table in any order."""
    width = draw(st.sampled_from([32, 64]))
    node = st.builds(
        Node,
        kind=st.sampled_from(KINDS),
        layer=st.integers(-1, 3),
        site=SITE,
        pos=st.integers(-1, 3),
        feature=st.integers(-1, 20),
        activation=NUMBER,
    )
    inner = draw(st.lists(node, max_size=6, unique_by=lambda n: n.id))
    names = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    outputs = [
        Node(kind="output", layer=4, site=name, pos=2, activation=draw(NUMBER)) for name in names
    ]
    nodes = draw(st.permutations([*inner, *outputs]))
    later = draw(st.permutations(range(len(nodes))))
    pairs = [(t, s) for i, t in enumerate(later) for s in later[:i]]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    value = st.floats(allow_nan=False, allow_infinity=False, width=width)
    about = {
        "model": draw(NAME),
        "prompt": draw(NAME),
        "tokens": tuple(draw(st.lists(NAME, max_size=4))),
        "n_layers": 4,
        "target": draw(NAME),
        "notes": draw(st.dictionaries(NAME, NAME, max_size=3)),
    }
    return nodes, edges, [draw(value) for _ in edges], f"float{width}", about


def build(parts: tuple[list[Node], list[tuple[int, int]], list[float], str, dict]) -> CircuitGraph:
    """The graph of `parts`; not a strategy itself, since type checks draw random numbers."""
    nodes, edges, values, dtype, about = parts
    rows = torch.tensor(edges, dtype=torch.long).reshape(-1, 2)
    attribution = torch.tensor(values, dtype=getattr(torch, dtype))
    metadata = GraphMetadata(**about)
    return CircuitGraph(NodeTable(nodes), rows[:, 0], rows[:, 1], attribution, metadata)


def assert_same(found: CircuitGraph, wanted: CircuitGraph) -> None:
    """Equal in every bit, in order."""
    assert list(found.nodes) == list(wanted.nodes)
    assert [str(n.activation) for n in found.nodes] == [str(n.activation) for n in wanted.nodes]
    assert found.metadata == wanted.metadata
    assert found.edge_attribution.dtype == wanted.edge_attribution.dtype
    for name in ("edge_target", "edge_source", "edge_attribution"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    signs = torch.signbit(found.edge_attribution), torch.signbit(wanted.edge_attribution)
    assert torch.equal(*signs)
