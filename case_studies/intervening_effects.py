"""Effects of every node of a circuit as records: what the graph foretells, and what happens."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from attribution import Node, Target
from circuits import SplicedModel, SubjectModel
from graphs import CircuitGraph
from graphs.interventions.agreement import compare_effects
from graphs.interventions.effects import Effects, Observed, Predicted, kept_groups, measure_effects

__all__ = [
    "SIDES",
    "agreements_record",
    "check_same_prompt",
    "circuit_effects",
    "effect_records",
    "effects_record",
]

SIDES: tuple[tuple[Predicted, Observed], ...] = (
    ("direct", "frozen"),
    ("total", "frozen"),
    ("direct", "live"),
    ("total", "live"),
)
"""Which prediction is laid beside which observation."""


def check_same_prompt(
    model: SubjectModel, graph: CircuitGraph, tokens: Int[Tensor, " pos"]
) -> None:
    """Refuse a graph of another prompt; of a mean over prompts only the length is known.

    Raises:
        ValueError: if the graph is not of this prompt.
    """
    mine, its = model.token_strings(tokens), graph.metadata.tokens
    if len(mine) != len(its) or (mine != its and "n_prompts" not in graph.metadata.notes):
        raise ValueError(
            f"the graph is of {graph.metadata.prompt!r} ({len(its)} tokens), but the prompt is "
            f"{''.join(mine)!r} ({len(mine)} tokens); give the prompt the graph was made of"
        )


def circuit_effects(
    spliced: SplicedModel,
    tokens: Int[Tensor, "prompt pos"],
    nodes: Sequence[Node],
    targets: Sequence[Target],
    *,
    groups: Sequence[Sequence[Node]] = (),
    corrupted: Int[Tensor, "prompt pos"] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Effects:
    """Effects of each node of a circuit that can be ablated, and of some groups besides.

    Raises:
        ValueError: if there is no such node and no group, or as in `measure_effects`.
    """
    every = [*kept_groups(nodes), *map(tuple, groups)]
    return measure_effects(spliced, tokens, every, targets, corrupted=corrupted, progress=progress)


def agreements_record(effects: Effects) -> dict[str, dict[str, float] | None]:
    """Agreement of every pair of `SIDES`; None where one side is the same for all nodes."""
    record: dict[str, dict[str, float] | None] = {}
    for predicted, observed in SIDES:
        sides = effects.mean(predicted), effects.mean(observed)
        varies = all(bool((side != side[0]).any()) for side in sides)
        found = compare_effects(*sides).model_dump() if varies else None
        record[f"{predicted}_{observed}"] = found
    return record


def effect_records(effects: Effects) -> list[dict[str, Any]]:
    """One record a node or group: mean effects over the prompts, predicted and observed."""
    sides: tuple[Predicted | Observed, ...] = ("direct", "total", "frozen", "live")
    columns = {side: effects.mean(side).tolist() for side in sides}
    switched = effects.switched.double().mean(0).tolist()
    return [
        {
            "nodes": [node.id for node in group],
            "kind": group[0].kind if len(group) == 1 else "group",
            "switched": switched[i],
            **{side: columns[side][i] for side in sides},
        }
        for i, group in enumerate(effects.groups)
    ]


def effects_record(graph: CircuitGraph, effects: Effects) -> dict[str, Any]:
    """The content of `metrics.json`: agreement, and how exact it is where no feature switches."""
    still = effects.switched == 0
    gaps = (effects.total - effects.frozen)[..., 0].abs()[still]
    return {
        "model": graph.metadata.model,
        "prompt": graph.metadata.prompt,
        "target": effects.outputs[0],
        "ablation": effects.ablation,
        "n_groups": len(effects.groups),
        "n_without_switch": int(still.sum()),
        "largest_gap_without_switch": float(gaps.max()) if len(gaps) else 0.0,
        "agreement": agreements_record(effects),
    }
