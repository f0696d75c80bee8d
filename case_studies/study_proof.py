"""The proof of a study: one circuit and its controls on aligned prompts that did not choose it."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution import Node
from case_studies.tasks.task import Task, TaskPrompt
from circuits import SplicedModel
from graphs import ProofChoices, ProofTable, Trial, beside_controls, prove

__all__ = ["ALL_FOUND", "prove_circuit"]

ALL_FOUND = "every node found on the choosing prompts"

Progress = Callable[[str, float], None]
"""Called with what is going on and the share of it that is done."""


def prove_circuit(
    choices: ProofChoices,
    spliced: SplicedModel,
    task: Task,
    *,
    choosing: Sequence[TaskPrompt],
    proving: Sequence[TaskPrompt],
    nodes: Sequence[Node],
    kept: Bool[Tensor, " node"],
    n_random: int,
    n_knockouts: int,
    n_contexts: int,
    seed: int,
    progress: Progress,
) -> ProofTable:
    """Prove a circuit on the prompts of `proving`, next to its controls.

    Value `mean` is that of the corrupted prompts of `choosing`, position by position.

    Args:
        choices: the six choices, and what becomes of errors.
        spliced: the model with its dictionaries.
        task: whose metric is measured.
        choosing: the prompts that chose the circuit; greedy knockouts are searched on them.
        proving: other prompts, aligned with them.
        nodes: every node found on the choosing prompts, a control of its own.
        kept: which of `nodes` are the circuit.
        n_random: random circuits of the same size per layer.
        n_knockouts: random knockouts K for completeness.
        n_contexts: further ones, in which every node's harm is measured, beside none.
        seed: of random circuits, knockouts and bootstrap.
        progress: told how far the proof is, then the controls.
    """
    reference = _tokens(choosing, "corrupted_tokens")

    def trial(prompts: Sequence[TaskPrompt]) -> Trial:
        def metric(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
            return task.metric(logits, prompts)

        other = {
            "corrupted": _tokens(prompts, "corrupted_tokens"),
            "mean": reference,
            "zero": None,
        }[choices.value]
        return Trial.on_prompts(choices, spliced, _tokens(prompts, "clean_tokens"), other, metric)

    proved = trial(proving)
    proof = prove(
        proved,
        nodes,
        kept,
        choosing=trial(choosing),
        metric_name=task.metric_name,
        n_random=n_knockouts,
        n_contexts=n_contexts,
        seed=seed,
        progress=lambda done, total: progress("proof", done / total),
    )
    return beside_controls(
        proof,
        proved,
        nodes,
        kept,
        controls={ALL_FOUND: torch.ones_like(kept)[None]},
        n_random=n_random,
        progress=lambda done, total: progress("controls", done / total),
    )


def _tokens(prompts: Sequence[TaskPrompt], field: str) -> Tensor:
    return torch.stack([getattr(prompt, field) for prompt in prompts])
