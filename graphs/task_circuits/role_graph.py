"""One graph for a task: prompts of any length and frame, averaged by role, with the spread.

Input-dependent: every number comes from the prompts' own graphs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from graphs.build import average_graphs
from graphs.circuit_graph import CircuitGraph
from graphs.task_circuits.roles import collapse, order_columns

__all__ = ["RoleGraph", "role_graph"]


@dataclass(frozen=True, eq=False)
class RoleGraph:
    """The mean over prompts, with how much it varies.

    Attributes:
        graph: the mean; its positions are roles, `graph.metadata.tokens` their names.
        edge_spread: standard deviation of each edge over all prompts, an absent edge being 0.
        edge_share: share of the prompts that have the edge.
        node_share: share of the prompts that have the node.
        names: what each position of each prompt is called.
    """

    graph: CircuitGraph
    edge_spread: Float[Tensor, " edge"] = field(repr=False)
    edge_share: Float[Tensor, " edge"] = field(repr=False)
    node_share: Float[Tensor, " node"] = field(repr=False)
    names: tuple[tuple[str, ...], ...] = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The roles and gaps, left to right."""
        return self.graph.metadata.tokens

    def restrict(self, circuit: CircuitGraph) -> "RoleGraph":
        """The same numbers for a circuit chosen from the mean graph.

        Raises:
            ValueError: if it has a node or an edge that the mean graph has not.
        """
        unknown = {n.id for n in circuit.nodes} - {n.id for n in self.graph.nodes}
        if unknown:
            raise ValueError(
                f"want a circuit chosen from this role graph, got node {min(unknown)}, which it "
                "has not; prune `graph`"
            )
        node = _rows(circuit, self.graph)
        keys = node[circuit.edge_target] * self.graph.n_nodes + node[circuit.edge_source]
        edge = _find(keys, _keys(self.graph))
        if bool((edge < 0).any()):
            raise ValueError(
                f"want a circuit chosen from this role graph, got {int((edge < 0).sum())} edges "
                "that it has not; prune `graph`"
            )
        spread, share = self.edge_spread[edge], self.edge_share[edge]
        return RoleGraph(circuit, spread, share, self.node_share[node], self.names)


def role_graph(
    graphs: Sequence[CircuitGraph],
    names: Sequence[Sequence[str]],
    columns: Sequence[str] | None = None,
) -> RoleGraph:
    """Average the graphs of single prompts, positions lined up by name.

        edge[t, s]   = sum over g of e_g[t, s] / n
        spread[t, s] = sqrt(sum over g of (e_g[t, s] - edge[t, s])^2 / n)

    with `e_g` from `collapse`, 0 where prompt g has no such edge. A row adds up to the mean over
    prompts of what its positions' rows add up to. As in `average_graphs`, a node's activation is
    the mean over the prompts that have it, and an edge whose mean is exactly zero is absent.

    Args:
        graphs: one a prompt, of one model, with equal outputs.
        names: what each position of each prompt is called (`name_positions`).
        columns: the order of the names; None ranks them by where they lie (`order_columns`).

    Raises:
        ValueError: if there is not one tuple of names a graph, or the graphs cannot be averaged.
    """
    if not graphs or len(graphs) != len(names):
        raise ValueError(
            f"want the names of the positions of every prompt, got {len(names)} for {len(graphs)} "
            "graphs"
        )
    columns = order_columns(names) if columns is None else tuple(columns)
    parts = [collapse(g, own, columns) for g, own in zip(graphs, names, strict=True)]
    mean = average_graphs(parts)
    keys, center = _keys(mean), mean.edge_attribution.double()
    squares, counts = torch.zeros_like(center), torch.zeros_like(center)
    seen = torch.zeros(mean.n_nodes, dtype=torch.float64)
    for part in parts:
        row = _rows(part, mean)
        seen[row] += 1
        edge = _find(row[part.edge_target] * mean.n_nodes + row[part.edge_source], keys)
        kept = edge >= 0
        counts[edge[kept]] += 1
        squares[edge[kept]] += (part.edge_attribution[kept].double() - center[edge[kept]]) ** 2
    squares += (len(parts) - counts) * center**2
    return RoleGraph(
        graph=mean,
        edge_spread=(squares / len(parts)).sqrt(),
        edge_share=counts / len(parts),
        node_share=seen / len(parts),
        names=tuple(tuple(own) for own in names),
    )


def _rows(part: CircuitGraph, whole: CircuitGraph) -> Int[Tensor, " row"]:
    """Row in `whole` of every node of `part`."""
    return torch.tensor([whole.nodes.row(node.id) for node in part.nodes], dtype=torch.long)


def _keys(graph: CircuitGraph) -> Int[Tensor, " edge"]:
    """One number an edge."""
    return graph.edge_target * graph.n_nodes + graph.edge_source


def _find(wanted: Int[Tensor, " wanted"], keys: Int[Tensor, " key"]) -> Int[Tensor, " wanted"]:
    """Where each wanted key is among `keys`, -1 where it is not."""
    ranked, order = keys.sort()
    if not len(ranked):
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(ranked, wanted).clamp_max(len(ranked) - 1)
    return torch.where(ranked[place] == wanted, order[place], -1)
