"""The page of a circuit: the figure with its filters, its slider and its proof, for a browser.

Nothing on it is fetched: its Content-Security-Policy allows its own two scripts, by their hashes,
and no request. Text from models and data reaches it as JSON and is never read as HTML.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attribution.factors import EdgeFactors
from circuits.files import write_text
from graphs.circuit_graph import CircuitGraph
from graphs.figure_place import place_shown
from graphs.figure_select import choose_labels, select_shown
from graphs.figure_text import default_title
from graphs.influence import node_influence
from graphs.node_notes import NodeNotes
from graphs.page.assets import fill_page
from graphs.page.choices import HasInterval, check_known, group_rows, stop_records
from graphs.page.contexts import ShownContext
from graphs.page.records import axes_record, edge_record, node_record, row_totals, style_record

__all__ = ["CircuitPage", "circuit_page"]

_MIN_WIDTH, _MIN_HEIGHT = 640.0, 480.0
_FRAME_HEIGHT = 820  # of the notebook's cell, in pixels


@dataclass(frozen=True)
class CircuitPage:
    """A page that needs nothing else: `write_html`, or the last line of a notebook's cell."""

    html: str

    def write_html(self, path: str | Path) -> None:
        """Write the page, whole or not at all; the same graph gives the same bytes.

        Raises:
            OSError: if the file cannot be written; an older file is then untouched.
        """
        write_text(path, self.html)

    def _repr_html_(self) -> str:
        """For Jupyter: the page in a frame of its own, without rights over the notebook."""
        page = html.escape(self.html).encode("ascii", "xmlcharrefreplace").decode("ascii")
        return (
            f'<iframe srcdoc="{page}" width="100%" height="{_FRAME_HEIGHT}" '
            'style="border:0" title="circuit" sandbox="allow-scripts allow-downloads"></iframe>'
        )


def circuit_page(
    graph: CircuitGraph,
    *,
    notes: Mapping[str, NodeNotes] | None = None,
    contexts: Mapping[str, Sequence[ShownContext]] | None = None,
    title: str | None = None,
    proof: Mapping[str, str] | None = None,
    faithfulness_at: Mapping[float, HasInterval] | None = None,
    edge_details: Iterable[EdgeFactors] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    command: str | None = None,
    max_nodes: int = 2000,
    max_edges: int = 20_000,
) -> CircuitPage:
    """Draw a circuit as an interactive page.

    Args:
        graph: usually pruned; of one larger than `max_nodes` and `max_edges` the outputs, the
            errors and then the most influential part are on the page, which says what is not.
        notes: node id -> names and top tokens.
        contexts: node id -> texts in which the feature was active, strongest first.
        title: the finding, in one sentence. None: the target and the model.
        proof: name -> value for the panel, such as faithfulness with its interval, the
            dictionaries with their fidelity, and controls. None: no panel.
        faithfulness_at: share of influence kept -> faithfulness of that circuit with its interval,
            printed at that stop of the threshold. None: the threshold moves freely, unproved.
        edge_details: edges as `attribution.factorise` splits them, for their hovers.
        groups: name -> node ids, which fold into one marker.
        command: what made this, to be repeated.
        max_nodes: on the page at most.
        max_edges: on the page at most, by influence.

    Raises:
        ValueError: if `max_nodes` leaves no room for the outputs, `max_edges` is negative,
            contexts or groups name an unknown node, a node is in two groups, or a stop is no share.

    Example:
        >>> from attribution.nodes import Node, NodeTable
        >>> from graphs.metadata import GraphMetadata
        >>> nodes = NodeTable([
        ...     Node(kind="token", layer=-1, site="embed", pos=0),
        ...     Node(kind="output", layer=1, site="logit", pos=0),
        ... ])
        >>> meta = GraphMetadata(model="m", prompt="a", tokens=("a",), n_layers=1, target="logit")
        >>> zero, one = torch.tensor([0]), torch.tensor([1])
        >>> page = circuit_page(CircuitGraph(nodes, one, zero, torch.tensor([2.0]), meta))
        >>> "<title>What drives logit in m</title>" in page.html
        True
    """
    notes, contexts, known = notes or {}, contexts or {}, {node.id for node in graph.nodes}
    check_known("contexts", contexts, known)
    shown = select_shown(graph, max_nodes, max_edges, first=("error",))
    labels = choose_labels(shown, notes)
    layout = place_shown(shown, labels, _MIN_WIDTH, _MIN_HEIGHT)
    kept = torch.tensor([graph.nodes.row(node.id) for node in shown.graph.nodes])
    influence = node_influence(graph)
    heading = title or default_title(graph.metadata)
    record = {
        "version": 1,
        "title": heading,
        "model": graph.metadata.model,
        "prompt": graph.metadata.prompt,
        "target": graph.metadata.target,
        "caption": shown.caption,
        "error_share": float(influence[graph.is_kind("error")].sum()),
        "nodes": node_record(shown, layout, labels, notes, contexts),
        "edges": edge_record(shown, row_totals(graph)[kept], edge_details),
        "axes": axes_record(shown.graph, layout),
        "style": style_record(shown.graph.n_edges),
        "groups": group_rows(groups or {}, shown.graph.nodes, known),
        "stops": None if faithfulness_at is None else stop_records(faithfulness_at),
        "proof": [[name, value] for name, value in (proof or {}).items()],
        "command": command,
    }
    return CircuitPage(fill_page(heading, record))
