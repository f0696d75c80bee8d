"""Several circuits, each compared with each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attribution.nodes import Node
from case_studies.overlaps.aligning import (
    Alignment,
    Matching,
    MatchRecord,
    align,
    match_features,
    rename_graph,
)
from case_studies.overlaps.config import OverlapConfig
from case_studies.overlaps.pools import study_pool
from case_studies.overlaps.reading import SavedCircuit
from circuits import SplicedModel
from graphs import CircuitGraph
from graphs.task_circuits import (
    ChanceOverlap,
    CircuitOverlap,
    chance_overlap,
    circuit_overlap,
    influence_profile,
    intersection,
    profile_overlap,
)
from graphs.task_circuits.sets import line_up

__all__ = ["CircuitRecord", "Comparison", "OverlapRecord", "PairRecord", "PlaceRecord", "compare"]

Load = Callable[[str, str], SplicedModel]
"""From the names of a model and a dictionary set to the spliced model."""


class CircuitRecord(BaseModel):
    """One of the circuits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    model: str
    dictionaries: str | None = Field(description="none where no study says; taken as the first's")
    group: str | None = Field(description="of the prompts that chose it, where that is known")
    target: str
    n_nodes: int = Field(description="after positions were brought together, outputs included")
    n_edges: int


class PairRecord(BaseModel):
    """Two of the circuits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: str
    b: str
    overlap: CircuitOverlap | None = Field(description="none for two models")
    chance: ChanceOverlap | None = Field(
        description="random circuits of the same size per layer; none where not asked for or known"
    )
    chance_per_position: ChanceOverlap | None = Field(
        description="of the same size per layer and position"
    )
    profile_overlap: float = Field(
        description="sum over kinds, depths and positions of the smaller share of the influence"
    )


class PlaceRecord(BaseModel):
    """Nodes of one layer and position, in the circuits of the first one's model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(description="-1 for the input")
    column: str
    n_all: int = Field(description="nodes that all these circuits have")
    n_some: int = Field(description="nodes that some have, and not all")


class OverlapRecord(BaseModel):
    """What `overlap.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    positions: Literal["role", "position", "any"] = Field(description="how they were matched")
    columns: tuple[str, ...]
    circuits: list[CircuitRecord]
    pairs: list[PairRecord]
    matches: list[MatchRecord] = Field(description="of dictionaries, where there are several sets")
    places: list[PlaceRecord]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The record, and what all circuits of the first one's model share.

    `shared` is None where these circuits have no output in common.
    """

    record: OverlapRecord
    shared: CircuitGraph | None = field(repr=False)


def compare(
    config: OverlapConfig,
    saved: Sequence[SavedCircuit],
    load: Load,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare every pair of circuits.

    Features are called by the names of the first circuit's dictionaries. Circuits of two models
    are compared by where their influence lies, and by nothing else.

    Raises:
        ValueError: if the positions of the circuits do not line up as asked.
    """
    alignment = align(saved, config.positions)
    matchings, matches = _matchings(saved, alignment, config)
    graphs = [
        graph if circuit.path not in matchings else rename_graph(graph, matchings[circuit.path])
        for circuit, graph in zip(saved, alignment.graphs, strict=True)
    ]

    @cache
    def pool(i: int) -> list[Node] | None:
        study = saved[i].study
        if study is None:
            return None
        spliced = load(study.model, study.dictionaries)
        found = study_pool(study, saved[i].group, spliced, alignment)
        matching = matchings.get(saved[i].path)
        return [*(found if matching is None else matching.rename(found)), *graphs[i].nodes]

    profiles = [influence_profile(graph, n_depths=config.n_depths) for graph in alignment.graphs]
    pairs = []
    n_pairs = len(saved) * (len(saved) - 1) // 2
    for i, j in combinations(range(len(saved)), 2):
        one_model = graphs[i].metadata.model == graphs[j].metadata.model
        chances: list[ChanceOverlap | None] = [None, None]
        if one_model and config.chance and (first := pool(i)) and (second := pool(j)):
            sides = (graphs[i].nodes, graphs[j].nodes, first, second)
            chances = [chance_overlap(*sides, per_position=each) for each in (False, True)]
        pairs.append(
            PairRecord(
                a=saved[i].name,
                b=saved[j].name,
                overlap=circuit_overlap(graphs[i], graphs[j]) if one_model else None,
                chance=chances[0],
                chance_per_position=chances[1],
                profile_overlap=profile_overlap(profiles[i], profiles[j]),
            )
        )
        progress(len(pairs), n_pairs)
    alike = [graph for graph in graphs if graph.metadata.model == graphs[0].metadata.model]
    record = OverlapRecord(
        positions=alignment.by,
        columns=alignment.columns,
        circuits=[_record(c, graph) for c, graph in zip(saved, graphs, strict=True)],
        pairs=pairs,
        matches=matches,
        places=_places(alike, alignment.columns),
    )
    return Comparison(record, _shared(alike))


def _matchings(
    saved: Sequence[SavedCircuit], alignment: Alignment, config: OverlapConfig
) -> tuple[dict[object, Matching], list[MatchRecord]]:
    """What renames the features of each circuit (by its path) that needs it."""
    first = saved[0]
    found: dict[str, Matching] = {}
    matchings: dict[object, Matching] = {}
    records: list[MatchRecord] = []
    for circuit in saved[1:]:
        if not _needs_match(first, circuit):
            continue
        assert first.study is not None
        assert circuit.study is not None
        name = circuit.study.dictionaries
        if name not in found:
            alike = [
                graph
                for other, graph in zip(saved, alignment.graphs, strict=True)
                if other.graph.metadata.model == first.graph.metadata.model
            ]
            found[name], own = match_features(
                first.study.dictionaries,
                name,
                alike,
                at_least=config.min_similarity,
                number=len(found) + 1,
            )
            records += own
        matchings[circuit.path] = found[name]
    return matchings, records


def _needs_match(first: SavedCircuit, other: SavedCircuit) -> bool:
    """Whether two circuits are of one model and of different dictionaries."""
    if first.study is None or other.study is None:
        return False
    one_model = first.graph.metadata.model == other.graph.metadata.model
    return one_model and first.study.dictionaries != other.study.dictionaries


def _record(circuit: SavedCircuit, graph: CircuitGraph) -> CircuitRecord:
    return CircuitRecord(
        name=circuit.name,
        path=str(circuit.path),
        model=graph.metadata.model,
        dictionaries=None if circuit.study is None else circuit.study.dictionaries,
        group=circuit.group,
        target=graph.metadata.target,
        n_nodes=graph.n_nodes,
        n_edges=graph.n_edges,
    )


def _places(graphs: Sequence[CircuitGraph], columns: Sequence[str]) -> list[PlaceRecord]:
    """Count nodes that have a position, outputs left out."""
    lined = line_up(graphs)
    in_all = lined.has_node.all(0).tolist()
    counts: dict[tuple[int, int], list[int]] = {}
    for node, everywhere in zip(lined.nodes, in_all, strict=True):
        if node.kind != "output" and node.pos >= 0:
            counts.setdefault((node.layer, node.pos), [0, 0])[not everywhere] += 1
    return [
        PlaceRecord(layer=layer, column=columns[pos], n_all=n_all, n_some=n_some)
        for (layer, pos), (n_all, n_some) in sorted(counts.items())
    ]


def _shared(graphs: Sequence[CircuitGraph]) -> CircuitGraph | None:
    outputs = [{node.id for node in graph.outputs} for graph in graphs]
    return intersection(graphs) if set.intersection(*outputs) else None
