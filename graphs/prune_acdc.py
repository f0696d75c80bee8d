"""ACDC over nodes: walk from the output back, drop what can be patched without harm.

Conmy et al. 2023, over features, errors, tokens and unreplaced sublayers of the live spliced model
(not over edges): a node stays only if patching it worsens the score by at least the threshold.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.nodes import Node
from graphs.circuit_graph import CircuitGraph
from graphs.prune_notes import note_pruning
from graphs.scorer import is_candidate

__all__ = ["NodeScore", "acdc_order", "prune_acdc", "removable"]

NodeScore = Callable[[Bool[Tensor, "circuit node"]], Float[Tensor, " circuit"]]
"""Score of several circuits, each a row of flags over the graph's nodes; lower is better."""


def acdc_order(graph: CircuitGraph) -> list[int]:
    """Rows of the patchable nodes, output side first: by layer, site and position, descending.

    Within a layer's site, errors and sublayers come before features: of redundant nodes the one
    tried first dies, and the one that stays should be one that can be read.
    """
    height = {"resid_pre": 0, "attn_out": 1, "mlp": 2, "mlp_out": 2, "resid_post": 3}

    def key(row: int) -> tuple[int, int, bool, int, int]:
        node: Node = graph.nodes[row]
        is_feature = node.kind == "feature"
        return (-node.layer, -height.get(node.site, -1), is_feature, -node.pos, row)

    return sorted((i for i, node in enumerate(graph.nodes) if is_candidate(node)), key=key)


def removable(
    order: list[int], kept: Bool[Tensor, " node"], *, score: NodeScore, threshold: float, batch: int
) -> Bool[Tensor, " node"]:
    """The sequential algorithm's answer, with removals tried many at a time.

    Visiting `order`, node v is removed if `score(current - v) - score(current) < threshold`, and
    then `current - v` becomes current. A batch holds the circuits that follow if every removal is
    accepted or, after a refusal, those that follow if every one is refused; the first that turns
    out otherwise is decided too, and discards the rest of the batch. So the answer is exactly the
    sequential one while runs of acceptances and of refusals cost a call each.

    Returns:
        Flags of the nodes that stay.
    """
    current = kept.clone()
    (best,) = score(current[None]).tolist()
    at, size, hopeful = 0, 1, True
    while at < len(order):
        chunk = order[at : at + size]
        tried = current.repeat(len(chunk), 1)
        for i, row in enumerate(chunk):
            tried[i:, row] = False
            if not hopeful:
                tried[i + 1 :, row] = current[row]
        n_run = 0
        for value in score(tried).tolist():
            accepted = value - best < threshold
            if accepted:
                current, best = tried[n_run].clone(), value
            if accepted != hopeful:
                break
            n_run += 1
        as_hoped = n_run == len(chunk)
        at += n_run + (not as_hoped)
        size = min(batch, 2 * size) if as_hoped else 1
        hopeful = hopeful if as_hoped else not hopeful
    return current


def prune_acdc(
    graph: CircuitGraph, *, score: NodeScore, threshold: float, batch: int = 16
) -> CircuitGraph:
    """Drop every node whose patching worsens `score` by less than `threshold`.

    Args:
        graph: any circuit graph; what it lacks is patched from the start.
        score: for example the KL divergence to the model, from `CircuitRunner`, which runs only
            the layers from the visited node on.
        threshold: in the units of the score (nats for KL).
        batch: circuits scored in one call.

    Returns:
        The graph on the kept nodes: outputs and all that feeds them. Biases and positions, which
        are the same on every prompt, stay where they feed something that stays.

    Raises:
        ValueError: if `threshold` is negative or `batch` is not positive.
    """
    if threshold < 0 or batch < 1:
        raise ValueError(f"want threshold >= 0 and batch >= 1, got {threshold} and {batch}")
    everything = torch.ones(graph.n_nodes, dtype=torch.bool)
    kept = removable(acdc_order(graph), everything, score=score, threshold=threshold, batch=batch)
    return note_pruning(graph, graph.select(kept), f"ACDC over nodes (threshold {threshold:g})")
