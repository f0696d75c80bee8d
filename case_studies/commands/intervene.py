"""`circuits intervene`: change nodes of a prompt on the real model; or ablate all of a graph's."""

from pathlib import Path
from typing import Any, Literal

import torch
import typer
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from attribution import LogitDifference, Node
from case_studies.commands.display import print_json, print_table, progress_bar, write_config
from case_studies.commands.explained import ExplainedConfig
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.intervening import intervention_record, metric_of
from case_studies.intervening_effects import (
    check_same_prompt,
    circuit_effects,
    effect_records,
    effects_record,
)
from case_studies.intervening_report import (
    AGREEMENT_COLUMNS,
    EFFECT_COLUMNS,
    FEATURE_COLUMNS,
    TOP_COLUMNS,
    agreement_rows,
    effect_rows,
    effects_finding,
    effects_report,
    feature_rows,
    intervention_lines,
    intervention_report,
    top_rows,
)
from case_studies.node_notes import describe_nodes
from circuits import SplicedModel
from circuits.files import write_json, write_text
from graphs import CircuitGraph
from graphs.interventions.changes import Ablation, Change, Steering, ablate, steer, swap
from graphs.interventions.effects import Effects
from graphs.interventions.naming import find_nodes, parse_nodes

__all__ = ["InterveneConfig", "command"]


class InterveneConfig(ExplainedConfig):
    """Which nodes of a prompt change, and how."""

    node: tuple[str, ...] = Field(
        (),
        description="node to change: mlp2.345@8 (a feature at a position), mlp.2.345 (at all "
        "positions, also of the text), error.mlp2@8, sublayer.mlp1@8, token@8; commas make a group",
    )
    ablate: bool = Field(
        default=False, description="take values away: to zero, or to what they are on --other"
    )
    steer: float | None = Field(None, description="number to steer activations by (see --how)")
    how: Steering = Field("add", description="what --steer does with its number")
    swap: tuple[str, ...] = Field(
        (), description="nodes that trade values with those of --node, in their order"
    )
    other: tuple[str, ...] = Field(
        (),
        description="prompt of as many tokens that ablated nodes take values from; several give "
        "the mean",
    )
    attention: Literal["live", "frozen"] = Field(
        "live", description="whether attention and norms follow the change or are held"
    )
    n_tokens: int = Field(20, ge=0, description="tokens of text to write, before and after")
    temperature: float = Field(0.0, ge=0, description="0 writes the likeliest token, else draws")
    seed: int = Field(0, description="seed of the drawing")
    graph: str | None = Field(
        None, description="graph.json of the prompt (circuits attribute --out): nodes are its own"
    )
    all: bool = Field(
        default=False,
        description="ablate every node of --graph alone, predicted against observed; groups of "
        "--node besides",
    )
    top: int = Field(5, ge=1, description="likeliest tokens, or strongest nodes, to list")

    @model_validator(mode="after")
    def _one_change(self) -> "InterveneConfig":
        chosen = [self.ablate, self.steer is not None, bool(self.swap)]
        if self.mode != "exact":
            raise ValueError("--mode: interventions are made on the real model, so want exact")
        if self.all:
            if self.graph is None or self.steer is not None or self.swap:
                raise ValueError(
                    "--all ablates the nodes of a --graph; leave out --steer and --swap"
                )
            if len(self.other) > 1:
                raise ValueError("--all takes values from one --other prompt")
        elif not self.node or sum(chosen) != 1:
            raise ValueError(
                "want at least one --node and one of --ablate, --steer and --swap; or --all with "
                "--graph"
            )
        return self


@with_flags(InterveneConfig, "prompt")
def command(config: InterveneConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Change nodes on the real model: next token, metric and text before and after.

    The metric is the logit difference of --target-correct and --target-wrong, else the
    log-probability of the likeliest token. With --graph and --all, each node of the graph is
    ablated alone and its effect laid beside what the graph predicts. `--out` gets config.json,
    metrics.json, interventions.json and report.md; with --all, effects.html.
    """
    graph = None if config.graph is None else CircuitGraph.load(config.graph)
    groups = [_nodes(name, graph) for name in config.node]
    spliced = load_spliced(
        config.model,
        config.dictionaries,
        sites=config.sites,
        layers=config.layers,
        check=config.check,
    )
    tokens = spliced.model.tokenize(config.prompt).to(spliced.model.device)
    if graph is not None:
        check_same_prompt(spliced.model, graph, tokens)
    other = _other(config, spliced)
    if config.all:
        assert graph is not None
        with progress_bar("ablating") as progress:
            effects = circuit_effects(
                spliced,
                tokens[None],
                graph.nodes,
                [config.explained],
                groups=groups,
                corrupted=other,
                progress=progress,
            )
        _show_effects(config, spliced, graph, effects, out, as_json)
    else:
        _show_one(config, _one(config, spliced, tokens, groups, other), out, as_json)


def _nodes(name: str, graph: CircuitGraph | None) -> tuple[Node, ...]:
    return parse_nodes(name) if graph is None else find_nodes(graph.nodes, name)


def _other(config: InterveneConfig, spliced: SplicedModel) -> Int[Tensor, "other pos"] | None:
    """The other prompts as one tensor.

    Raises:
        ValueError: if they are not of one length.
    """
    if not config.other:
        return None
    read = [spliced.model.tokenize(text).to(spliced.model.device) for text in config.other]
    lengths = sorted({len(tokens) for tokens in read})
    if len(lengths) > 1:
        raise ValueError(f"--other prompts must have equally many tokens, got {lengths}")
    return torch.stack(read)


def _one(
    config: InterveneConfig,
    spliced: SplicedModel,
    tokens: Int[Tensor, " pos"],
    groups: list[tuple[Node, ...]],
    other: Int[Tensor, "other other_pos"] | None,
) -> dict[str, Any]:
    target = config.explained
    metric, name = None, "log-probability of the token likeliest before"
    if isinstance(target, LogitDifference):
        metric, name = metric_of(spliced.model, target), "logit difference"
    elif config.target_feature is not None:
        raise ValueError("--target-feature is for --all; the metric of a change is of tokens")
    change = _change(config, [node for group in groups for node in group])
    record = intervention_record(
        spliced,
        tokens,
        [change],
        other=other,
        attention=config.attention,
        metric=metric,
        top=config.top,
        n_tokens=config.n_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    return {**record, "metric": name, "change": _words(config)}


def _change(config: InterveneConfig, nodes: list[Node]) -> Change:
    if config.steer is not None:
        return steer(nodes, config.how, config.steer)
    if config.swap:
        return swap(nodes, list(config.swap))
    values: tuple[Ablation, Ablation] = ("zero", "corrupted")
    return ablate(nodes, "mean" if len(config.other) > 1 else values[len(config.other)])


def _words(config: InterveneConfig) -> str:
    nodes = ", ".join(config.node)
    if config.steer is not None:
        return f"{nodes}: {config.how} {config.steer:g}"
    if config.swap:
        return f"{nodes} swapped with {', '.join(config.swap)}"
    if len(config.other) > 1:
        return f"{nodes} ablated to its mean over other prompts"
    return f"{nodes} ablated to {f'its value on {config.other[0]!r}' if config.other else 'zero'}"


def _show_one(
    config: InterveneConfig, record: dict[str, Any], out: Path | None, as_json: bool
) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_config(out, "intervene", config)
        numbers = ("metric", "metric_before", "metric_after", "kl", "model", "prompt", "change")
        write_json(out / "metrics.json", {"version": 1, **{k: record[k] for k in numbers}})
        write_json(out / "interventions.json", {"version": 1, **record})
        write_text(out / "report.md", intervention_report(record))
    if as_json:
        print_json(record)
        return
    print_table(record["change"], TOP_COLUMNS, top_rows(record))
    if record["features"]:
        print_table("Changed features", FEATURE_COLUMNS, feature_rows(record))
    typer.echo("\n".join(intervention_lines(record)))


def _show_effects(
    config: InterveneConfig,
    spliced: SplicedModel,
    graph: CircuitGraph,
    effects: Effects,
    out: Path | None,
    as_json: bool,
) -> None:
    rows, record = effect_records(effects), effects_record(graph, effects)
    if out is not None:
        _write_effects(config, spliced, effects, record, rows, out)
    if as_json:
        print_json(record)
        return
    print_table(
        f"{record['model']}: {record['n_groups']} nodes ablated alone, changes of "
        f"{record['target']}",
        AGREEMENT_COLUMNS,
        agreement_rows(record["agreement"]),
    )
    print_table("Strongest in the real model", EFFECT_COLUMNS, effect_rows(rows, config.top))
    if out is not None:
        files = [[str(out / name)] for name in ("report.md", "effects.html")]
        print_table("Files", ["file"], files)


def _write_effects(
    config: InterveneConfig,
    spliced: SplicedModel,
    effects: Effects,
    record: dict[str, Any],
    rows: list[dict[str, Any]],
    out: Path,
) -> None:
    from graphs import write_html
    from graphs.interventions.effects_figure import plot_effects

    notes = describe_nodes(spliced, [node for group in effects.groups for node in group])
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, "intervene", config)
    write_json(out / "metrics.json", {"version": 1, **record})
    write_json(out / "interventions.json", {"version": 1, "effects": rows})
    figure = plot_effects(effects, title=effects_finding(record), notes=notes)
    write_html(figure, out / "effects.html")
    write_text(out / "report.md", effects_report(record, rows, max(config.top, 15)))
