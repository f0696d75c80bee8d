"""A comparison of circuits in words and tables."""

from collections.abc import Sequence

from case_studies.commands.display import markdown_table
from case_studies.overlaps.comparing import CircuitRecord, MatchRecord, OverlapRecord, PairRecord
from graphs.task_circuits import ChanceOverlap

__all__ = ["HOW", "PAIR_COLUMNS", "finding", "pair_cells", "report"]

PAIR_COLUMNS = (
    *("circuits", "nodes", "in common", "Jaccard", "features…", "chance per layer"),
    *("… and position", "p", "edges' Jaccard", "weighted", "equal signs", "profile"),
)

HOW = {
    "role": "Two nodes are the same if they are the same feature (or error, or input) at the same "
    "role; positions between roles count as one.",
    "position": "Two nodes are the same if they are the same feature (or error, or input) at the "
    "same position, whatever stands there.",
    "any": "Two nodes are the same if they are the same feature (or error) anywhere in the prompt.",
}
"""What makes two nodes the same, said in words."""


def finding(record: OverlapRecord) -> str:
    """One sentence: what the first two circuits share, and what chance would give."""
    pair = record.pairs[0]
    if pair.overlap is None:
        return (
            f"{pair.a} and {pair.b}, two models: {pair.profile_overlap:.0%} of the influence lies "
            "at the same depths and positions"
        )
    text = (
        f"{pair.a} and {pair.b} share {pair.overlap.nodes.n_shared} nodes "
        f"(Jaccard {pair.overlap.node_jaccard:.2f})"
    )
    if pair.chance_per_position is None:
        return text
    return (
        f"{text}; of features, errors and MLPs {pair.chance_per_position.n_shared}, where chance "
        f"at the same layers and positions gives {pair.chance_per_position.expected_shared:.1f}"
    )


def pair_cells(record: OverlapRecord) -> list[list[str]]:
    """One row a pair, for `PAIR_COLUMNS`."""
    return [_cells(pair) for pair in record.pairs]


def report(record: OverlapRecord) -> str:
    """The content of `report.md`."""
    parts = [
        f"# {finding(record)}",
        markdown_table(
            ("circuit", "model", "dictionaries", "group", "nodes", "edges", "explains"),
            [
                (c.name, c.model, c.dictionaries or "not said", c.group or "", *_size(c), c.target)
                for c in record.circuits
            ],
        ),
        HOW[record.positions],
        "## Pairs",
        markdown_table(PAIR_COLUMNS, pair_cells(record)),
        "Jaccard: shared over those of either circuit, outputs left out. Weighted: the smaller "
        "attributions of edges over the larger ones. Equal signs: among shared edges. Profile: "
        "the part of the influence that lies at the same kind of node, depth and position in both, "
        "the only number that two models have.",
        _chance_text([pair.chance for pair in record.pairs]),
        *(_by_sort(pair) for pair in record.pairs if pair.overlap is not None),
    ]
    if record.matches:
        parts += ["## Features of different dictionaries", _matches(record)]
    return "\n\n".join(parts) + "\n"


def _size(circuit: CircuitRecord) -> tuple[str, str]:
    return str(circuit.n_nodes), str(circuit.n_edges)


def _cells(pair: PairRecord) -> list[str]:
    name, profile = f"{pair.a}, {pair.b}", f"{pair.profile_overlap:.2f}"
    overlap, chance = pair.overlap, pair.chance
    if overlap is None:
        return [name, *[""] * 10, profile]
    expected = [""] * 4
    if chance is not None and (strict := pair.chance_per_position) is not None:
        spreads = [f"{each.expected_shared:.1f} ± {each.spread:.1f}" for each in (chance, strict)]
        expected = [str(chance.n_shared), *spreads, f"{strict.p_value:.1g}"]
    signs = "" if overlap.sign_agreement is None else f"{overlap.sign_agreement:.0%}"
    return [
        name,
        f"{overlap.nodes.n_a}, {overlap.nodes.n_b}",
        str(overlap.nodes.n_shared),
        f"{overlap.node_jaccard:.2f}",
        *expected,
        f"{overlap.edge_jaccard:.2f}",
        f"{overlap.weighted_jaccard:.2f}",
        signs,
        profile,
    ]


def _chance_text(chances: Sequence[ChanceOverlap | None]) -> str:
    if not any(chances):
        return (
            "Nothing is set against chance: that needs studies of one model, with their "
            "config.json, and --chance."
        )
    return (
        "Features…: features, errors and unreplaced MLPs that both have. Chance: the number that "
        "random circuits would share (mean ± standard deviation, exact) with as many of each in "
        "every layer, or in every layer at every position, drawn from all that are in use on the "
        "prompts that chose the circuits; p: the share of the latter pairs with at least as many. "
        "Circuits are made of nodes that are active and strong, and so are more alike than random "
        "ones for that alone."
    )


def _by_sort(pair: PairRecord) -> str:
    assert pair.overlap is not None
    rows = [(kind, share) for kind, share in pair.overlap.by_kind.items()]
    rows += [(f"features, layer {layer}", share) for layer, share in pair.overlap.by_layer.items()]
    cells = [
        [name, str(s.n_a), str(s.n_b), str(s.n_shared), f"{s.jaccard:.2f}"] for name, s in rows
    ]
    columns = ("nodes", f"in {pair.a}", f"in {pair.b}", "in both", "Jaccard")
    return f"### {pair.a}, {pair.b}\n\n{markdown_table(columns, cells)}"


def _matches(record: OverlapRecord) -> str:
    rows = [
        (m.dictionaries, m.place, *map(str, (*m.n_features, m.n_pairs)), _similarity(m))
        for m in record.matches
    ]
    text = (
        "Features that are each other's nearest (mean cosine of encoder and of decoder) and near "
        f"enough are taken to be the same as those of {record.circuits[0].dictionaries}."
    )
    columns = ("dictionaries", "place", "first's features", "features", "pairs", "similarity")
    return f"{text}\n\n{markdown_table(columns, rows)}"


def _similarity(match: MatchRecord) -> str:
    return "" if match.mean_similarity is None else f"{match.mean_similarity:.2f}"
