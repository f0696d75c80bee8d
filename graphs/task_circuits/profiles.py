"""Where a circuit's influence lies: by kind of node, depth and role.

Two models have no features in common; what can be compared is where in them the work is done.
"""

from collections import defaultdict
from collections.abc import Mapping

from attribution.nodes import Node
from graphs.circuit_graph import CircuitGraph
from graphs.influence import node_influence

__all__ = ["Place", "influence_profile", "profile_overlap"]

Place = tuple[str, int, str]
"""Kind, depth (-1 the input) and column (empty for nodes of all positions)."""


def influence_profile(circuit: CircuitGraph, *, n_depths: int = 4) -> dict[Place, float]:
    """Share of the influence at each kind of node, depth and position.

        profile[kind, depth, column] = sum of I[s] over its nodes / sum of I[s] over all nodes

    with `I` from `node_influence`. Layers are grouped by how deep they lie: layer l of L is at
    depth `floor(l n_depths / L)`, so models of different L can be compared. Outputs are left out.

    Args:
        circuit: by role, if it is to be compared with one on other prompts.
        n_depths: groups of layers.

    Raises:
        ValueError: if `n_depths` is not positive, or nothing reaches an output.
    """
    if n_depths < 1:
        raise ValueError(f"want at least one group of layers, got {n_depths}")
    sums: dict[Place, float] = defaultdict(float)
    for node, value in zip(circuit.nodes, node_influence(circuit).tolist(), strict=True):
        if node.kind != "output" and value > 0:
            sums[_place(node, circuit, n_depths)] += value
    total = sum(sums.values())
    if total == 0:
        raise ValueError(f"no node reaches an output in {circuit!r}; keep edges into the output")
    return {place: value / total for place, value in sorted(sums.items())}


def profile_overlap(a: Mapping[Place, float], b: Mapping[Place, float]) -> float:
    """`sum over places of min(a, b)`: 1 for equal profiles, 0 for disjoint ones.

    One minus the total variation distance.

    Example:
        >>> round(profile_overlap({("token", -1, "end"): 1.0}, {("token", -1, "end"): 0.25}), 2)
        0.25
    """
    return sum((min(a[place], b[place]) for place in sorted(a.keys() & b.keys())), start=0.0)


def _place(node: Node, circuit: CircuitGraph, n_depths: int) -> Place:
    depth = node.layer * n_depths // circuit.metadata.n_layers if node.layer >= 0 else -1
    column = circuit.metadata.tokens[node.pos] if node.pos >= 0 else ""
    return node.kind, depth, column
