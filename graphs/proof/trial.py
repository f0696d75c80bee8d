"""A trial: circuits of the units that the choices allow, measured on one set of prompts."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.nodes import Node, NodeTable
from circuits.spliced import SplicedModel
from graphs.measures import Metric, kl_to_model
from graphs.proof.choices import ProofChoices
from graphs.proof.runners import live_nodes, make_runner
from graphs.scorer import CircuitRunner

__all__ = ["Measure", "Outcome", "Trial"]

_COMPONENT = {"feature": "features", "token": "tokens", "sublayer": "MLPs"}


@dataclass(frozen=True)
class Outcome:
    """What several circuits do on every prompt."""

    metric: Float[Tensor, "circuit prompt"]
    kl: Float[Tensor, "circuit prompt"]
    """KL(model || circuit) of the next token, nats."""


Measure = Callable[[Bool[Tensor, "circuit unit"]], Outcome]
"""From circuits, each a row of flags over units, to what they do."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Circuits as flags over units, run as the choices say.

    Units are what patching can change and the choices allow to ablate; every other node has the
    same part in all circuits, the empty one included.
    """

    choices: ProofChoices
    runner: CircuitRunner = field(repr=False)
    metric: Metric = field(repr=False)
    tokens: Int[Tensor, "prompt pos"] = field(repr=False)
    nodes: NodeTable = field(repr=False)
    fixed: Bool[Tensor, " node"] = field(repr=False)
    """Whether a node that belongs to no unit is in every circuit."""
    unit: Int[Tensor, " node"] = field(repr=False)
    """The unit each node belongs to; -1 for none."""
    max_bytes: int

    @classmethod
    def on_prompts(
        cls,
        choices: ProofChoices,
        spliced: SplicedModel,
        clean: Int[Tensor, "prompt pos"],
        other: Int[Tensor, "other pos"] | None,
        metric: Metric,
        *,
        max_bytes: int = 256 * 2**20,
    ) -> "Trial":
        """Prepare a trial on prompts that took no part in choosing the circuit.

        Args:
            choices: the six choices.
            spliced: the model with its dictionaries.
            clean: the prompts, all of one length.
            other: where ablated values come from; see `make_runner`.
            metric: of last-position logits, one number a prompt, in the order of `clean`.
            max_bytes: about what the tensors of one call may take; one circuit is run at least.

        Raises:
            ValueError: if the unit is not a node, `other` is not what the value needs, or nothing
                can be ablated.
        """
        if choices.unit != "node":
            raise ValueError(
                f"a trial ablates nodes, got unit {choices.unit!r}; circuits of edges are run by "
                "`graphs.live_circuits.LiveCircuits`, circuits of paths by nothing here"
            )
        runner = make_runner(choices, spliced, clean, other)
        nodes = live_nodes(choices, runner)
        free = runner.patchable(nodes) & torch.tensor([_ablatable(n, choices) for n in nodes])
        if not bool(free.any()):
            raise ValueError(
                f"of {len(nodes)} nodes none can be ablated under these choices; the ablation "
                "changes nothing on these prompts"
            )
        dropped = torch.tensor([n.kind == "error" for n in nodes]) & (choices.errors == "dropped")
        unit = _unit_numbers(nodes, free, choices)
        return cls(choices, runner, metric, clean, nodes, ~free & ~dropped, unit, max_bytes)

    @property
    def units(self) -> list[Node]:
        """One node for every unit: the unit's first, with the activation of all of them added."""
        members: dict[int, list[Node]] = defaultdict(list)
        for node, number in zip(self.nodes, self.unit.tolist(), strict=True):
            if number >= 0:
                members[number].append(node)
        return [
            nodes[0].model_copy(update={"activation": sum(node.activation for node in nodes)})
            for nodes in members.values()
        ]

    @property
    def model_logits(self) -> Float[Tensor, "prompt d_vocab"]:
        """The original model's logits at the last position of the clean prompts."""
        noising = self.choices.direction == "noising"
        return self.runner.full_logits if noising else self.runner.empty_logits

    @property
    def model_metric(self) -> Float[Tensor, " prompt"]:
        """The original model's metric on every prompt."""
        return self.metric(self.model_logits).double().cpu()

    def circuit(
        self, nodes: Sequence[Node], kept: Bool[Tensor, " any"]
    ) -> tuple[Bool[Tensor, " unit"], int]:
        """A circuit over any node table as flags over units.

        Returns:
            The flags, and how many kept features are idle on these prompts: they are in use on
            none, so that ablating them would change nothing.

        Raises:
            ValueError: if there is not one flag a node.
        """
        if len(nodes) != len(kept):
            raise ValueError(f"want one flag a node, got {len(kept)} flags for {len(nodes)} nodes")
        wanted = {node.id: node for node, flag in zip(nodes, kept.tolist(), strict=True) if flag}
        inside = torch.tensor([node.id in wanted for node in self.nodes])
        flags = torch.zeros(int(self.unit.max()) + 1, dtype=torch.bool)
        flags[self.unit[inside & (self.unit >= 0)]] = True
        here = {node.id for node in self.nodes}
        idle = sum(node.kind == "feature" and i not in here for i, node in wanted.items())
        return flags, idle

    def carry(
        self, other: "Trial", circuits: Bool[Tensor, "circuit other_unit"]
    ) -> Bool[Tensor, "circuit unit"]:
        """Circuits of another trial's units as flags over this one's: those that share a node."""
        inside = torch.where(other.unit >= 0, circuits[:, other.unit.clamp_min(0)], False)
        return torch.stack([self.circuit(other.nodes, row)[0] for row in inside])

    def measure(self, kept: Bool[Tensor, "circuit unit"]) -> Outcome:
        """Run circuits, some at a time, everything outside of each ablated."""
        size = max(1, self.max_bytes // self._bytes_per_circuit())
        metrics, kls = [], []
        for chunk in kept.split(size):
            logits = self.runner.logits(self.nodes, self._node_flags(chunk))
            metrics += [self.metric(rows).double().cpu() for rows in logits]
            kls.append(kl_to_model(self.model_logits.double(), logits.double()).cpu())
        return Outcome(torch.stack(metrics), torch.cat(kls))

    def _node_flags(self, kept: Bool[Tensor, "circuit unit"]) -> Bool[Tensor, "circuit node"]:
        """What the runner keeps: with `denoising`, what is ablated stays as the corrupted run."""
        inside = torch.where(self.unit >= 0, kept[:, self.unit.clamp_min(0)], self.fixed)
        return inside if self.choices.direction == "noising" else ~inside

    def _bytes_per_circuit(self) -> int:
        """Masks, patched and computed activations of all dictionaries, and the logits."""
        model, placements = self.runner.spliced.model, self.runner.spliced.placements.values()
        features = sum(placement.dictionary.n_features for placement in placements)
        n_prompts, n_pos = self.tokens.shape
        numbers = n_pos * (3 * features + 8 * model.d_model) + 4 * model.d_vocab
        return n_prompts * (numbers * model.dtype.itemsize + 2 * n_pos * features)


def _ablatable(node: Node, choices: ProofChoices) -> bool:
    if node.kind == "error":
        return choices.errors == "as chosen"
    return _COMPONENT[node.kind] in choices.component


def _unit_numbers(
    nodes: NodeTable, free: Bool[Tensor, " node"], choices: ProofChoices
) -> Int[Tensor, " node"]:
    """Number the units in order of their first nodes."""
    numbers: dict[object, int] = {}
    unit = torch.full((len(nodes),), -1)
    for row in free.nonzero().flatten().tolist():
        node = nodes[row]
        place = (node.kind, node.site, node.layer, node.feature)
        key = node.id if choices.positions == "each" else place
        unit[row] = numbers.setdefault(key, len(numbers))
    return unit
