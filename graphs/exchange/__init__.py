"""Graphs handed on: to the files of other programs, and back."""

from graphs.exchange.attribution_read import Imported, from_attribution
from graphs.exchange.attribution_write import attribution_document
from graphs.exchange.files import FORMS, export_graph, import_graph
from graphs.exchange.graphml import from_graphml, graphml
from graphs.exchange.node_link import from_node_link, node_link, node_link_schema
from graphs.exchange.view import GraphView

__all__ = [
    "FORMS",
    "GraphView",
    "Imported",
    "attribution_document",
    "export_graph",
    "from_attribution",
    "from_graphml",
    "from_node_link",
    "graphml",
    "import_graph",
    "node_link",
    "node_link_schema",
]
