"""Pullbacks: one feature's reading direction in terms of an earlier dictionary's features."""

from jaxtyping import Float, Int
from torch import Tensor

from attribution.invariant.routes import Head
from attribution.invariant.strongest import largest_columns
from attribution.invariant.weights import virtual_weights
from circuits.spliced import SplicedModel

__all__ = ["pullback", "pullback_on_prompt", "top_pullback"]


def pullback(
    spliced: SplicedModel, target: str, feature: int, onto: str, *, head: Head | None = None
) -> Float[Tensor, " source"]:
    """How strongly each feature of `onto` writes into what one feature reads: `W_dec e_t`.

    Input-invariant (Dunefsky et al. 2024): one row of `virtual_weights`, through the
    OV of `head` if one is given.

    Args:
        spliced: holds both dictionaries.
        target: the reading dictionary.
        feature: which of its features is pulled back.
        onto: the earlier dictionary.
        head: (layer, query head) on the way; None is the residual stream alone.

    Raises:
        ValueError: as `virtual_weights`.
    """
    return virtual_weights(spliced, target, onto, head=head, target_features=[feature])[0]


def top_pullback(
    spliced: SplicedModel,
    target: str,
    feature: int,
    onto: str,
    *,
    head: Head | None = None,
    top: int = 10,
) -> list[tuple[str, float]]:
    """The features of `onto` that write most into one feature, by size, such as `mlp.0.17`.

    Arguments and errors as `pullback`.
    """
    scores = pullback(spliced, target, feature, onto, head=head)
    (found,) = largest_columns(scores.abs()[None], min(top, len(scores)))
    name = spliced.placements[spliced.write_site(onto)].name
    names = (f"{name}.{source}" for source in found.tolist())
    return list(zip(names, scores[found].tolist(), strict=True))


def pullback_on_prompt(
    spliced: SplicedModel,
    prompt: str | Int[Tensor, " pos"],
    target: str,
    feature: int,
    onto: str,
    *,
    pos: int = -1,
    head: Head | None = None,
) -> Float[Tensor, " source"]:
    """The pullback times the features' activations at one position: input times gradient.

        score[s] = a_s(pos) <e_t, d_s>

    before the division by the denominators of the norms and, through a head, at attention 1: over
    the target's denominator, the direct part of the edges into `feature` at `pos`.

    Args:
        spliced: holds both dictionaries.
        prompt: text, or token ids.
        target: the reading dictionary.
        feature: which of its features is pulled back.
        onto: the earlier dictionary.
        pos: where the earlier dictionary is read; -1 is the last position.
        head: (layer, query head) on the way; None is the residual stream alone.

    Raises:
        ValueError: as `virtual_weights`, or if the prompt cannot be read or has no position `pos`.
    """
    scores = pullback(spliced, target, feature, onto, head=head)
    model = spliced.model
    tokens = model.tokenize(prompt) if isinstance(prompt, str) else model.check_tokens(prompt)
    if not -len(tokens) <= pos < len(tokens):
        raise ValueError(f"pos must be in [-{len(tokens)}, {len(tokens)}), got {pos}")
    state = spliced.state(tokens[None])
    return scores * state.activations[spliced.write_site(onto)][0, pos]
