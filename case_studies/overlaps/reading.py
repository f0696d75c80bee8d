"""Circuits from folders and files, with the studies that made them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from case_studies.study_config import StudyConfig
from graphs import CircuitGraph
from graphs.task_circuits import name_positions

__all__ = ["SavedCircuit", "read_circuits"]

_ROLES = TypeAdapter(dict[str, int])


@dataclass(frozen=True, eq=False)
class SavedCircuit:
    """A circuit that was saved.

    Attributes:
        name: short, and no other circuit's.
        path: its file.
        graph: the circuit.
        group: of the aligned prompts that it was chosen on; None for a study's first group.
        study: the settings of the study beside it; None where there is none.
    """

    name: str
    path: Path
    graph: CircuitGraph = field(repr=False)
    group: str | None
    study: StudyConfig | None

    @property
    def position_names(self) -> tuple[str, ...] | None:
        """What each position is called, from the note `roles`; None where it has no roles."""
        metadata = self.graph.metadata
        if metadata.notes.get("positions") == "roles":
            return metadata.tokens
        if "roles" not in metadata.notes:
            return None
        try:
            roles = _ROLES.validate_json(metadata.notes["roles"])
            return name_positions(roles, len(metadata.tokens))
        except ValueError as error:
            raise ValueError(
                f"{self.path}: the note `roles` should be JSON, role -> position, got "
                f"{metadata.notes['roles']!r}; save the circuit again"
            ) from error


def read_circuits(places: Sequence[str]) -> list[SavedCircuit]:
    """Read every `graph*.json` of folders, and files one by one.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a place holds no graph, a file is malformed or named twice, or there are
            fewer than two graphs.
    """
    files = [file for place in places for file in _files(Path(place))]
    if len(files) < 2:
        raise ValueError(
            f"want at least two circuits to compare, got {len(files)} in {', '.join(places)}; name "
            "two study folders, or two graph.json files"
        )
    twice = [str(file) for file, n in Counter(file.resolve() for file in files).items() if n > 1]
    if twice:
        raise ValueError(f"want every circuit once, got {twice[0]} twice; name other circuits")
    graphs = [CircuitGraph.load(file) for file in files]
    groups = [
        g.metadata.notes.get("group") or _suffix(f) for g, f in zip(graphs, files, strict=True)
    ]
    return [
        SavedCircuit(name, file, graph, group or None, _study(file.parent / "config.json"))
        for name, file, graph, group in zip(
            _names(files, groups), files, graphs, groups, strict=True
        )
    ]


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(place.glob("graph*.json"), key=lambda path: (path.stem, path.name))
    if not found:
        raise ValueError(f"{place} holds no graph.json; want the folder of a study")
    return found


def _names(files: Sequence[Path], groups: Sequence[str]) -> list[str]:
    """The folder and the group; where two would be the same, the whole path."""
    folders = [file.resolve().parent.name for file in files]
    short = ["/".join(filter(None, pair)) for pair in zip(folders, groups, strict=True)]
    counts = Counter(short)
    return [
        name if counts[name] == 1 else str(file) for name, file in zip(short, files, strict=True)
    ]


def _suffix(file: Path) -> str:
    """`BABA` of `graph-BABA.json`; the stem of a file that is called something else."""
    if file.stem == "graph":
        return ""
    return file.stem.removeprefix("graph-")


def _study(path: Path) -> StudyConfig | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["command"] != "study":
            return None
        return StudyConfig.model_validate(record["settings"])
    except (ValidationError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} should hold the settings of a study, but it does not fit "
            f"({type(error).__name__}); run the study again, or move graph.json elsewhere"
        ) from error
