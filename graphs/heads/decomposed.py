"""A model taken apart into what its heads and MLPs read and write, from its weights.

Input-invariant but for the number of positions. Heads are the leading axis of everything, so that
each can read a residual stream of its own, and the query, key and value sides of all heads of a
layer are stacked as one axis `reader` of size 3 * head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from attribution.qk.rotary import rotate
from circuits.sites import NormName, Site
from circuits.subject import Norm, SubjectModel

__all__ = ["Block", "DecomposedModel", "decompose", "normalise"]


def normalise(
    x: Float[Tensor, "*rest d"], *, centred: bool, eps: float
) -> Float[Tensor, "*rest d"]:
    """`(x - mean(x)) / sqrt(var(x) + eps)`, or without the mean where not `centred` (RMSNorm)."""
    width = x.shape[-1:]
    if centred:
        return functional.layer_norm(x, width, eps=eps)
    return functional.rms_norm(x, width, eps=eps)


@dataclass(frozen=True, eq=False)
class Block:
    """One layer: reads `W_in, b_in` of the bare normalised stream, attends, writes `W_O`.

    The norm's gain, bias and centring are folded into `W_in` and `b_in`.
    """

    W_in: Float[Tensor, "reader d_model d_head"]
    b_in: Float[Tensor, "reader d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]
    allowed: Bool[Tensor, "pos pos"]
    cos: Float[Tensor, "pos rotary"]
    sin: Float[Tensor, "pos rotary"]
    score_scale: float
    softcap: float
    centred: bool
    eps: float
    mlp: Callable[[Tensor], Tensor]
    """The MLP behind its norm: its output from the residual stream it reads."""

    def normalise(self, stream: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """The bare normalised stream, as the heads read it."""
        return normalise(stream, centred=self.centred, eps=self.eps)

    def denominator(self, stream: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest 1"]:
        """What `normalise` divides by."""
        x = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        return (x.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def read(
        self, x: Float[Tensor, "one_or_reader row pos d_model"], readers: list[int] | slice
    ) -> Float[Tensor, "reader row pos d_head"]:
        """Queries, keys or values of the chosen readers, before any rotation of positions.

        From `normalise`d streams, each reader's own or one for all.
        """
        W, b = self.W_in[readers], self.b_in[readers]
        return (x.flatten(1, 2) @ W + b[:, None]).unflatten(1, x.shape[1:3])

    def attend(
        self,
        q: Float[Tensor, "head row query d_head"],
        k: Float[Tensor, "head row key d_head"],
        v: Float[Tensor, "head row key d_head"],
    ) -> Float[Tensor, "head row query d_head"]:
        """Values mixed by attention: what each head holds before `W_O`.

        Queries may be those of the last positions only.
        """
        n = q.shape[2]
        q = self.score_scale * rotate(q, self.cos[-n:], self.sin[-n:])
        scores = q @ rotate(k, self.cos, self.sin).mT
        if self.softcap:
            scores = self.softcap * (scores / self.softcap).tanh()
        return scores.masked_fill(~self.allowed[-n:], -torch.inf).softmax(-1) @ v

    def write(
        self, z: Float[Tensor, "head row pos d_head"], heads: list[int] | slice = slice(None)
    ) -> Float[Tensor, "head row pos d_model"]:
        """What each of the chosen heads adds to the stream; `b_O` belongs to none of them."""
        return (z.flatten(1, 2) @ self.W_O[heads]).unflatten(1, z.shape[1:3])


@dataclass(frozen=True, eq=False)
class DecomposedModel:
    """All layers, the embedding in front of them and the unembedding behind."""

    blocks: list[Block]
    parallel: bool
    embed: Callable[[Tensor], Tensor]
    """The residual stream before the first block, from token ids."""
    unembed: Callable[[Tensor], Tensor]
    """Logits [row, d_vocab] from the last stream [row, d_model], through the final norm."""


def decompose(model: SubjectModel, tokens: Int[Tensor, "batch pos"]) -> DecomposedModel:
    """Take a model apart, for prompts of as many positions as `tokens`.

    Grouped heads are expanded: every query head has keys and values of its own.

    Raises:
        ValueError: if heads of this architecture do not simply add up (norms behind attention or
            the MLP), queries and keys are normalised, or what was taken apart does not give the
            model's own logits on the first prompt.
    """
    sites = [s for layer in range(model.n_layers) for s in model.score_sites(layer)]
    _check_architecture(model, sites)
    with torch.no_grad():
        logits, found = model.run(tokens[:1], capture=sites)
        blocks = [_block(model, layer, found) for layer in range(model.n_layers)]
        parts = DecomposedModel(
            blocks,
            model.parallel,
            lambda tokens: model.read(tokens, [Site("resid_pre", 0)])[Site("resid_pre", 0)],
            partial(_unembed, model, _norm(model, "final"), model.norm_eps("final")),
        )
        _check_logits(model, logits[:, -1], _whole(parts, tokens[:1]))
    return parts


def _check_architecture(model: SubjectModel, sites: list[Site]) -> None:
    kinds = {site.kind for site in sites}
    for layer in range(model.n_layers):
        for name in ("ln1_post", "ln2_post"):
            if model.norm(name, layer) is not None:
                raise ValueError(
                    f"{model.name!r} normalises what attention or the MLP writes ({name}), so that "
                    "its heads do not add up; want an architecture without norms behind sublayers"
                )
    if kinds & {"q_norm_scale", "k_norm_scale"}:
        raise ValueError(f"{model.name!r} normalises queries and keys; want one that does not")
    if "attn_scores" not in kinds:
        raise ValueError(f"{model.name!r} does not show its attention scores; load it eagerly")


def _check_logits(
    model: SubjectModel, want: Float[Tensor, "row d_vocab"], found: Float[Tensor, "row d_vocab"]
) -> None:
    gap = float((want - found).abs().max() / want.abs().max())
    limit = 1e-5 if want.dtype == torch.float64 else 1e-3  # libraries round norms to float32
    if not gap < limit:
        raise ValueError(
            f"{model.name!r} taken apart gives other logits than the model (relative gap {gap:.2g},"
            f" want below {limit:g}); its architecture is not one of heads and MLPs that add up"
        )


def _norm(model: SubjectModel, name: NormName, layer: int = 0) -> Norm:
    norm = model.norm(name, layer)
    if norm is None:
        raise ValueError(f"{model.name!r} has no norm {name!r} at layer {layer}; want one there")
    return norm


def _block(model: SubjectModel, layer: int, found: dict[Site, Tensor]) -> Block:
    norm, qk, heads = _norm(model, "ln1", layer), model.query_key(layer), model.heads(layer)
    W = torch.cat([qk.W_Q, qk.W_K, heads.W_V])
    b = torch.cat([qk.b_Q, qk.b_K, heads.b_V]) + torch.einsum("d,rdh->rh", norm.bias, W)
    W = W * norm.gain[:, None]
    W = W - W.mean(1, keepdim=True) if norm.centred else W
    scores = found[Site("attn_scores", layer)][0, 0]
    none = scores.new_zeros(len(scores), 0)
    tables = [found.get(Site(kind, layer)) for kind in ("rotary_cos", "rotary_sin")]
    cos, sin = (none if table is None else table[0] for table in tables)
    name: NormName = "ln1" if model.norm("ln2", layer) is None else "ln2"
    return Block(
        W,
        b,
        heads.W_O,
        heads.b_O,
        scores > torch.finfo(scores.dtype).min / 2,
        cos,
        sin,
        qk.scale,
        qk.softcap,
        norm.centred,
        model.norm_eps("ln1", layer),
        partial(_mlp, model, layer, _norm(model, name, layer), model.norm_eps(name, layer)),
    )


def _mlp(
    model: SubjectModel, layer: int, norm: Norm, eps: float, stream: Float[Tensor, "row pos d"]
) -> Float[Tensor, "row pos d"]:
    return model.mlp(
        layer, normalise(stream, centred=norm.centred, eps=eps) * norm.gain + norm.bias
    )


def _unembed(
    model: SubjectModel, norm: Norm, eps: float, stream: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_vocab"]:
    x = normalise(stream, centred=norm.centred, eps=eps) * norm.gain + norm.bias
    logits, cap = x @ model.W_U + model.b_U, model.logit_softcap
    return cap * (logits / cap).tanh() if cap else logits


def _whole(parts: DecomposedModel, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
    """Last-position logits of the parts put together again."""
    stream = parts.embed(tokens)
    for block in parts.blocks:
        z = block.attend(*block.read(block.normalise(stream[None]), slice(None)).chunk(3))
        middle = stream + block.write(z).sum(0) + block.b_O
        stream = middle + block.mlp(stream if parts.parallel else middle)
    return parts.unembed(stream[:, -1])
