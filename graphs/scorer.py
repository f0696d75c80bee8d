"""From a set of nodes to logits: circuits of a graph run on the live spliced model.

Position-aligned prompts share one node table, so one circuit is tested on all of them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.nodes import Node
from circuits.agreement import Agreement, HeldRun
from circuits.patching import Keep, NodeValues, hold_patched, patch_values, run_patched
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel

__all__ = ["CircuitRunner", "Tally", "is_candidate"]


def is_candidate(node: Node) -> bool:
    """Whether a node can be patched: positions, biases and outputs are the same on every prompt."""
    return node.kind in ("feature", "error", "sublayer", "token")


@dataclass
class Tally:
    """How much has been run."""

    calls: int = 0
    rows: int = 0
    """Circuits times prompts."""
    blocks: int = 0
    """Layers run, summed over rows."""
    whole_blocks: int = 0
    """Layers of the model, summed over rows: what whole passes would have run."""

    @property
    def share(self) -> float:
        """Of the layers of whole passes, the share that was run; 1 before any call."""
        return self.blocks / self.whole_blocks if self.whole_blocks else 1.0

    def add(self, rows: int, first: int, n_layers: int) -> None:
        """Count a call that began at layer `first`."""
        self.calls += 1
        self.rows += rows
        self.blocks += rows * (n_layers - first)
        self.whole_blocks += rows * n_layers


@dataclass
class _Held:
    """The circuit whose run is held: its nodes, their flags, and the run."""

    nodes: list[Node]
    kept: Bool[Tensor, " node"]
    run: HeldRun


@dataclass(frozen=True, eq=False)
class CircuitRunner:
    """Runs circuits on clean prompts with the rest patched from corrupted ones.

    The last circuit that was run alone is held. Where later ones must be the same as it, below a
    layer or before a position, its values are taken: ACDC begins with one circuit, and all that
    follow are like it below the node visited.

    Args:
        spliced: the model with its dictionaries.
        clean: the prompts, all of one length.
        corrupted: their counterparts, row by row.
    """

    spliced: SplicedModel
    clean: FrozenState
    other: NodeValues
    empty_logits: Float[Tensor, "batch d_vocab"] = field(repr=False)
    tally: Tally = field(default_factory=Tally, init=False)
    """What `logits` has run."""
    _held: list[_Held] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def on_prompts(
        cls,
        spliced: SplicedModel,
        clean: Int[Tensor, "batch pos"],
        corrupted: Int[Tensor, "batch pos"],
    ) -> "CircuitRunner":
        """Hold both sets of prompts.

        Raises:
            ValueError: if they differ in number or length.
        """
        if clean.shape != corrupted.shape:
            raise ValueError(
                f"clean and corrupted prompts must line up token by token, got shapes "
                f"{tuple(clean.shape)} and {tuple(corrupted.shape)}"
            )
        with torch.no_grad():
            state, other = spliced.state(clean), spliced.state(corrupted)
            return cls(spliced, state, patch_values(spliced, other), other.logits[:, -1])

    @property
    def full_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """The original model's logits at the last position of the clean prompts."""
        return self.clean.logits[:, -1]

    def logits(
        self, nodes: Sequence[Node], kept: Bool[Tensor, "circuit node"]
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """Last-position logits of several circuits, each a row of flags over `nodes`.

        Whatever is not among the kept nodes is patched.
        """
        agreement = self._agreement(nodes, kept)
        first = 0 if agreement is None else agreement.first_layer
        rows = len(kept) * len(self.clean.tokens)
        self.tally.add(rows, first, self.spliced.model.n_layers)
        keep = self._masks(nodes, kept, first)
        with torch.no_grad():
            if len(kept) > 1:
                return run_patched(self.spliced, self.clean, self.other, keep, agreement)
            logits, run = hold_patched(self.spliced, self.clean, self.other, keep, agreement)
            self._held[:] = [_Held(list(nodes), kept[0].clone(), run)]
            return logits

    def _agreement(
        self, nodes: Sequence[Node], kept: Bool[Tensor, "circuit node"]
    ) -> Agreement | None:
        """Where the circuits are the same as the one held, if there is one, of the same nodes."""
        if not self._held or self._held[0].nodes != list(nodes):
            return None
        rows = (kept != self._held[0].kept).any(0).nonzero().flatten().tolist()
        different = {(nodes[i].layer, nodes[i].pos) for i in rows if is_candidate(nodes[i])}
        n_layers, n_pos = self.spliced.model.n_layers, self.clean.n_pos
        return Agreement.beside(self._held[0].run, different, n_layers=n_layers, n_pos=n_pos)

    def patchable(self, nodes: Sequence[Node]) -> Bool[Tensor, " node"]:
        """Which nodes a patch can change: those whose value differs on some pair of prompts."""
        return torch.tensor([self._differs(node) for node in nodes], dtype=torch.bool)

    def _differs(self, node: Node) -> bool:
        values = self._values(node)
        return values is not None and not torch.equal(*values)

    def _values(self, node: Node) -> tuple[Tensor, Tensor] | None:
        """The node's values on clean and corrupted prompts; None where no patch applies."""
        at = (slice(None), node.pos)
        if node.kind == "token":
            return self.clean.values[Site("embed")][at], self.other.embed[at]
        if node.kind == "sublayer":
            site = Site("mlp_raw_out", node.layer)
            return self.clean.values[site][at], self.other.sublayers[site][at]
        if node.kind not in ("feature", "error"):
            return None
        write = self.spliced.write_site(f"{node.site}.{node.layer}")
        if node.kind == "error":
            return self.clean.errors[write][at], self.other.errors[write][at]
        clean = self.clean.activations[write][*at, node.feature]
        other = self.other.activations[write][*at, node.feature]
        return clean, torch.where(clean != 0, other, clean)

    def _masks(self, nodes: Sequence[Node], kept: Bool[Tensor, "circuit node"], first: int) -> Keep:
        """Flags of the nodes by place, from the layer `first` on."""
        n_circuits, n_pos = len(kept), self.clean.n_pos
        by_place: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for i, node in enumerate(nodes):
            by_place[node.kind, node.site, node.layer].append(i)

        def per_position(kind: str, site: str, layer: int) -> Bool[Tensor, "circuit pos"]:
            rows = by_place.get((kind, site, layer), [])
            mask = torch.zeros(n_circuits, n_pos, dtype=torch.bool)
            mask[:, [nodes[i].pos for i in rows]] = kept[:, rows]
            return mask

        features: dict[Site, Tensor] = {}
        errors: dict[Site, Tensor] = {}
        for write, placement in self.spliced.placements.items():
            if write.layer < first:
                continue
            site = placement.site
            rows = by_place.get(("feature", site, write.layer), [])
            mask = torch.zeros(n_circuits, n_pos, placement.dictionary.n_features, dtype=torch.bool)
            mask[:, [nodes[i].pos for i in rows], [nodes[i].feature for i in rows]] = kept[:, rows]
            features[write] = mask
            errors[write] = per_position("error", site, write.layer)
        sublayers = {
            site: per_position("sublayer", "mlp", site.layer)
            for site in self.other.sublayers
            if site.layer >= first
        }
        return Keep(features, errors, sublayers, per_position("token", "embed", -1))
