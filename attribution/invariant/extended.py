"""The extended embedding: each vocabulary token carried through layer 0. Input-invariant.

Where input and output embeddings are tied (GPT-2), the layers above read a token mostly from what
layer 0's MLP makes of it, so de-embedding through `W_E` alone misleads (tc8[1] of GPT-2 small).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.invariant.deembedding import check_feature, deembed, effective_encoder, top_tokens
from circuits.sites import Site
from circuits.spliced import SplicedModel
from circuits.subject import Edit, Norm, SubjectModel

__all__ = ["deembed_feature_extended", "extended_embedding", "standardise_rows"]


class _Reached(Exception):
    """Ends a run at the top of layer 0: the layers above would do most of the work for nothing."""


def extended_embedding(
    model: SubjectModel,
    *,
    attend_to_itself: bool = False,
    chunk: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "d_vocab d_model"]:
    """The residual stream after layer 0 on each token alone, run by the model itself.

        x[v] = W_E[v] + MLP_0(ln2(W_E[v]))

    with the model's own order of sublayers (in a parallel block the same) and its post-norms.
    There is no BOS in front and no learned position is added; where the model scales its embedding
    (Gemma), `W_E` means the scaled one. Layer 0's attention writes nothing, not even its bias.

    Args:
        model: the subject model.
        attend_to_itself: let layer 0's attention write what it does when each token looks at
            itself alone, with pattern 1: `W_E` grows by `W_V W_O` of `ln1(W_E[v])` and the biases
            before the MLP reads it (in a parallel block, beside it).
        chunk: tokens run together.
        progress: called with (tokens done, tokens in all).
    """
    rows: list[Tensor] = []
    done = 0
    for tokens in torch.arange(model.d_vocab, device=model.device).split(chunk):
        rows.append(_after_layer_0(model, tokens[:, None], attend_to_itself)[:, 0])
        done += len(tokens)
        if progress is not None:
            progress(done, model.d_vocab)
    return torch.cat(rows)


def _after_layer_0(
    model: SubjectModel, tokens: Tensor, attend_to_itself: bool
) -> Float[Tensor, "token 1 d_model"]:
    values: dict[str, Tensor] = {}

    def keep(embedded: Tensor) -> Tensor:
        values["embedded"] = embedded
        return embedded

    def stop(stream: Tensor) -> Tensor:
        values["stream"] = stream
        raise _Reached

    # A fresh tensor at every denominator makes each norm compute in the model's own dtype.
    edits: dict[Site, Edit] = {s: torch.clone for s in model.scale_sites()}
    edits |= {
        Site("embed"): keep,
        Site("resid_pre", 0): lambda _: values["embedded"],
        Site("resid_post", 0): stop,
    }
    if not attend_to_itself:
        edits[Site("attn_out", 0)] = torch.zeros_like
    try:
        with torch.no_grad():
            model.run(tokens, edits=edits)
    except _Reached:
        pass
    return values["stream"]


def standardise_rows(
    embedding: Float[Tensor, "d_vocab d_model"], norm: Norm
) -> Float[Tensor, "d_vocab d_model"]:
    """Each row as `norm` passes it on if it is the whole stream, but for gain, bias and epsilon.

    Scores of an encoder that reads through the norm are then those of its pre-activation, so that
    tokens of different norms compare. Rows of zeros stay zero.
    """
    x = embedding - embedding.mean(1, keepdim=True) if norm.centred else embedding
    scale = x.square().mean(1, keepdim=True).sqrt()
    return x / torch.where(scale > 0, scale, torch.ones_like(scale))


def deembed_feature_extended(
    spliced: SplicedModel,
    site: str,
    feature: int,
    *,
    embedding: Float[Tensor, "d_vocab d_model"] | None = None,
    top: int = 10,
) -> list[tuple[str, float]]:
    """The vocabulary tokens that push one feature most once layer 0 has read them.

        score[v] = <e, x[v]>    (x = `extended_embedding`)

    Args:
        spliced: the model with its dictionaries; `x` is the model's own, not theirs.
        site: the reading dictionary, such as `mlp.3`.
        feature: which of its features.
        embedding: an extended embedding made before, perhaps with `standardise_rows`; None makes
            it, which runs the vocabulary through layer 0.
        top: how many tokens.

    Raises:
        ValueError: if there is no such dictionary or feature, it reads a sublayer's output, or it
            reads inside layer 0 or below, where the extended embedding is not yet.
    """
    model, placement = spliced.model, spliced.placements[spliced.write_site(site)]
    check_feature(placement.dictionary, feature)
    encoder = effective_encoder(model, placement, [feature])
    if placement.read.layer == 0 and placement.read.kind != "resid_post":
        raise ValueError(
            f"{site} reads below the top of layer 0, where the extended embedding begins; use "
            "deembed_feature"
        )
    embedding = extended_embedding(model) if embedding is None else embedding
    return top_tokens(model, deembed(encoder, embedding)[0], top)
