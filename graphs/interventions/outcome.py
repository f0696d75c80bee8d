"""Change nodes on the real model and see what its next token becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site
from circuits.spliced import SplicedModel
from graphs.faithfulness import Metric, kl_to_model
from graphs.interventions.changes import Change
from graphs.interventions.compiling import compile_changes, make_values
from graphs.interventions.running import run_frozen, run_live

__all__ = ["Attention", "Outcome", "intervene", "log_probability_of_likeliest"]

Attention = Literal["live", "frozen"]
"""Whether attention patterns and norms follow a change, or stay as they are on the prompt."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The next token before and after a change, on each prompt.

    Attributes:
        before: logits at the last position of the model as it is.
        after: with the nodes changed.
        metric_before: the metric of `before`.
        metric_after: the metric of `after`.
        kl: KL(before || after) of the next token, nats.
        activations_before: of the dictionaries whose features changed.
        activations_after: the same, as they went on.
    """

    before: Float[Tensor, "prompt d_vocab"]
    after: Float[Tensor, "prompt d_vocab"]
    metric_before: Float[Tensor, " prompt"]
    metric_after: Float[Tensor, " prompt"]
    kl: Float[Tensor, " prompt"]
    activations_before: dict[Site, Float[Tensor, "prompt pos feature"]]
    activations_after: dict[Site, Float[Tensor, "prompt pos feature"]]

    @property
    def effect(self) -> Float[Tensor, " prompt"]:
        """By how much the metric changed."""
        return self.metric_after - self.metric_before

    def top_before(self, k: int) -> tuple[Int[Tensor, "prompt k"], Float[Tensor, "prompt k"]]:
        """The `k` likeliest tokens of the model as it is, and their probabilities."""
        return _top(self.before, k)

    def top_after(self, k: int) -> tuple[Int[Tensor, "prompt k"], Float[Tensor, "prompt k"]]:
        """The `k` likeliest tokens after the change, and their probabilities."""
        return _top(self.after, k)


def intervene(
    spliced: SplicedModel,
    tokens: Int[Tensor, "prompt pos"],
    changes: Sequence[Change],
    *,
    other: Int[Tensor, "other other_pos"] | None = None,
    attention: Attention = "live",
    metric: Metric | None = None,
) -> Outcome:
    """Make changes, all together, and run the model on.

    The model is the real one: what its dictionaries miss goes on as ever (mode `exact`), and every
    feature that is not changed follows what changed before it.

    Args:
        spliced: the model with its dictionaries.
        tokens: prompts of one length.
        changes: from `ablate`, `steer` and `swap`; each node in one of them, once.
        other: the prompts that `corrupted` and `mean` values come from: counterparts row by row
            for the former.
        attention: `live` recomputes attention and norms; `frozen` holds them, errors and unreplaced
            MLPs at the prompt, as the graph does.
        metric: of last-position logits; None takes the log-probability of the token that is
            likeliest before the change.

    Raises:
        ValueError: if there is no change, a node does not exist here or is changed twice, or the
            other prompts do not fit.
    """
    if not changes:
        raise ValueError("nothing to change: give at least one of ablate, steer and swap")
    with torch.no_grad():
        clean = spliced.state(tokens)
    values = make_values(spliced, clean, changes, other)
    maps = compile_changes(spliced, changes, len(tokens), clean.n_pos, values)
    if attention == "live":
        run = run_live(spliced, tokens, maps)
    else:
        run = run_frozen(spliced, clean, tokens, maps)
    before = clean.logits[:, -1]
    measure = log_probability_of_likeliest(before) if metric is None else metric
    changed = [site for kind, site in maps if kind == "feature"]
    return Outcome(
        before=before,
        after=run.logits,
        metric_before=measure(before),
        metric_after=measure(run.logits),
        kl=kl_to_model(before, run.logits),
        activations_before={site: clean.activations[site] for site in changed},
        activations_after={site: run.activations[site] for site in changed},
    )


def log_probability_of_likeliest(before: Float[Tensor, "prompt d_vocab"]) -> Metric:
    """The metric `log p(token)`, for the token that `before` makes likeliest on each prompt.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        >>> log_probability_of_likeliest(logits)(torch.zeros(2, 2)).exp()
        tensor([0.5000, 0.5000])
    """
    likeliest = before.argmax(-1, keepdim=True)

    def metric(logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        return logits.log_softmax(-1).gather(-1, likeliest)[:, 0]

    return metric


def _top(
    logits: Float[Tensor, "prompt d_vocab"], k: int
) -> tuple[Int[Tensor, "prompt k"], Float[Tensor, "prompt k"]]:
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be from 1 to {logits.shape[1]} (the vocabulary), got {k}")
    p, ids = logits.softmax(-1).topk(k)
    return ids, p
