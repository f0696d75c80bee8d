"""Everything that the attention scores of one layer depend on, held at one prompt.

Input-dependent. The scores are rebuilt from the weights here, the way the model computes them
(both ends rotated), and compared with the model's own before anything is explained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.qk.rotary import rotate
from attribution.qk.sources import StreamSources, stream_sources
from circuits.selfcheck import UnsupportedArchitectureError
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel
from circuits.subject import QueryKey, SubjectModel

__all__ = ["HeldAttention", "Rotary", "hold_attention", "rotary_tables", "softcapped"]

_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Rotary:
    """Tables of the rotation of each position; of width 0 where a layer rotates nothing."""

    cos: Float[Tensor, "pos rotary"]
    sin: Float[Tensor, "pos rotary"]


@dataclass(frozen=True, eq=False)
class HeldAttention:
    """One layer's attention at one prompt.

    Attributes:
        model: the subject model.
        state: what is held.
        layer: which block.
        sources: what adds up to the stream that the block reads at a position; kept once asked.
        weights: queries and keys.
        rotary: tables of the rotation.
        query_scale: denominators of the query norm; 1 where there is none.
        key_scale: likewise, one entry a query head.
        scores: before any softcap.
        model_scores: what the model's softmax read: after the softcap and the mask.
        visible: which keys the mask leaves (causal, and a sliding window where there is one).
    """

    model: SubjectModel
    state: FrozenState
    layer: int
    sources: Callable[[int], StreamSources]
    weights: QueryKey
    rotary: Rotary
    query_scale: Float[Tensor, "head pos"]
    key_scale: Float[Tensor, "head pos"]
    scores: Float[Tensor, "head pos pos"]
    model_scores: Float[Tensor, "head pos pos"]
    visible: Bool[Tensor, "head pos pos"]

    @property
    def pattern(self) -> Float[Tensor, "head pos pos"]:
        """The probabilities."""
        return self.state.values[Site("pattern", self.layer)][0]


def softcapped(scores: Float[Tensor, "*rest"], softcap: float) -> Float[Tensor, "*rest"]:
    """`softcap * tanh(scores / softcap)`, or the scores where there is no softcap (0)."""
    return softcap * torch.tanh(scores / softcap) if softcap else scores


def rotary_tables(
    model: SubjectModel, captured: dict[Site, Tensor], layer: int, n_pos: int
) -> Rotary:
    """The tables that a run of `model` showed; a layer that showed none rotates nothing."""
    cos, sin = Site("rotary_cos", layer), Site("rotary_sin", layer)
    if cos not in captured:
        return Rotary(model.W_E.new_ones(n_pos, 0), model.W_E.new_zeros(n_pos, 0))
    return Rotary(captured[cos][0].to(model.dtype), captured[sin][0].to(model.dtype))


def hold_attention(
    spliced: SplicedModel, prompt: str | Int[Tensor, " pos"], layer: int
) -> HeldAttention:
    """Run `prompt` and keep what the scores of `layer` depend on.

    Raises:
        ValueError: if there is no such layer, or the prompt is empty or too long.
        UnsupportedArchitectureError: if the model's own scores are not those of the formula of
            `QueryKey`.
    """
    model = spliced.model
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"{model.name!r} has layers 0 to {model.n_layers - 1}, got layer {layer}")
    tokens = model.tokenize(prompt) if isinstance(prompt, str) else model.check_tokens(prompt)
    weights, n_pos = model.query_key(layer), len(tokens)
    with torch.no_grad():
        state = spliced.state(tokens[None])
        sites = model.score_sites(layer)
        # A fresh tensor at every denominator makes each norm compute in the model's own dtype.
        fresh = [*model.scale_sites(), *(s for s in sites if s.kind.endswith("norm_scale"))]
        _, captured = model.run(
            state.tokens, edits={site: torch.clone for site in fresh}, capture=sites
        )
        rotary = rotary_tables(model, captured, layer, n_pos)
        query_scale, key_scale = (
            _head_scale(model, captured, Site(kind, layer), n_pos)
            for kind in ("q_norm_scale", "k_norm_scale")
        )
        scores = _scores(model, state, layer, rotary, query_scale, key_scale)
    model_scores = captured[Site("attn_scores", layer)][0].to(model.dtype)
    visible = model_scores > torch.finfo(torch.float32).min / 2
    gap = (softcapped(scores, weights.softcap) - model_scores)[visible].abs().max()
    if not gap <= _TOLERANCE * model_scores[visible].abs().max():
        raise UnsupportedArchitectureError(
            f"the attention scores of layer {layer} of {model.name!r} differ from "
            f"scale * <query, key> by {gap:.2g}; they cannot be explained by this formula"
        )
    return HeldAttention(
        model,
        state,
        layer,
        lru_cache(maxsize=None)(partial(stream_sources, spliced, state, layer)),
        weights,
        rotary,
        query_scale,
        key_scale,
        scores,
        model_scores,
        visible,
    )


def _head_scale(
    model: SubjectModel, captured: dict[Site, Tensor], site: Site, n_pos: int
) -> Float[Tensor, "head pos"]:
    """Denominators of a query or key norm, one row a query head; 1 where there is no norm."""
    if site not in captured:
        return model.W_E.new_ones(model.n_heads, n_pos)
    scale = captured[site][0, :, :, 0].to(model.dtype)
    return scale.repeat_interleave(model.n_heads // scale.shape[0], 0)


def _scores(
    model: SubjectModel,
    state: FrozenState,
    layer: int,
    rotary: Rotary,
    query_scale: Float[Tensor, "head pos"],
    key_scale: Float[Tensor, "head pos"],
) -> Float[Tensor, "head pos pos"]:
    """`scale * <R_q q, R_k k>` of every pair of positions, before softcap and mask."""
    weights, ln1 = model.query_key(layer), model.norm("ln1", layer)
    assert ln1 is not None
    x = state.values[Site("resid_pre", layer)][0]
    x = ln1.linear(x, state.values[Site("ln1_scale", layer)][0].to(x.dtype)) + ln1.bias
    q = (x @ weights.W_Q + weights.b_Q[:, None]) / query_scale[..., None]
    k = (x @ weights.W_K + weights.b_K[:, None]) / key_scale[..., None]
    q, k = rotate(q, rotary.cos, rotary.sin), rotate(k, rotary.cos, rotary.sin)
    return weights.scale * (q @ k.transpose(1, 2))
