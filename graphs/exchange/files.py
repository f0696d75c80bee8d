"""Graphs to and from the files of other programs: one door for every form."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from circuits.files import write_text
from graphs.circuit_graph import CircuitGraph
from graphs.exchange.assembling import read_text
from graphs.exchange.attribution_read import Imported, from_attribution
from graphs.exchange.attribution_write import attribution_document
from graphs.exchange.graphml import from_graphml, graphml
from graphs.exchange.node_link import from_node_link, node_link
from graphs.exchange.view import GraphView

__all__ = ["FORMS", "VIEWED", "export_graph", "import_graph"]

FORMS = ("circuitloom", "graphml", "node-link", "attribution-graph")
"""What `export_graph` writes, first our own; `import_graph` tells them apart itself."""

VIEWED = "attribution-graph"
"""The form that holds a `GraphView` too."""


def export_graph(
    graph: CircuitGraph,
    path: str | Path,
    *,
    form: str,
    view: GraphView | None = None,
    scan: str | None = None,
) -> None:
    """Write a graph for other programs, whole or not at all, numbers exact.

    Args:
        graph: usually pruned.
        path: the file. An attribution graph is called as its file is, without the ending.
        form: one of `FORMS`.
        view: names, groups, pinned nodes and output weights, which only the attribution graph
            holds.
        scan: see `attribution_document`; for the attribution graph only.

    Raises:
        OSError: if the file cannot be written; an older file is then untouched.
        ValueError: if the form is not known or cannot hold what is given.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if form != VIEWED and (view is not None or scan is not None):
        raise ValueError(f"{form} holds neither a view nor a scan; leave them out")
    if form == "circuitloom":
        graph.save(path)
        return
    if form == "graphml":
        text = graphml(graph)
    elif form == "node-link":
        text = _json(node_link(graph))
    else:
        slug = Path(path).stem
        text = _json(attribution_document(graph, slug=slug, scan=scan, view=view))
    write_text(path, text)


def import_graph(path: str | Path, *, n_layers: int | None = None) -> Imported:
    """Read a graph that this package or another program wrote, in any of `FORMS`.

    Args:
        path: the file.
        n_layers: see `from_attribution`; of no use for the other forms.

    Returns:
        The graph, and how it is looked at; only an attribution graph has that.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no graph in one of the forms, naming the file and the fault.
    """
    text, origin = read_text(path), str(path)
    start = text.lstrip()[:1]
    if start == "<":
        return Imported(from_graphml(text, origin), GraphView())
    if start != "{":
        raise ValueError(
            f"{origin} is neither XML nor a JSON object; want one of {', '.join(FORMS)}"
        )
    if re.search(r'"edges"\s*:\s*\{', text):
        return Imported(CircuitGraph.load(path), GraphView())
    if re.search(r'"multigraph"\s*:', text):
        return Imported(from_node_link(text, origin), GraphView())
    return from_attribution(text, origin, n_layers=n_layers)


def _json(document: Mapping[str, object]) -> str:
    return json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n"
