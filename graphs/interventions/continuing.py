"""Text that the model writes with nodes changed at every step."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.spliced import SplicedModel
from graphs.interventions.changes import Change
from graphs.interventions.compiling import compile_changes, make_values
from graphs.interventions.running import run_live

__all__ = ["continue_prompt"]


def continue_prompt(
    spliced: SplicedModel,
    tokens: Int[Tensor, " pos"],
    changes: Sequence[Change] = (),
    *,
    n_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
    other: Int[Tensor, "other other_pos"] | None = None,
) -> Int[Tensor, " written"]:
    """Let the real model write on, with `changes` made anew at each step.

    Nodes at one position change there, however far the text has come. Nodes at all positions change
    at the written ones too; where their values come from a prompt, at its positions alone.

    Args:
        spliced: the model with its dictionaries.
        tokens: the prompt.
        changes: as in `intervene`; none writes the model's own text.
        n_tokens: how many tokens to write.
        temperature: 0 takes the likeliest token; above, tokens are drawn from
            `softmax(logits / temperature)`.
        seed: of the drawing: the same numbers are drawn with and without changes.
        other: as in `intervene`.

    Returns:
        The tokens written; fewer than `n_tokens` if the last is BOS, which models use to end.

    Raises:
        ValueError: if the text would not fit the model, or as in `intervene`.
    """
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if n_tokens < 1 or len(tokens) + n_tokens > spliced.model.n_ctx:
        raise ValueError(
            f"want 1 to {spliced.model.n_ctx - len(tokens)} tokens after a prompt of "
            f"{len(tokens)} ({spliced.model.name!r} reads {spliced.model.n_ctx}), got {n_tokens}"
        )
    with torch.no_grad():
        values = make_values(spliced, spliced.state(tokens[None]), changes, other)
    generator = torch.Generator().manual_seed(seed)
    text = tokens
    for _ in range(n_tokens):
        maps = compile_changes(spliced, changes, 1, len(text), values)
        logits = run_live(spliced, text[None], maps).logits[0]
        drawn = _draw(logits, temperature, float(torch.rand((), generator=generator)))
        text = torch.cat([text, text.new_tensor([drawn])])
        if drawn == spliced.model.bos_token:
            break
    return text[len(tokens) :]


def _draw(logits: Float[Tensor, " d_vocab"], temperature: float, u: float) -> int:
    """The likeliest token, or the one at which the cumulative probability exceeds `u`."""
    if temperature == 0:
        return int(logits.argmax())
    p = (logits.double() / temperature).softmax(-1)
    return min(int((p.cumsum(0) <= u).sum()), len(p) - 1)
