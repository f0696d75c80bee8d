"""Edge circuits of the live model: which target reads which source at its value in the circuit.

    target t = F_t(value of s in the circuit   where the edge s -> t is kept,
                   value of s on other prompts where it is not)

F_t is the live spliced model from all sources upstream of t to t alone: attention, norms, features
that the clean prompt does not use and kept unreplaced MLPs are recomputed in a run of t's own. So
an edge crosses attention patterns, which no edge of the frozen model does. All edges kept are the
model, none are the other prompts, and the edges out of a set of nodes are that node circuit
(`circuits.patching.run_patched`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attribution.nodes import Node, NodeTable
from graphs.circuit_graph import CircuitGraph
from graphs.frozen_graph import FrozenGraph, node_level
from graphs.proof.choices import ProofChoices
from graphs.proof.runners import live_nodes
from graphs.scorer import CircuitRunner

__all__ = ["LiveEdges", "Others", "live_edges"]

Others = Literal["kept", "removed"]
"""What becomes of a source upstream of a target where the graph has no edge between them."""


@dataclass(frozen=True, eq=False)
class LiveEdges:
    """Edges that may be kept or removed one by one, between the nodes in use on some prompts.

    Args:
        nodes: every token, unreplaced MLP, error and feature in use, and the output last.
        edge_target: rows of `nodes` the edges run to: features, or the output.
        edge_source: rows of `nodes` the edges come from.
        others: whether pairs that are no edge here are kept or removed, in every circuit.

    Raises:
        ValueError: if an edge does not run upstream to downstream, or occurs twice.
    """

    nodes: NodeTable
    edge_target: Int[Tensor, " edge"]
    edge_source: Int[Tensor, " edge"]
    others: Others

    def __post_init__(self) -> None:
        wrong = ~self.upstream[self.edge_target, self.edge_source]
        if wrong.any():
            edge = int(wrong.nonzero()[0])
            ends = self.nodes[int(self.edge_source[edge])], self.nodes[int(self.edge_target[edge])]
            raise ValueError(
                f"edges must run to a later feature or the output, at the same position or a later "
                f"one, got {ends[0].id} -> {ends[1].id}"
            )
        keys = self.edge_target * len(self.nodes) + self.edge_source
        if len(keys.unique()) < len(keys):
            raise ValueError(f"want every edge once, got {len(keys) - len(keys.unique())} again")

    @property
    def n_edges(self) -> int:
        return len(self.edge_target)

    @property
    def output(self) -> int:
        """Row of the output."""
        return len(self.nodes) - 1

    @cached_property
    def moments(self) -> Int[Tensor, " node"]:
        """Which nodes are computed after which; as `node_level`, but of every kind."""
        return torch.tensor([_moment(node) for node in self.nodes], dtype=torch.long)

    @cached_property
    def upstream(self) -> Bool[Tensor, "node node"]:
        """[target, source]: whether the source is computed before the target and can reach it."""
        pos = torch.tensor([node.pos for node in self.nodes])
        is_target = torch.tensor([node.kind in ("feature", "output") for node in self.nodes])
        before = self.moments[None] < self.moments[:, None]
        return is_target[:, None] & before & (pos[None] <= pos[:, None])

    def reads(self, kept: Bool[Tensor, " edge"]) -> Bool[Tensor, "node node"]:
        """[target, source]: what each node reads at its value in the circuit of the kept edges.

        What is not `upstream` of a target is no concern of it, and counts as the others do, so that
        targets with the same sources have the same row.
        """
        matrix = torch.full_like(self.upstream, self.others == "kept")
        matrix[self.edge_target, self.edge_source] = kept
        return matrix


def live_edges(
    runner: CircuitRunner, graph: CircuitGraph | FrozenGraph, *, others: Others
) -> tuple[LiveEdges, Int[Tensor, " graph_edge"]]:
    """The edges of a graph on the runner's prompts; all its outputs are one.

    Args:
        runner: the prompts, which need not be those of the graph.
        graph: whose edges can be kept or removed.
        others: pairs that are no edge of the graph: `removed` where it is a pruned one, `kept`
            where it is the frozen model, whose missing edges carry nothing there but may in the
            live model (what moves attention does).

    Returns:
        The live edges, and for each edge of the graph which of them it is; -1 where a node is a
        constant, or a feature that these prompts do not use, so that the edge does nothing.
    """
    choices = ProofChoices(value="corrupted", errors="as chosen")
    n_layers, last = runner.spliced.model.n_layers, runner.clean.n_pos - 1
    output = Node(kind="output", layer=n_layers, site="logits", pos=last)
    nodes = NodeTable([*live_nodes(choices, runner), output])
    known = {node.id: row for row, node in enumerate(nodes)}
    known |= {node.id: len(nodes) - 1 for node in graph.nodes if node.kind == "output"}
    row = torch.tensor([known.get(node.id, -1) for node in graph.nodes], dtype=torch.long)
    target, source = row[graph.edge_target], row[graph.edge_source]
    found = (target >= 0) & (source >= 0)
    key, inverse = (target * len(nodes) + source)[found].unique(return_inverse=True)
    place = torch.full((len(target),), -1)
    place[found] = inverse
    return LiveEdges(nodes, key // len(nodes), key % len(nodes), others), place


def _moment(node: Node) -> int:
    """`node_level` as if errors, unreplaced MLPs and tokens were features in their place."""
    if node.kind == "output":
        return node_level(node)
    return node_level(node.model_copy(update={"kind": "feature"}))
