"""`circuits edge`: one edge of a prompt's graph as a sum over paths, each a product of factors."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import typer
from pydantic import Field

from attribution import FeatureTarget, Node, NodeTable, Trace, attribute, factorise
from attribution.factors import EdgeFactors, PathFactors
from case_studies.commands.display import (
    addends,
    markdown_table,
    print_json,
    print_table,
    progress_bar,
    shares,
    write_config,
)
from case_studies.commands.explained import ExplainedConfig
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from circuits import SplicedModel
from circuits.files import write_json, write_text
from circuits.sites import DICTIONARY_SITES

__all__ = ["EdgeConfig", "command"]

_FEATURE = re.compile(rf"({'|'.join(('mlp', *DICTIONARY_SITES))})(\d+)\.(\d+)@(\d+)")
_NORMS = ("ln2_post", "ln1", "ln1_post", "ln2", "final")
"""Norms a path may cross, from the source to the target."""
_FORMULA = (
    "value = activation x attention / norms x weight; the weight (virtual weight) is made of "
    "model\nweights alone, the rest belongs to this prompt."
)
_NOT_INVARIANT = (
    "* Not of model weights alone: what the source writes was itself made by this prompt."
)
_NOT_SPLIT = "not split"


class EdgeConfig(ExplainedConfig):
    """Which edge of which prompt."""

    target: str = Field(
        description="id of the node the edge goes into, such as mlp3.120@8, or `output` for what "
        "is explained (the first, if there are several)"
    )
    source: str = Field(description="id of the node the edge comes from, such as mlp1.7@8")
    top: int = Field(10, ge=1, description="strongest paths to list")

    @property
    def feature(self) -> FeatureTarget | None:
        """The feature at a position that `target` is the id of, or None."""
        found = _FEATURE.fullmatch(self.target)
        if found is None:
            return None
        site, layer, index, pos = found.groups()
        return FeatureTarget(f"{site}.{layer}", int(index), int(pos))


@with_flags(EdgeConfig, "prompt", "target", "source")
def command(config: EdgeConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Show one edge as a table of paths, each with its factors; the table adds up to the edge.

    Nodes are called as `circuits attribute` calls them. A path is direct or through one head; what
    runs through several heads, or through a transcoder's linear skip, is one remainder. `--out`
    gets config.json, metrics.json and report.md.
    """
    target = config.feature or config.explained
    spliced = load_spliced(
        config.model,
        config.dictionaries,
        sites=config.sites,
        layers=config.layers,
        check=config.check,
    )
    with progress_bar("attributing"):
        trace = attribute(spliced, config.prompt, target, mode=config.mode, feature_rows=False)
        row = _target_row(config, trace)
        _check_source(config, trace)
        (edge,) = factorise(spliced, trace, [(trace.targets[row].id, config.source)])
    record = _record(config, spliced, trace, row, edge)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_config(out, "edge", config)
        write_json(out / "metrics.json", {"version": 1, **record})
        write_text(out / "report.md", _report(record, config.top))
    if as_json:
        print_json(record)
        return
    print_table(_heading(record), *_table(record, config.top))
    typer.echo("\n".join(_remarks(record)))


def _target_row(config: EdgeConfig, trace: Trace) -> int:
    """The row of the feature asked for, of the first output, or of the output called `target`."""
    if config.feature is not None or config.target == "output":
        return 0
    active = [trace.sources[i].id for i in trace.sources.where(kind="feature")]
    return _find(trace.targets, config.target, [*(n.id for n in trace.targets), *active])


def _check_source(config: EdgeConfig, trace: Trace) -> None:
    hint = ""
    if _FEATURE.fullmatch(config.source):
        hint = "; a feature has edges only where it is active"
    _find(trace.sources, config.source, [node.id for node in trace.sources], hint)


def _find(nodes: NodeTable, name: str, known: Sequence[str], hint: str = "") -> int:
    """The row of `name`.

    Raises:
        ValueError: if it has none, with the most similar of the `known` ids.
    """
    try:
        return nodes.row(name)
    except KeyError as error:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
        nearest = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"{error.args[0]}{hint}{nearest}") from error


def _remainder(spliced: SplicedModel, source: Node) -> str:
    """What of an edge is left when every path through at most one head is taken off."""
    if source.kind == "bias":
        return _NOT_SPLIT
    dictionaries = (placement.dictionary for placement in spliced.placements.values())
    skips = any(dictionary.W_skip is not None for dictionary in dictionaries)
    return "several heads, skips" if skips else "several heads"


def _record(
    config: EdgeConfig, spliced: SplicedModel, trace: Trace, row: int, edge: EdgeFactors
) -> dict[str, Any]:
    def token(pos: int) -> str | None:
        return trace.token_strings[pos] if pos >= 0 else None

    return {
        "model": trace.model_name,
        "prompt": "".join(trace.token_strings),
        "mode": trace.mode,
        "target": edge.target.id if config.feature is None else config.target,
        "target_token": token(edge.target.pos),
        "target_value": float(trace.target_values[row]),
        "target_unit": config.unit if config.feature is None else "pre-activation",
        "source": edge.source.id,
        "source_token": token(edge.source.pos),
        "edge": edge.edge,
        "paths": [_path(path, edge.edge) for path in edge.paths],
        "remainder": edge.remainder,
        "remainder_of": _remainder(spliced, edge.source),
    }


def _path(path: PathFactors, edge: float) -> dict[str, Any]:
    return {
        "head": path.head,
        "activation": path.activation,
        "attention": path.attention,
        "norms": dict(path.scales),
        "virtual_weight": path.virtual_weight,
        "weights_only": path.invariant,
        "value": path.value,
        "share": path.value / edge if edge else None,
    }


def _heading(record: dict[str, Any]) -> str:
    source, target = (f"{record[end]}{_beside(record, end)}" for end in ("source", "target"))
    edge, value, unit = record["edge"], record["target_value"], record["target_unit"]
    return f"{source} -> {target}: {edge:+.4g} of {value:+.4g} ({unit})"


def _beside(record: dict[str, Any], end: str) -> str:
    """The token at an end of the edge; an output is named without the one it follows."""
    token = record[f"{end}_token"]
    return "" if token is None or record[end].startswith("output") else f" {token!r}"


def _table(record: dict[str, Any], top: int) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the strongest paths, what is left, and the edge they add up to."""
    listed, others = record["paths"][:top], record["paths"][top:]
    factors, rows = _factors(listed)
    names, values = [_name(path["head"]) for path in listed], [path["value"] for path in listed]
    if others:
        names.append(f"{len(others)} more")
        values.append(sum(path["value"] for path in others))
    names += [record["remainder_of"], "the edge"]
    values += [record["remainder"], record["edge"]]
    rows += [[""] * len(factors)] * (len(names) - len(rows))
    cells = zip(names, rows, addends(values), shares(values, record["edge"]), strict=True)
    table = [[name, *row, value, share] for name, row, value, share in cells]
    return ["path", *factors, "value", "share"], table


def _factors(paths: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A column a factor and a row a path; norms that no path crosses have no column."""
    if not paths:
        return [], []
    scales = [{_norm(name): x for name, x in path["norms"].items()} for path in paths]
    norms = [norm for norm in _NORMS if any(norm in on_path for on_path in scales)]
    rows = [
        [
            f"{path['activation']:.3g}",
            f"{path['attention']:.3g}",
            *(f"{on_path[norm]:.3g}" if norm in on_path else "" for norm in norms),
            f"{path['virtual_weight']:+.3g}{'' if path['weights_only'] else ' *'}",
        ]
        for path, on_path in zip(paths, scales, strict=True)
    ]
    return ["activation", "attention", *(f"/ {norm}" for norm in norms), "weight"], rows


def _name(head: tuple[int, int] | None) -> str:
    return "direct" if head is None else f"head {head[0]}.{head[1]}"


def _norm(name: str) -> str:
    """Which norm a denominator such as `ln1.2@5` is of."""
    return name.split("@")[0].split(".")[0]


def _remarks(record: dict[str, Any]) -> list[str]:
    """How to read the table."""
    if record["remainder_of"] == _NOT_SPLIT:
        return ["A bias stands for all positions at once, so its edge is not split over paths."]
    if not record["edge"] and not record["paths"]:
        return [f"Nothing leads from {record['source']} to {record['target']} at this prompt."]
    marked = any(not path["weights_only"] for path in record["paths"])
    return [_FORMULA, *([_NOT_INVARIANT] if marked else [])]


def _report(record: dict[str, Any], top: int) -> str:
    parts = (
        f"# {_heading(record)}",
        f"{record['model']} on {record['prompt']!r}, mode {record['mode']}.",
        markdown_table(*_table(record, top)),
        "\n".join(_remarks(record)),
    )
    return "\n\n".join(parts) + "\n"
