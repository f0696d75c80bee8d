"""`circuits attribute`: every edge at one prompt, pruned by influence, shown and drawn."""

from pathlib import Path
from typing import Any

import typer
from pydantic import Field

from attribution import attribute
from attribution.trace import Trace
from case_studies.commands.display import (
    markdown_table,
    print_json,
    print_table,
    progress_bar,
    write_config,
)
from case_studies.commands.explained import ExplainedConfig
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.node_notes import describe_nodes
from circuits.files import write_json, write_text
from graphs import (
    CircuitGraph,
    NodeNotes,
    build_graph,
    node_influence,
    non_error_share,
    prune,
    replacement_score,
)

__all__ = ["AttributeConfig", "command"]

_COLUMNS = ("node", "token", "label", "activation", "direct effect", "influence")


class AttributeConfig(ExplainedConfig):
    """Everything needed to repeat an attribution."""

    max_feature_rows: int | None = Field(
        None,
        ge=0,
        description="most features whose own causes are worked out, best first: those that most "
        "influence passes through; all if not given",
    )
    node_threshold: float = Field(0.8, ge=0, le=1, description="share of node influence kept")
    edge_threshold: float = Field(0.98, ge=0, le=1, description="share of edge influence kept")
    top: int = Field(15, ge=1, description="strongest nodes to list")


@with_flags(AttributeConfig, "prompt")
def command(config: AttributeConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Explain a model's next token, or a feature, on one prompt, and draw the circuit.

    Lists the strongest nodes by influence. `--out` gets config.json, metrics.json, graph.json
    (the pruned graph), circuit.html and report.md.
    """
    target = config.explained
    spliced = load_spliced(
        config.model,
        config.dictionaries,
        sites=config.sites,
        layers=config.layers,
        check=config.check,
    )
    with progress_bar("attributing") as progress:
        trace = attribute(
            spliced,
            config.prompt,
            target,
            mode=config.mode,
            max_feature_rows=config.max_feature_rows,
            progress=progress,
        )
    full = build_graph(trace)
    circuit = prune(
        full, node_threshold=config.node_threshold, edge_threshold=config.edge_threshold
    )
    notes = describe_nodes(spliced, circuit.nodes)
    nodes = _strongest(circuit, notes, config.top)
    record = {**_metrics(config, trace, full, circuit), "strongest_nodes": nodes}
    if out is not None:
        _write(out, config, record, circuit, notes)
    if as_json:
        print_json(record)
        return
    print_table(_heading(record), _target_columns(record), _target_cells(record))
    for line in _remarks(record):
        typer.echo(f"{line}\n")
    print_table("Strongest nodes by influence", _COLUMNS, _cells(nodes))
    if out is not None:
        print_table(
            "Files", ["file"], [[str(out / name)] for name in ("report.md", "circuit.html")]
        )


def _metrics(
    config: AttributeConfig, trace: Trace, full: CircuitGraph, circuit: CircuitGraph
) -> dict[str, Any]:
    outputs = [(n.site, float(trace.target_values[i])) for i, n in enumerate(trace.targets)]
    n_outputs = len(full.outputs)
    return {
        "model": trace.model_name,
        "prompt": full.metadata.prompt,
        "mode": trace.mode,
        "target": dict(outputs[:n_outputs]),
        "target_pos": trace.targets[0].pos,
        "target_token": trace.token_strings[trace.targets[0].pos],
        "target_unit": config.unit,
        "n_tokens": len(trace.tokens),
        "conservation_error": trace.conservation_error(),
        "replacement_score": _replacement_score(full),
        "non_error_share": non_error_share(full),
        "left_out": trace.left_out,
        "n_feature_rows": len(trace.targets) - n_outputs,
        "n_active_features": len(trace.sources.where(kind="feature")),
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "n_nodes_before_pruning": full.n_nodes,
        "n_edges_before_pruning": full.n_edges,
    }


def _replacement_score(full: CircuitGraph) -> float | None:
    """The score; None where rows left out keep all influence from tokens and errors alike."""
    scored = full.is_kind("token", "error", "sublayer")
    return replacement_score(full) if scored[full.edge_source].any() else None


def _strongest(
    circuit: CircuitGraph, notes: dict[str, NodeNotes], top: int
) -> list[dict[str, Any]]:
    """The nodes of most influence, outputs left out; direct effects are on the first output."""
    influence = node_influence(circuit)
    direct = _direct_effects(circuit)
    ranked = [i for i in influence.argsort(descending=True).tolist() if influence[i] > 0]
    records = []
    for row in ranked[:top]:
        node = circuit.nodes[row]
        records.append(
            {
                "node": node.id,
                "token": circuit.metadata.tokens[node.pos] if node.pos >= 0 else "",
                "label": notes[node.id].label if node.id in notes else "",
                "activation": node.activation if node.kind == "feature" else None,
                "direct_effect": direct.get(row, 0.0),
                "influence": float(influence[row]),
            }
        )
    return records


def _direct_effects(circuit: CircuitGraph) -> dict[int, float]:
    """Row of a node -> its edge into the first output, in that output's unit."""
    into = circuit.edge_target == circuit.nodes.row(circuit.outputs[0].id)
    sources, values = circuit.edge_source[into], circuit.edge_attribution[into]
    return dict(zip(sources.tolist(), values.tolist(), strict=True))


def _cells(nodes: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            node["node"],
            node["token"],
            node["label"],
            "" if node["activation"] is None else f"{node['activation']:.3g}",
            f"{node['direct_effect']:+.3g}",
            f"{node['influence']:.1%}",
        ]
        for node in nodes
    ]


def _heading(record: dict[str, Any]) -> str:
    pos, token = record["target_pos"], record["target_token"]
    if pos == record["n_tokens"] - 1:
        return f"{record['model']} after {record['prompt']!r}"
    return f"{record['model']} at {pos} {token!r} of {record['prompt']!r}"


def _target_columns(record: dict[str, Any]) -> tuple[str, str]:
    return ("explained", record["target_unit"])


def _target_cells(record: dict[str, Any]) -> list[list[str]]:
    return [[name, f"{value:+.4g}"] for name, value in record["target"].items()]


def _remarks(record: dict[str, Any]) -> list[str]:
    """What a reader of the numbers has to know besides them, where it is not as usual."""
    remarks = []
    if record["mode"] == "replace":
        remarks.append(
            "Mode replace: the model as it runs on reconstructions, not the model itself."
        )
    if (n := record["n_feature_rows"]) < record["n_active_features"]:
        remarks.append(
            f"Worked out the causes of {n} of {record['n_active_features']} active features, best "
            f"first;\nat most {record['left_out']:.2%} of the influence runs through the others, "
            "and the scores and the circuit are without them."
        )
    return remarks


def _write(
    out: Path,
    config: AttributeConfig,
    record: dict[str, Any],
    circuit: CircuitGraph,
    notes: dict[str, NodeNotes],
) -> None:
    from graphs import circuit_page

    out.mkdir(parents=True, exist_ok=True)
    write_config(out, "attribute", config)
    write_json(out / "metrics.json", {"version": 1, **record})
    circuit.save(out / "graph.json")
    circuit_page(circuit, notes=notes).write_html(out / "circuit.html")
    write_text(out / "report.md", _report(record))


def _report(record: dict[str, Any]) -> str:
    numbers = [[k, f"{v:.6g}"] for k, v in record.items() if isinstance(v, int | float)]
    parts = (
        f"# {_heading(record)}",
        markdown_table(_target_columns(record), _target_cells(record)),
        "Every edge of the model at this prompt, attention patterns and norms held, pruned by\n"
        "influence. Influence says what is large, not what is needed.",
        *_remarks(record),
        markdown_table(["number", "value"], numbers),
        "## Strongest nodes",
        "Influence counts all paths to the outputs, unsigned; the direct effect is the edge into\n"
        f"the first of what is explained, in its unit ({record['target_unit']}). The picture is in "
        "circuit.html.",
        markdown_table(_COLUMNS, _cells(record["strongest_nodes"])),
    )
    return "\n\n".join(parts) + "\n"
