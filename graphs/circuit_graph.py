"""The circuit graph: nodes, signed edges, and where they come from.

Edges are three parallel tensors, so a trace with a million of them stays fast; the NetworkX
view is made when it is asked for. Input-dependent: a graph belongs to one prompt, or to the
mean over several.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.nodes import Node, NodeTable
from circuits.files import write_text
from graphs.graph_json import decode, encode
from graphs.metadata import GraphMetadata
from graphs.validate import validate_graph

__all__ = ["CircuitGraph", "GraphMetadata"]


@dataclass(frozen=True, eq=False)
class CircuitGraph:
    """A validated directed acyclic graph whose edges run source -> target.

    Args:
        nodes: every node, with unique ids.
        edge_target: rows of `nodes` the edges run to.
        edge_source: rows of `nodes` the edges come from.
        edge_attribution: signed, in the units of the edge's target (its pre-activation, or a
            logit or logit difference); float32 or float64.
        metadata: model, prompt, tokens, target.

    Raises:
        ValueError: if a row is out of range, an attribution or activation is not finite, an edge
            occurs twice, the edges form a cycle, or there is no output node.

    Example:
        >>> import torch
        >>> token = Node(kind="token", layer=-1, site="embed", pos=0)
        >>> out = Node(kind="output", layer=1, site="logit", pos=0)
        >>> meta = GraphMetadata(model="m", prompt="a", tokens=("a",), n_layers=1, target="logit")
        >>> zero, one = torch.tensor([0]), torch.tensor([1])
        >>> graph = CircuitGraph(NodeTable([token, out]), one, zero, torch.tensor([2.0]), meta)
        >>> list(graph.digraph.edges(data="attribution"))
        [('token@0', 'output.logit', 2.0)]
    """

    nodes: NodeTable
    edge_target: Int[Tensor, " edge"]
    edge_source: Int[Tensor, " edge"]
    edge_attribution: Float[Tensor, " edge"]
    metadata: GraphMetadata

    def __post_init__(self) -> None:
        validate_graph(self.nodes, self.edge_target, self.edge_source, self.edge_attribution)

    def __repr__(self) -> str:
        return (
            f"CircuitGraph({self.n_nodes} nodes, {self.n_edges} edges, "
            f"model={self.metadata.model!r}, target={self.metadata.target!r})"
        )

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.edge_attribution)

    @property
    def outputs(self) -> tuple[Node, ...]:
        """The output nodes, in table order; never empty."""
        return tuple(node for node in self.nodes if node.kind == "output")

    def is_kind(self, *kinds: str) -> Bool[Tensor, " node"]:
        """Mark the nodes of the given kinds."""
        return torch.tensor([node.kind in kinds for node in self.nodes], dtype=torch.bool)

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """The same graph for NetworkX: keys are node ids, data the records and `attribution`."""
        graph = nx.DiGraph(**self.metadata.model_dump())
        ids = [node.id for node in self.nodes]
        graph.add_nodes_from((node.id, node.model_dump()) for node in self.nodes)
        columns = (self.edge_source, self.edge_target, self.edge_attribution)
        graph.add_edges_from(
            (ids[source], ids[target], {"attribution": value})
            for source, target, value in zip(*(c.tolist() for c in columns), strict=True)
        )
        return graph

    def select(
        self, keep_node: Bool[Tensor, " node"], keep_edge: Bool[Tensor, " edge"] | None = None
    ) -> "CircuitGraph":
        """Keep the marked nodes, and the marked edges (None: all) whose two ends are kept.

        Returns:
            A new graph in the same order; attributions and metadata are unchanged.

        Raises:
            ValueError: if no output node is kept.
        """
        kept = keep_node[self.edge_target] & keep_node[self.edge_source]
        if keep_edge is not None:
            kept = kept & keep_edge
        new_row = keep_node.long().cumsum(0) - 1
        flags = keep_node.tolist()
        return CircuitGraph(
            nodes=NodeTable([n for n, flag in zip(self.nodes, flags, strict=True) if flag]),
            edge_target=new_row[self.edge_target[kept]],
            edge_source=new_row[self.edge_source[kept]],
            edge_attribution=self.edge_attribution[kept],
            metadata=self.metadata,
        )

    def subgraph(self, node_ids: Iterable[str]) -> "CircuitGraph":
        """The induced subgraph on `node_ids`, in the order of this graph.

        Raises:
            ValueError: if an id is unknown, or none of them is an output.
        """
        wanted = set(node_ids)
        keep = torch.tensor([node.id in wanted for node in self.nodes], dtype=torch.bool)
        if int(keep.sum()) != len(wanted):
            unknown = sorted(wanted - {node.id for node in self.nodes})
            raise ValueError(
                f"every id must name one of the graph's {self.n_nodes} nodes, got {unknown[:5]} "
                "which do not; list them with [node.id for node in graph.nodes]"
            )
        return self.select(keep)

    def with_notes(self, **notes: str) -> "CircuitGraph":
        """The same graph with `notes` added to its metadata."""
        metadata = self.metadata.model_copy(update={"notes": self.metadata.notes | notes})
        return CircuitGraph(
            self.nodes, self.edge_target, self.edge_source, self.edge_attribution, metadata
        )

    def save(self, path: str | Path) -> None:
        """Write version 1 JSON to `path`, whole or not at all.

        About 30 bytes of file and 200 of memory an edge, a second for a million; so is `load`.

        Raises:
            OSError: if the file cannot be written; an older file is then untouched.
        """
        text = encode(
            self.nodes, self.edge_target, self.edge_source, self.edge_attribution, self.metadata
        )
        write_text(path, text)

    @classmethod
    def load(cls, path: str | Path) -> "CircuitGraph":
        """Read what `save` wrote, exactly.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is truncated, malformed, of another version, or no valid graph.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} should be UTF-8 JSON, but byte {error.start} is not text; "
                "is it a circuit graph saved with CircuitGraph.save?"
            ) from error
        return cls(**decode(text, str(path)))
