"""A circuit graph that can be run: the frozen model on its nodes, with its true nonlinearities.

    z_t = sum over edges s -> t of  clean_ts a_s / a_s(clean)   while the edge is kept,
                                    patched_ts                  once it is removed
    a_t = z_t  where z_t > threshold_t, else 0

Attention patterns, norm denominators and features that the clean prompt does not use are held;
TopK's boundary is held too. So a run is a few sparse products, and many circuits run at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.nodes import Node, NodeTable

__all__ = ["FrozenGraph", "Reaction", "node_level"]

_HEIGHT = {"resid_pre": 0, "attn_out": 1, "mlp": 2, "mlp_out": 2, "resid_post": 3}


def node_level(node: Node) -> int:
    """Which nodes are computed after which: edges run from a lower level to a higher one."""
    if node.kind == "output":
        return 4 * (node.layer + 1)
    return 4 * node.layer + _HEIGHT.get(node.site, 0) if node.kind == "feature" else -4


@dataclass(frozen=True, eq=False)
class FrozenGraph:
    """Edges of position-aligned prompts, with what each carries on the clean and the other prompt.

    Args:
        nodes: every node; features and outputs are targets.
        edge_target: rows of `nodes` the edges run to.
        edge_source: rows of `nodes` the edges come from.
        clean: what each edge carries on each clean prompt (its attribution).
        patched: what it carries once it is removed.
        value: what each target's edges add up to on the clean prompt: a feature's pre-activation,
            an output's value. Not read for other nodes.
        activation: of the features on the clean prompts; 0 where one is not active.
        threshold: a feature's activation is its value where that exceeds this.

    Raises:
        ValueError: if an edge does not run from a lower level to a higher one, or a number other
            than a threshold is not finite.
    """

    nodes: NodeTable
    edge_target: Int[Tensor, " edge"]
    edge_source: Int[Tensor, " edge"]
    clean: Float[Tensor, "prompt edge"]
    patched: Float[Tensor, "prompt edge"]
    value: Float[Tensor, "prompt node"]
    activation: Float[Tensor, "prompt node"]
    threshold: Float[Tensor, "prompt node"]

    def __post_init__(self) -> None:
        wrong = self.levels[self.edge_source] >= self.levels[self.edge_target]
        if wrong.any():
            edge = int(wrong.nonzero()[0])
            ends = self.nodes[int(self.edge_source[edge])], self.nodes[int(self.edge_target[edge])]
            raise ValueError(
                f"edges must run from a lower level to a higher one, got {ends[0].id} -> "
                f"{ends[1].id}"
            )

        for name in ("clean", "patched", "value", "activation"):
            finite = getattr(self, name).isfinite()
            if not bool(finite.all()):
                place = tuple((~finite).nonzero()[0].tolist())
                raise ValueError(
                    f"{name} must be finite, got {float(getattr(self, name)[place])} at [prompt, "
                    f"{'edge' if name in ('clean', 'patched') else 'node'}] = {list(place)}; look "
                    "for an overflow in the traces"
                )

    @property
    def n_edges(self) -> int:
        return len(self.edge_target)

    @cached_property
    def levels(self) -> Int[Tensor, " node"]:
        """`node_level` of every node."""
        return torch.tensor([node_level(node) for node in self.nodes], dtype=torch.long)

    @cached_property
    def outputs(self) -> Int[Tensor, " output"]:
        """Rows of the output nodes."""
        return torch.tensor([i for i, node in enumerate(self.nodes) if node.kind == "output"])

    def run(
        self, kept: Bool[Tensor, "circuit edge"]
    ) -> tuple[Float[Tensor, "circuit prompt output"], Float[Tensor, "circuit prompt node"]]:
        """Outputs and feature activations of several circuits, each a row of flags over the edges.

        Keeping every edge gives the clean values exactly.
        """
        final = torch.from_numpy(self.stand(kept)[1])
        at = self.outputs
        return self.value[:, at] + final[..., at], self.activation + final

    def stand(self, kept: Bool[Tensor, "circuit edge"]) -> tuple[np.ndarray, np.ndarray]:
        """By how much the values of targets shift in several circuits, and activations change
        (of outputs, the values): each [circuit, prompt, node].
        """
        shift = np.zeros((len(kept), *self.value.shape))
        change = np.zeros_like(shift)
        for level in self._sweep:
            flow, removed = self.flows(level.edges, change)
            carried = np.where(kept[:, None, level.edges].numpy(), flow, removed)
            here = np.add.reduceat(carried, level.starts, -1)
            shift[..., level.targets] = here
            change[..., level.targets] = self.reaction(level.targets).change(here)
        return shift, change

    def flows(self, edges: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much edges shift their targets, against the clean prompts: if they are kept while
        activations change by [..., prompt, node], and if they are removed.
        """
        kept = change[..., self.edge_source.numpy()[edges]] * self.slopes.numpy()[:, edges]
        clean, patched = (t.numpy()[:, edges].astype(float) for t in (self.clean, self.patched))
        return kept, patched - clean

    def reaction(self, nodes: np.ndarray) -> "Reaction":
        """How some nodes, by their rows, respond to shifts of their values."""
        return self._reaction[nodes]

    @cached_property
    def slopes(self) -> Float[Tensor, "prompt edge"]:
        """What edges carry per unit of their source's activation; 0 where that never changes."""
        activation = self.activation[:, self.edge_source].double()
        return torch.where(activation > 0, self.clean.double() / activation, 0.0)

    @cached_property
    def _reaction(self) -> "Reaction":
        is_output = np.zeros(len(self.nodes), bool)
        is_output[self.outputs.numpy()] = True
        value, activation = self.value.double().numpy(), self.activation.double().numpy()
        return Reaction(value, activation, self.threshold.double().numpy(), is_output)

    @cached_property
    def _sweep(self) -> Sequence["_Level"]:
        """Edges level by level, lowest first, those of one target together."""
        target, level = self.edge_target.numpy(), self.levels[self.edge_target].numpy()
        order = np.lexsort((target, level))
        bounds = np.flatnonzero(np.diff(level[order])) + 1
        return [_one_level(part, target[part]) for part in np.split(order, bounds) if len(part)]


@dataclass(frozen=True)
class Reaction:
    """How targets respond to shifts of their values: thresholds and clean values, node by node.

    Attributes:
        value: on the clean prompts, [prompt, node].
        activation: likewise.
        threshold: likewise.
        is_output: [node].
    """

    value: np.ndarray
    activation: np.ndarray
    threshold: np.ndarray
    is_output: np.ndarray

    def __getitem__(self, nodes: np.ndarray | slice) -> "Reaction":
        value, activation = self.value[:, nodes], self.activation[:, nodes]
        return Reaction(value, activation, self.threshold[:, nodes], self.is_output[nodes])

    def change(self, shift: np.ndarray) -> np.ndarray:
        """By how much activations (of outputs, the values) change as values shift, [..., prompt,
        node].
        """
        z = self.value + shift
        fires = np.where(z > self.threshold, z, 0.0) - self.activation
        return np.where(self.is_output, shift, np.where(shift == 0, 0.0, fires))

    def clearance(self, shift: np.ndarray) -> np.ndarray:
        """What the values lack to the thresholds, [..., prompt, node]; an output, which is always
        on, lacks minus infinity.
        """
        return np.where(self.is_output, -np.inf, self.threshold - (self.value + shift))


@dataclass(frozen=True)
class _Level:
    """The edges into the targets of one level."""

    edges: np.ndarray
    targets: np.ndarray
    starts: np.ndarray


def _one_level(edges: np.ndarray, target: np.ndarray) -> _Level:
    targets, starts = np.unique(target, return_index=True)
    return _Level(edges, targets, starts)
