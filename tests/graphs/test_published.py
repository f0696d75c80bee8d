"""Published head circuits: their counts, and that the data are what the rules make."""

import re
from pathlib import Path

import pytest

from graphs.published import head_rules
from graphs.published.head_rules import RULES, edge_exists, wire, write_published
from graphs.published.published_circuits import (
    PublishedCircuit,
    published_circuit,
    published_names,
)

COUNTS = {
    ("ioi", "acdc"): (963, 78),
    ("ioi", "auto-circuit"): (771, 0),  # its code gives 739 where late MLPs are cut off
    ("greater-than", "acdc"): (235, 27),
    ("greater-than", "auto-circuit"): (235, 0),
}
_NAME = re.compile(r"(input|a\d+\.h\d+|m\d+)->(a\d+\.h\d+<[qkv]>|m\d+|logits)")


def all_circuits() -> list[PublishedCircuit]:
    return [published_circuit(task, encoding) for task, encoding in published_names()]


def test_counts_of_edges() -> None:
    found = {(c.task, c.encoding): (len(c.edges), c.n_direct) for c in all_circuits()}
    assert found == COUNTS


def test_the_data_files_are_what_the_rules_make(tmp_path: Path) -> None:
    write_published(tmp_path)
    shipped = Path(head_rules.__file__).parent
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in shipped.glob("*.json"))
    for name in names:
        assert (tmp_path / name).read_text() == (shipped / name).read_text()


@pytest.mark.parametrize("circuit", all_circuits(), ids=lambda c: f"{c.task} {c.encoding}")
def test_edges_are_edges_of_gpt2_small(circuit: PublishedCircuit) -> None:
    assert len(set(circuit.edges)) == len(circuit.edges)
    for edge in circuit.edges:
        assert _NAME.fullmatch(edge), edge
        sender, receiver = edge.split("->")
        assert edge_exists(sender, receiver), edge
        for layer, head in re.findall(r"a(\d+)\.h(\d+)", edge):
            assert int(layer) < circuit.n_layers
            assert int(head) < circuit.n_heads
        assert all(int(layer) < circuit.n_layers for layer in re.findall(r"m(\d+)", edge))


@pytest.mark.parametrize("circuit", all_circuits(), ids=lambda c: f"{c.task} {c.encoding}")
def test_groups_are_the_heads_that_edges_name(circuit: PublishedCircuit) -> None:
    grouped = {node for group in circuit.groups.values() for node in group if node[0] == "a"}
    assert grouped == {node for node in circuit.nodes if node[0] == "a"}
    assert {"input", "logits"} <= set(circuit.nodes)


def test_heads_by_group() -> None:
    ioi, greater = published_circuit("ioi"), published_circuit("greater-than")
    sizes = {name: len(group) for name, group in ioi.groups.items()}
    assert sizes == {
        "name mover": 3,
        "backup name mover": 8,
        "negative name mover": 2,
        "s-inhibition": 4,
        "induction": 4,
        "duplicate token": 3,
        "previous token": 2,
    }
    assert ioi.groups["name mover"] == ("a9.h9", "a10.h0", "a9.h6")
    assert len(greater.groups["middle heads"]) == 6
    (hanna,) = greater.other_groups.values()
    assert len(hanna) == 7
    assert set(hanna) & set(greater.groups["middle heads"]) == {
        *("a5.h5", "a6.h9", "a7.h10", "a8.h11", "a9.h1"),
    }


def test_ioi_wiring_by_hand() -> None:
    edges = set(published_circuit("ioi").edges)
    assert {"a9.h9->logits", "input->a0.h1<q>", "m3->a5.h5<k>", "a2.h2->a5.h5<v>"} <= edges
    assert {"a7.h3->a9.h9<q>", "a5.h5->a7.h3<k>", "input->a9.h9<k>", "a11.h10->m11"} <= edges
    assert not {"a7.h3->a9.h9<k>", "input->a9.h9<q>", "a7.h3->logits", "a5.h5->a5.h8<q>"} & edges
    narrow = set(published_circuit("ioi", "auto-circuit").edges)
    assert narrow < edges
    assert "m11->logits" in narrow
    assert "a0.h1->m11" in edges - narrow
    backbone = {e for e in edges if "m" in e or e == "input->logits"}
    assert (len(backbone), len(edges - backbone)) == (781, 182)


def test_greater_than_wiring_by_hand() -> None:
    edges = set(published_circuit("greater-than").edges)
    assert {"a0.h1->m0", "a0.h3->a5.h5<q>", "m8->a9.h1<q>", "a8.h11->m8", "m11->logits"} <= edges
    assert not {"a0.h3->m0", "m8->a9.h1<k>", "m0->m9", "m7->logits", "input->a5.h5<q>"} & edges


def test_wiring_needs_order() -> None:
    assert wire(["a2.h0"], ["a2.h1", "m2", "logits"]) == {"a2.h0->m2", "a2.h0->logits"}
    assert wire(["m2"], ["m2", "a2.h0", "input"]) == set()


@pytest.mark.parametrize(
    ("task", "encoding", "message"),
    [("docstring", "acdc", "task must be one of"), ("ioi", "tracr", "encoding must be one of")],
)
def test_unknown_names(task: str, encoding: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        published_circuit(task, encoding)


def test_every_rule_is_published() -> None:
    assert {(task, e) for task, rules in RULES.items() for e in rules} == set(published_names())
