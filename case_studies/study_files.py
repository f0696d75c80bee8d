"""What a study leaves in its folder: settings, numbers, graphs, pictures and a report."""

import re
from pathlib import Path
from typing import Any

from case_studies.commands.display import write_config
from case_studies.node_notes import describe_nodes
from case_studies.study import GroupResult, StudyResult
from case_studies.study_config import StudyConfig
from case_studies.study_proof_text import percent
from case_studies.study_report import finding, report, study_command
from case_studies.tasks.task import Task
from circuits import SplicedModel
from circuits.files import write_json, write_text
from graphs import circuit_page
from graphs.proof.beside import MOST_ACTIVE, RANDOM, TOKENS_ONLY

__all__ = ["metrics_record", "write_study"]


def metrics_record(config: StudyConfig, result: StudyResult) -> dict[str, Any]:
    """The content of `metrics.json`.

    The plain numbers are those of the first group, the one drawn in `circuit.html`, each under the
    choices named; `groups` holds every group in full, with its table of proof and controls.
    """
    first = result.groups[0]
    proof = first.proof
    return {
        "version": 2,
        "model": config.model,
        "task": config.task,
        "metric_name": result.behaviour.metric_name,
        "behaviour": result.behaviour.metric,
        "success_rate": result.behaviour.success_rate,
        "spliced": result.spliced.metric,
        "circuit": proof.metric_circuit.value,
        "random_circuit": first.table.control(RANDOM).metric.value,
        "faithfulness": proof.faithfulness.value,
        "faithfulness_interval": (proof.faithfulness.low, proof.faithfulness.high),
        "necessity": proof.necessity.value,
        "completeness": proof.completeness.value,
        "choices": str(proof.choices),
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
        page = circuit_page(
            drawn,
            notes=describe_nodes(spliced, drawn.nodes),
            title=finding(config, result, group),
            proof=_panel(result, group),
            command=study_command(config),
        )
        page.write_html(out / f"circuit{suffix}.html")
    write_text(out / "report.md", report(config, result, task))
    return out / "circuit.html"


def _panel(result: StudyResult, group: GroupResult) -> dict[str, str]:
    """The panel beside the picture: what was measured, and against what."""
    proof, table = group.proof, group.table
    name = result.behaviour.metric_name.replace("_", " ")
    random, minimality = table.control(RANDOM), proof.minimality
    return {
        "model": result.behaviour.model,
        name: f"{proof.metric_model.value:.3g}",
        "circuit": f"{proof.metric_circuit.value:.3g}",
        "all ablated": f"{proof.metric_empty.value:.3g}",
        "faithfulness": percent(proof.faithfulness),
        f"random ({random.n_circuits})": (
            f"{random.faithfulness.value:.1%} (best {random.faithfulness_range[1]:.1%})"
        ),
        "most active": f"{table.control(MOST_ACTIVE).faithfulness.value:.1%}",
        "tokens alone": f"{table.control(TOKENS_ONLY).faithfulness.value:.1%}",
        "without the circuit": f"{proof.completeness.value:.1%} is left",
        "lost with its features": (
            f"{proof.necessity_features.value:.1%}, "
            f"with all {proof.necessity_all_features.value:.1%}"
        ),
        "nodes that matter": f"{minimality.needed.value:.0%} of {proof.size}",
        "ablated": f"{proof.choices.value}; errors {proof.choices.errors}",
        "proved on": f"{proof.n_prompts} other prompts",
        "nodes, edges": f"{group.n_nodes}, {group.n_edges}",
        "not drawn": f"{_n_constants(group)} biases and positions",
        "rows add up to": f"{group.conservation_error:.1g}",
    }


def _n_constants(group: GroupResult) -> int:
    return sum(group.nodes_by_kind.get(kind, 0) for kind in _CONSTANTS)
