"""Circuits brought to the same positions and the same names of features.

Weights alone where dictionaries differ; nothing here takes a prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attribution.nodes import Node, NodeTable
from case_studies.overlaps.reading import SavedCircuit
from circuits import DictionarySet, load_dictionaries
from circuits.dictionaries import Dictionary
from graphs import CircuitGraph
from graphs.task_circuits import (
    FeatureMatch,
    collapse,
    match_dictionaries,
    name_positions,
    order_columns,
    rename_features,
)

__all__ = [
    "Alignment",
    "MatchRecord",
    "Matching",
    "align",
    "match_features",
    "name_prompt",
    "rename_graph",
]

By = Literal["role", "position", "any"]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Circuits over the same columns.

    Attributes:
        by: what makes two positions the same.
        columns: names of the positions, left to right.
        graphs: the circuits, their positions these columns.
    """

    by: By
    columns: tuple[str, ...]
    graphs: tuple[CircuitGraph, ...] = field(repr=False)


class MatchRecord(BaseModel):
    """One dictionary of another set, matched with that of the first circuit's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dictionaries: str = Field(description="the other set")
    place: str = Field(description="site and layer")
    n_features: tuple[int, int] = Field(description="of the first set, of the other")
    n_pairs: int
    mean_similarity: float | None = Field(description="of the pairs; none where there is none")


@dataclass(frozen=True, eq=False)
class Matching:
    """From the features of one dictionary set to the names of the first circuit's."""

    matches: dict[tuple[str, int], FeatureMatch]
    unmatched_from: int

    def rename(self, nodes: Iterable[Node]) -> list[Node]:
        """The same nodes under the first set's names."""
        return rename_features(nodes, self.matches, unmatched_from=self.unmatched_from)


def align(saved: Sequence[SavedCircuit], positions: Literal["auto"] | By) -> Alignment:
    """Bring circuits to the same positions.

    Args:
        saved: the circuits.
        positions: `auto` is by role where all have roles, else by position.

    Raises:
        ValueError: if circuits without roles are to be compared by role, or circuits of different
            lengths by position.
    """
    with_roles = [circuit.position_names is not None for circuit in saved]
    by: By = ("role" if all(with_roles) else "position") if positions == "auto" else positions
    if by == "role" and not all(with_roles):
        without = saved[with_roles.index(False)]
        raise ValueError(
            f"--positions role: {without.path} does not say which position has which role; save it "
            "with the note `roles`, or compare by position, or any"
        )
    lengths = [len(circuit.graph.metadata.tokens) for circuit in saved]
    if by == "position" and len(set(lengths)) > 1:
        raise ValueError(
            f"circuits of {lengths} positions do not line up by position; compare them with "
            "--positions any, or by role"
        )
    names = [circuit.position_names if by == "role" else None for circuit in saved]
    named = [own or _numbers(by, n) for own, n in zip(names, lengths, strict=True)]
    columns = order_columns(named)
    graphs = (collapse(c.graph, own, columns) for c, own in zip(saved, named, strict=True))
    return Alignment(by, columns, tuple(graphs))


def name_prompt(by: By, roles: dict[str, int], n_pos: int) -> tuple[str, ...]:
    """What the positions of a prompt are called in an alignment."""
    return name_positions(roles, n_pos) if by == "role" else _numbers(by, n_pos)


def match_features(
    first: str, other: str, graphs: Sequence[CircuitGraph], *, at_least: float, number: int
) -> tuple[Matching, list[MatchRecord]]:
    """Match the dictionaries that the features of some circuits belong to.

    Args:
        first: the dictionary set whose names are used.
        other: the one whose features get these names.
        graphs: circuits of both.
        at_least: smallest similarity of a pair.
        number: of the other set, 1 and up, so that unmatched features of two sets differ.
    """
    places = sorted({(n.site, n.layer) for g in graphs for n in g.nodes if n.kind == "feature"})
    sets = [load_dictionaries(name, sites=_sites(places)) for name in (first, other)]
    matches, records, largest = {}, [], 0
    for site, layer in places:
        a, b = (_dictionary(own, f"{site}.{layer}") for own in sets)
        match = match_dictionaries(a, b, at_least=at_least)
        matches[site, layer] = match
        largest = max(largest, a.n_features, b.n_features)
        records.append(
            MatchRecord(
                dictionaries=other,
                place=f"{site}.{layer}",
                n_features=(a.n_features, b.n_features),
                n_pairs=len(match.a),
                mean_similarity=float(match.similarity.mean()) if len(match.a) else None,
            )
        )
    return Matching(matches, number * largest), records


def rename_graph(graph: CircuitGraph, matching: Matching) -> CircuitGraph:
    """The same circuit, its features called by the first set's names."""
    return replace(graph, nodes=NodeTable(matching.rename(graph.nodes)))


def _numbers(by: By, n_pos: int) -> tuple[str, ...]:
    return ("any position",) * n_pos if by == "any" else tuple(map(str, range(n_pos)))


def _sites(places: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(site for site, _ in places)) or ("mlp",)


def _dictionary(dictionaries: DictionarySet, name: str) -> Dictionary:
    if name not in dictionaries:
        raise ValueError(
            f"a circuit has features of {name}, of which there is no dictionary among "
            f"{', '.join(dictionaries)}; compare circuits with dictionaries at the same places"
        )
    return dictionaries[name]
