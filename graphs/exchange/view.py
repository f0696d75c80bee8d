"""What a viewer keeps beside a graph: names, groups, pinned nodes, weights of outputs."""

from pydantic import BaseModel, ConfigDict, Field

from graphs.circuit_graph import CircuitGraph

__all__ = ["GraphView"]


class GraphView(BaseModel):
    """How a graph is looked at; every key and entry is the id of a node."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labels: dict[str, str] = Field(default_factory=dict, description="node id -> short name")
    groups: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="name of a group (supernode) -> ids of its nodes"
    )
    pinned: tuple[str, ...] = Field(default=(), description="ids of nodes that are always shown")
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="output id -> its probability or other weight in influence; empty: all equal",
    )

    def check(self, graph: CircuitGraph) -> None:
        """Refuse what does not belong to `graph`.

        Raises:
            ValueError: naming the ids that are no nodes, or the outputs without a weight.
        """
        known = {node.id for node in graph.nodes}
        named = {*self.labels, *self.pinned, *self.weights, *sum(self.groups.values(), ())}
        if unknown := sorted(named - known):
            raise ValueError(f"the view names {unknown[:5]}, which are no nodes of {graph!r}")
        outputs = {node.id for node in graph.outputs}
        if self.weights and self.weights.keys() != outputs:
            raise ValueError(
                f"weights must be given for every output and nothing else: {sorted(outputs)[:5]}; "
                f"got {sorted(self.weights)[:5]}"
            )
