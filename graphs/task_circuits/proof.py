"""Circuits by role, run and proved on prompts of any frame and length.

Input-dependent. Prompts whose positions have the same names are run together; metric and bootstrap
are over all prompts at once.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attribution.nodes import Node
from circuits.spliced import SplicedModel
from graphs.faithfulness import Metric, kl_to_model
from graphs.proof.estimates import Estimate, check_span, mean_estimate, resampling, share_estimate
from graphs.scorer import CircuitRunner
from graphs.task_circuits.roles import nodes_on

__all__ = ["RoleProof", "RoleRunner", "prove_roles"]

Prompts = Sequence[Int[Tensor, " _pos"]]
"""Token ids, prompts of any lengths."""


class RoleProof(BaseModel):
    """A circuit by role on prompts of mixed frames, everything else at its corrupted value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    faithfulness: Estimate = Field(description="(m(C) - m(empty)) / (m(M) - m(empty)), from means")
    kl: Estimate = Field(description="mean KL(model || circuit) at the last position, nats")
    metric_model: float
    metric_circuit: float
    metric_empty: float
    control_faithfulness: list[float] = Field(description="of every control, in their order")
    n_prompts: int
    n_alignments: int = Field(description="different sequences of position names")


@dataclass(frozen=True, eq=False)
class RoleRunner:
    """Runs circuits by role; `CircuitRunner` for prompts that do not line up.

    Attributes:
        columns: the names that the nodes' positions stand for.
        groups: which prompts go together, the names of their positions, and their runner.
    """

    columns: tuple[str, ...]
    groups: tuple[tuple[list[int], tuple[str, ...], CircuitRunner], ...] = field(repr=False)

    @classmethod
    def on_prompts(
        cls,
        spliced: SplicedModel,
        clean: Prompts,
        corrupted: Prompts,
        names: Sequence[Sequence[str]],
        columns: Sequence[str],
    ) -> "RoleRunner":
        """Hold both sets of prompts, those of one alignment together.

        Args:
            spliced: the model with its dictionaries.
            clean: the prompts.
            corrupted: their counterparts, each of the same length.
            names: one a position of every prompt (`name_positions`).
            columns: of the circuits to be run (`RoleGraph.columns`).

        Raises:
            ValueError: if there is no prompt, or prompts, counterparts and names do not line up.
        """
        lengths = [[len(each) for each in part] for part in (clean, corrupted, names)]
        if not lengths[0] or lengths[0] != lengths[1] or lengths[0] != lengths[2]:
            raise ValueError(
                "want prompts with counterparts and names of the same lengths, got lengths "
                f"{lengths[0][:5]}, {lengths[1][:5]} and {lengths[2][:5]} (the first five)"
            )
        same: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for prompt, own in enumerate(names):
            same[tuple(own)].append(prompt)
        groups = []
        for own, members in same.items():
            pair = (torch.stack([part[i] for i in members]) for part in (clean, corrupted))
            groups.append((members, own, CircuitRunner.on_prompts(spliced, *pair)))
        return cls(tuple(columns), tuple(groups))

    @property
    def full_logits(self) -> Float[Tensor, "prompt d_vocab"]:
        """The original model's logits at the last position of the clean prompts."""
        return self._in_order([runner.full_logits for _, _, runner in self.groups])

    @property
    def empty_logits(self) -> Float[Tensor, "prompt d_vocab"]:
        """With every node patched."""
        return self._in_order([runner.empty_logits for _, _, runner in self.groups])

    def logits(
        self, nodes: Sequence[Node], kept: Bool[Tensor, "circuit node"]
    ) -> Float[Tensor, "circuit prompt d_vocab"]:
        """Last-position logits of several circuits by role, prompts in the order given."""
        parts = []
        for _, names, runner in self.groups:
            own, origin = nodes_on(nodes, self.columns, names)
            parts.append(runner.logits(own, kept[:, origin]).transpose(0, 1))
        return self._in_order(parts).transpose(0, 1)

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows of all groups, put back in the order of the prompts."""
        prompts = torch.tensor([prompt for members, _, _ in self.groups for prompt in members])
        rows = torch.cat(list(parts))
        return rows[prompts.argsort().to(rows.device)]


def prove_roles(
    runner: RoleRunner,
    nodes: Sequence[Node],
    kept: Bool[Tensor, " node"],
    metric: Metric,
    *,
    controls: Bool[Tensor, "control node"] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    batch: int = 8,
) -> RoleProof:
    """Measure a circuit by role on the unfrozen model, on prompts that took no part in choosing it.

    Args:
        runner: the prompts.
        nodes: by role: the circuit's, or more of them, from which controls are drawn.
        kept: which of `nodes` are the circuit.
        metric: of last-position logits, one number a prompt, in the runner's order.
        controls: further circuits over `nodes`, such as `random_circuits`; None for none.
        n_resamples: of the bootstrap over prompts, all frames together.
        seed: of the bootstrap.
        batch: circuits run at a time.

    Raises:
        ValueError: if the model's metric does not differ from the empty circuit's.
    """
    circuits = kept[None] if controls is None else torch.cat([kept[None], controls])
    model, empty = (metric(x).double().cpu() for x in (runner.full_logits, runner.empty_logits))
    weights = resampling(len(model), n_resamples=n_resamples, seed=seed)
    span = check_span(model, empty, weights)
    found, first = [], None
    for chunk in circuits.split(batch):
        logits = runner.logits(nodes, chunk)
        first = logits[0] if first is None else first
        found += [metric(rows).double().cpu() for rows in logits]
    assert first is not None, "there is at least the circuit itself"
    kl = kl_to_model(runner.full_logits.double(), first.double()).cpu()
    return RoleProof(
        faithfulness=share_estimate(found[0] - empty, span, weights),
        kl=mean_estimate(kl, weights),
        metric_model=float(model.mean()),
        metric_circuit=float(found[0].mean()),
        metric_empty=float(empty.mean()),
        control_faithfulness=[float((x - empty).mean() / span.mean()) for x in found[1:]],
        n_prompts=len(model),
        n_alignments=len(runner.groups),
    )
