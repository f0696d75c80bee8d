"""`circuits exchange`: a graph from one program's file to another's."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from case_studies.commands.display import print_json
from case_studies.commands.flags import JsonFlag, with_flags
from circuits.files import write_json
from graphs.exchange.assembling import parsed, read_text
from graphs.exchange.files import VIEWED, export_graph, import_graph
from graphs.exchange.view import GraphView

__all__ = ["ExchangeConfig", "command"]

_FileFlag = Annotated[Path, typer.Option("--out", dir_okay=False, help="File to write.")]
_ViewFlag = Annotated[
    Path | None,
    typer.Option(
        "--save-view",
        dir_okay=False,
        help="File for names, groups, pinned nodes and output weights, as JSON.",
    ),
]


class ExchangeConfig(BaseModel):
    """What to read, and what to write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Path = Field(description="a graph: of this program, GraphML, or JSON of a viewer")
    to: str = Field(
        "circuitloom", description="circuitloom, graphml, node-link or attribution-graph"
    )
    view: Path | None = Field(
        None, description="names, groups, pinned nodes and output weights, as --save-view wrote"
    )
    scan: str | None = Field(
        None, description="where viewers of an attribution graph find its features' pages"
    )
    n_layers: int | None = Field(
        None, ge=1, description="blocks of the model, where an attribution graph does not say it"
    )


@with_flags(ExchangeConfig, "source")
def command(
    config: ExchangeConfig,
    out: _FileFlag,
    save_view: _ViewFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Hand a graph on to another program, or take one from it.

    GraphML is for Gephi and Cytoscape, node-link JSON for NetworkX and D3, the attribution graph
    for circuit-tracer's viewer and Neuronpedia. What is read here can be pruned, drawn and, with
    its model, proved. Numbers stay exact.
    """
    graph, view = import_graph(config.source, n_layers=config.n_layers)
    if config.view is not None:
        view = parsed(GraphView, read_text(config.view), str(config.view), strict=False)
        view.check(graph)
    holds_view = config.to == VIEWED
    export_graph(graph, out, form=config.to, scan=config.scan, view=view if holds_view else None)
    if save_view is not None:
        write_json(save_view, view.model_dump(mode="json"))
    left_out = view != GraphView() and not holds_view and save_view is None
    if as_json:
        record = {"edges": graph.n_edges, "file": str(out), "form": config.to}
        print_json(record | {"nodes": graph.n_nodes, "view_left_out": left_out})
        return
    typer.echo(f"wrote {graph.n_nodes:,} nodes and {graph.n_edges:,} edges to {out} as {config.to}")
    if left_out:
        typer.echo("names, groups and output weights are left out; keep them with --save-view FILE")
