"""What a study leaves in its folder: settings, numbers, graphs, pictures and a report."""

import re
from pathlib import Path
from typing import Any

from case_studies.commands.display import write_config
from case_studies.node_notes import describe_nodes
from case_studies.study import GroupResult, StudyConfig, StudyResult
from case_studies.study_report import finding, report
from case_studies.tasks.task import Task
from circuits import SplicedModel
from circuits.files import write_json, write_text
from graphs import plot_circuit, write_html

__all__ = ["metrics_record", "write_study"]


def metrics_record(config: StudyConfig, result: StudyResult) -> dict[str, Any]:
    """The content of `metrics.json`.

    The plain numbers are those of the first group, the one drawn in `circuit.html`; `groups` holds
    every group in full.
    """
    first = result.groups[0]
    randoms = first.random_metric
    return {
        "version": 1,
        "model": config.model,
        "task": config.task,
        "metric_name": result.behaviour.metric_name,
        "behaviour": result.behaviour.metric,
        "success_rate": result.behaviour.success_rate,
        "spliced": result.spliced.metric,
        "circuit": first.circuit.metric_circuit,
        "random_circuit": sum(randoms) / len(randoms),
        "faithfulness": first.circuit.faithfulness,
        "faithfulness_interval": first.circuit.interval,
        "n_nodes": first.n_nodes,
        "n_edges": first.n_edges,
        "conservation_error": max(group.conservation_error for group in result.groups),
        "behaviour_in_full": result.behaviour.model_dump(mode="json"),
        "spliced_in_full": result.spliced.model_dump(mode="json"),
        "groups": [group.model_dump(mode="json") for group in result.groups],
    }


_CONSTANTS = ("bias", "position")
"""Kinds that are the same on every prompt: in `graph.json`, but not drawn."""


def _suffix(group: GroupResult, first: GroupResult) -> str:
    """Nothing for the first group, `-BABA` and the like for the others."""
    return "" if group is first else "-" + re.sub(r"\W+", "_", group.group)


def write_study(
    config: StudyConfig, spliced: SplicedModel, task: Task, result: StudyResult, out: Path
) -> Path:
    """Write `config.json`, `metrics.json`, `graph.json`, `circuit.html` and `report.md`.

    Further groups get files of their own, `graph-BABA.json` and so on.

    Returns:
        The path of `circuit.html`.

    Raises:
        OSError: if the folder cannot be written; no file is left half-written.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, "study", config)
    write_json(out / "metrics.json", metrics_record(config, result))
    for group in result.groups:
        suffix = _suffix(group, result.groups[0])
        group.graph.save(out / f"graph{suffix}.json")
        drawn = group.graph.select(~group.graph.is_kind(*_CONSTANTS))
        figure = plot_circuit(
            drawn,
            notes=describe_nodes(spliced, drawn.nodes),
            title=finding(config, result, group),
            proof=_proof(config, result, group),
        )
        write_html(figure, out / f"circuit{suffix}.html")
    write_text(out / "report.md", report(config, result, task))
    return out / "circuit.html"


def _proof(config: StudyConfig, result: StudyResult, group: GroupResult) -> dict[str, str]:
    """The panel beside the picture: what was measured, and against what."""
    low, high = group.circuit.interval
    name = result.behaviour.metric_name.replace("_", " ")
    randoms = group.random_faithfulness
    return {
        "model": result.behaviour.model,
        name: f"{group.circuit.metric_model:.3g}",
        "circuit": f"{group.circuit.metric_circuit:.3g}",
        "all patched": f"{group.circuit.metric_empty:.3g}",
        "faithfulness": f"{group.circuit.faithfulness:.1%} ({low:.1%} to {high:.1%})",
        f"random ({len(randoms)})": f"{sum(randoms) / len(randoms):.1%} (best {max(randoms):.1%})",
        "tokens alone": f"{group.tokens_only.faithfulness:.1%}",
        "proved on": f"{group.circuit.n_prompts} other prompts",
        "nodes, edges": f"{group.n_nodes}, {group.n_edges}",
        "not drawn": f"{_n_constants(group)} biases and positions",
        "rows add up to": f"{group.conservation_error:.1g}",
    }


def _n_constants(group: GroupResult) -> int:
    return sum(group.nodes_by_kind.get(kind, 0) for kind in _CONSTANTS)
