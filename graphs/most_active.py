"""Control for a circuit: its size in every layer, filled with the features that are most active."""

from collections import defaultdict
from collections.abc import Sequence

from jaxtyping import Bool
from torch import Tensor

from attribution.nodes import Node

__all__ = ["top_active"]


def top_active(nodes: Sequence[Node], kept: Bool[Tensor, " node"]) -> Bool[Tensor, " node"]:
    """As many features in every layer's dictionary as `kept` has, those with the largest
    activation.

    Everything else that the circuit has stays: only features have an activation. Of equal ones the
    earlier node is taken.

    Args:
        nodes: every node that could have been chosen (the unpruned graph), with its activation.
        kept: the circuit.

    Raises:
        ValueError: if there is not one flag a node.
    """
    if len(nodes) != len(kept):
        raise ValueError(f"want one flag a node, got {len(kept)} for {len(nodes)} nodes")
    chosen = kept.clone()
    places: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        if node.kind == "feature":
            places[node.site, node.layer].append(i)
    for rows in places.values():
        size = int(kept[rows].sum())
        most = sorted(rows, key=lambda i: -nodes[i].activation)[:size]
        chosen[rows] = False
        chosen[most] = True
    return chosen
