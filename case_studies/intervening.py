"""One intervention as a record: what it does to the next token, the metric and the text."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution import LogitDifference, Node
from case_studies.tasks.metrics import logit_difference
from circuits import SplicedModel, SubjectModel
from circuits.sites import Site
from graphs.faithfulness import Metric
from graphs.interventions.changes import Change
from graphs.interventions.compiling import place_of
from graphs.interventions.continuing import continue_prompt
from graphs.interventions.outcome import Attention, Outcome, intervene

__all__ = ["intervention_record", "metric_of"]


def metric_of(model: SubjectModel, target: LogitDifference) -> Metric:
    """The logit difference that `target` explains, of logits at the last position.

    Raises:
        ValueError: if it is at another position, or has nothing to be taken off.
    """
    correct, wrong = (_ids(model, side) for side in (target.correct, target.wrong))
    if target.pos != -1 or not len(wrong):
        raise ValueError(
            "the metric of an intervention is a logit difference at the last position; give "
            "--target-correct and --target-wrong, and no --target-pos"
        )

    def metric(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        return logit_difference(logits, [correct] * len(logits), [wrong] * len(logits))

    return metric


def _ids(model: SubjectModel, tokens: str | int | Sequence[str | int]) -> Int[Tensor, " token"]:
    some = [tokens] if isinstance(tokens, str | int) else list(tokens)
    ids = [model.single_token(token) if isinstance(token, str) else token for token in some]
    return torch.tensor(ids, dtype=torch.long, device=model.device)


def intervention_record(
    spliced: SplicedModel,
    tokens: Int[Tensor, " pos"],
    changes: Sequence[Change],
    *,
    other: Int[Tensor, "other other_pos"] | None = None,
    attention: Attention = "live",
    metric: Metric | None = None,
    top: int = 5,
    n_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """What changes of one prompt's nodes do, before and after.

    Args:
        spliced: the model with its dictionaries.
        tokens: the prompt.
        changes: made together.
        other: as in `intervene`.
        attention: of the next token; text is always written by the real model.
        metric: as in `intervene`.
        top: likeliest tokens to list.
        n_tokens: tokens of text; 0 writes none.
        temperature: 0 writes the likeliest, above it draws.
        seed: of the drawing.
    """
    model = spliced.model
    outcome = intervene(
        spliced, tokens[None], changes, other=other, attention=attention, metric=metric
    )
    record: dict[str, Any] = {
        "model": model.name,
        "prompt": "".join(model.token_strings(tokens)),
        "attention": attention,
        "metric_before": float(outcome.metric_before[0]),
        "metric_after": float(outcome.metric_after[0]),
        "kl": float(outcome.kl[0]),
        "top_before": _top(model, *outcome.top_before(top)),
        "top_after": _top(model, *outcome.top_after(top)),
        "features": _features(spliced, tokens, changes, outcome),
        "text_before": None,
        "text_after": None,
    }
    if n_tokens:
        for name, made in (("text_before", ()), ("text_after", changes)):
            written = continue_prompt(
                spliced,
                tokens,
                made,
                n_tokens=n_tokens,
                temperature=temperature,
                seed=seed,
                other=other if made else None,
            )
            record[name] = "".join(model.token_strings(written))
    return record


def _top(
    model: SubjectModel, ids: Int[Tensor, "one k"], p: Float[Tensor, "one k"]
) -> list[dict[str, Any]]:
    pairs = zip(model.token_strings(ids[0]), p[0].tolist(), strict=True)
    return [{"token": token, "probability": value} for token, value in pairs]


def _features(
    spliced: SplicedModel, tokens: Int[Tensor, " pos"], changes: Sequence[Change], outcome: Outcome
) -> list[dict[str, Any]]:
    """Activations of the changed features, where they were or are active."""
    strings = spliced.model.token_strings(tokens)
    nodes = (node for change in changes for node in (*change.nodes, *change.partners))
    records = []
    for node in nodes:
        if node.kind != "feature":
            continue
        _, site = place_of(spliced, node)
        before, after = _column(outcome, site, node)
        for pos in range(len(tokens)) if node.pos < 0 else (node.pos,):
            if node.pos < 0 and before[pos] == after[pos] == 0:
                continue
            records.append(
                {
                    "node": node.model_copy(update={"pos": pos}).id,
                    "token": strings[pos],
                    "before": before[pos],
                    "after": after[pos],
                }
            )
    return records


def _column(outcome: Outcome, site: Site, node: Node) -> tuple[list[float], list[float]]:
    sides = (outcome.activations_before, outcome.activations_after)
    before, after = (side[site][0, :, node.feature].tolist() for side in sides)
    return before, after
