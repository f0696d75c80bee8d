"""Controls for a circuit: random circuits of its size, and its tokens alone."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from attribution.nodes import Node

__all__ = ["random_circuits", "tokens_only"]


def random_circuits(
    nodes: Sequence[Node], kept: Bool[Tensor, " node"], *, n: int, seed: int
) -> Bool[Tensor, "circuit node"]:
    """Random circuits with as many features, errors and sublayers in every layer as `kept` has.

    The circuit's own tokens stay: they are the input, and a random choice of them would make the
    control trivially bad.

    Args:
        nodes: every node that could have been chosen (the unpruned graph).
        kept: the circuit.
        n: circuits to draw.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = kept.repeat(n, 1)
    places: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        if node.kind in ("feature", "error", "sublayer"):
            places[node.kind, node.site, node.layer].append(i)
    for rows in places.values():
        row_index = torch.tensor(rows)
        size = int(kept[row_index].sum())
        for circuit in drawn:
            circuit[row_index] = False
            chosen = torch.randperm(len(rows), generator=generator)[:size]
            circuit[row_index[chosen]] = True
    return drawn


def tokens_only(nodes: Sequence[Node], kept: Bool[Tensor, " node"]) -> Bool[Tensor, " node"]:
    """The circuit without its features, errors and sublayers: what attention does by itself."""
    is_token = torch.tensor([node.kind == "token" for node in nodes], dtype=torch.bool)
    return kept & is_token
