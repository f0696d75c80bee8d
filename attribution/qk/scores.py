"""QK attribution: an attention score as an exact sum over pairs of sources (design, 2.7).

Input-dependent, each term a product of an input-dependent and an input-invariant factor.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from attribution.qk.held import HeldAttention, hold_attention, softcapped
from attribution.qk.results import AttentionContrast, AttentionRow, AttentionScore
from attribution.qk.sides import key_side, query_side
from circuits.spliced import SplicedModel

__all__ = ["attention_contrast", "attention_row", "attention_score", "score_at"]


def attention_score(
    spliced: SplicedModel,
    prompt: str | Int[Tensor, " pos"],
    layer: int,
    head: int,
    *,
    key: int,
    query: int = -1,
) -> AttentionScore:
    """Why `head` of `layer` looks from `query` at `key` as much as it does.

        score = scale * <R_q (ln1(x_q) W_Q + b_Q), R_k (ln1(x_k) W_K + b_K)>
              = sum over pairs of sources (s of x_q, t of x_k)

    The norm denominators are held; then both ends are linear in the sources of the residual stream
    at their position (`stream_sources`), and the score is bilinear (Kamath et al. 2025, "Tracing
    attention computation through feature interactions"; Elhage et al. 2021, the QK circuit).

    Args:
        spliced: the model with its dictionaries.
        prompt: text, or token ids.
        layer: which block.
        head: which query head.
        key: the position looked at; negative counts from the end.
        query: the position that looks; -1 is the last.

    Raises:
        ValueError: if there is no such layer, head or position, or the mask hides the key.
    """
    return score_at(hold_attention(spliced, prompt, layer), head, key=key, query=query)


def score_at(held: HeldAttention, head: int, *, key: int, query: int = -1) -> AttentionScore:
    """`attention_score` where the prompt was run already: for many scores of one layer.

    Raises:
        ValueError: if there is no such head or position, or the mask hides the key.
    """
    head, query, key = _place(held, head, query, key)
    at_query, at_key = query_side(held, head, query), key_side(held, head, key, query)
    weights, score = held.weights, held.scores[head, query, key]
    return AttentionScore(
        layer=held.layer,
        head=head,
        query=query,
        key=key,
        score=float(score),
        capped_score=float(softcapped(score, weights.softcap)),
        model_score=float(held.model_scores[head, query, key]),
        pattern=float(held.pattern[head, query, key]),
        softcap=weights.softcap,
        query_sources=at_query.nodes,
        key_sources=at_key.nodes,
        query_factors=at_query.factors,
        key_factors=at_key.factors,
        invariant=weights.scale * (at_query.vectors @ at_key.vectors.T),
    )


def attention_contrast(
    spliced: SplicedModel,
    prompt: str | Int[Tensor, " pos"],
    layer: int,
    head: int,
    *,
    here: int,
    there: int,
    query: int = -1,
) -> AttentionContrast:
    """Why `head` of `layer` looks from `query` at `here` rather than at `there`.

    Raises:
        ValueError: as `attention_score`.
    """
    held = hold_attention(spliced, prompt, layer)
    return AttentionContrast(
        score_at(held, head, key=here, query=query), score_at(held, head, key=there, query=query)
    )


def attention_row(
    spliced: SplicedModel,
    prompt: str | Int[Tensor, " pos"],
    layer: int,
    head: int,
    *,
    query: int = -1,
) -> AttentionRow:
    """All the scores of `head` of `layer` at `query`, summed over the sources on one side.

    Raises:
        ValueError: as `attention_score`.
    """
    held = hold_attention(spliced, prompt, layer)
    head, query, _ = _place(held, head, query, query)
    keys = held.visible[head, query].nonzero()[:, 0]
    at_query, scale = query_side(held, head, query), held.weights.scale
    at_keys = [key_side(held, head, key, query) for key in keys.tolist()]
    whole_keys = torch.stack([side.whole for side in at_keys])
    return AttentionRow(
        held.layer,
        head,
        query,
        keys,
        held.scores[head, query, keys],
        held.pattern[head, query, keys],
        at_query.nodes,
        scale * at_query.factors[:, None] * (at_query.vectors @ whole_keys.T),
        tuple(side.nodes for side in at_keys),
        tuple(scale * side.factors * (side.vectors @ at_query.whole) for side in at_keys),
    )


def _place(held: HeldAttention, head: int, query: int, key: int) -> tuple[int, int, int]:
    """Head and positions that exist, counted from 0, and a key that the mask does not hide."""
    n_heads, n_pos = held.scores.shape[:2]
    if not 0 <= head < n_heads:
        raise ValueError(f"layer {held.layer} has heads 0 to {n_heads - 1}, got head {head}")
    for name, pos in (("query", query), ("key", key)):
        if not -n_pos <= pos < n_pos:
            raise ValueError(f"{name} must be in [-{n_pos}, {n_pos}), got {pos}")
    query, key = query % n_pos, key % n_pos
    if not held.visible[head, query, key]:
        raise ValueError(
            f"the mask of layer {held.layer} hides key {key} from query {query}; choose one of "
            f"{held.visible[head, query].nonzero()[:, 0].tolist()}"
        )
    return head, query, key
