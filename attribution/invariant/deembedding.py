"""De-embedding: which vocabulary tokens a feature reads, straight off the embedding or by a head.

Input-invariant: weights alone, so nothing here takes a prompt.
"""

from collections.abc import Iterable

import einops
from jaxtyping import Float
from torch import Tensor

from attribution.invariant.routes import Head, check_head, check_reads_stream
from circuits.dictionaries import Dictionary
from circuits.spliced import Placement, SplicedModel
from circuits.subject import Heads, Norm, SubjectModel

__all__ = [
    "check_feature",
    "check_features",
    "deembed",
    "deembed_feature",
    "deembed_feature_through_head",
    "effective_encoder",
    "encoder_at_head",
    "encoder_through_head",
    "fold_norm",
    "read_at_head",
    "top_tokens",
]


def fold_norm(
    encoder: Float[Tensor, "feature d_model"], norm: Norm
) -> Float[Tensor, "feature d_model"]:
    """Encoder directions on the residual stream: the norm's gain multiplied in, its mean removed.

    `<fold_norm(e), x> / scale` is what `e` reads through the norm, up to the norm's bias.
    """
    folded = encoder * norm.gain
    return folded - folded.mean(-1, keepdim=True) if norm.centred else folded


def effective_encoder(
    model: SubjectModel, placement: Placement, features: list[int] | slice = slice(None)
) -> Float[Tensor, "feature d_model"]:
    """A dictionary's encoder directions as they read the residual stream (norm folded in).

    Args:
        model: the subject model.
        placement: the dictionary in its place.
        features: which features, all by default.

    Raises:
        ValueError: if the dictionary reads a sublayer's output: no residual stream reaches it
            directly.
    """
    check_reads_stream(placement)
    encoder = placement.dictionary.W_enc.T[features]
    if placement.read.kind != "mlp_in":
        return encoder
    norm = model.norm("ln2", placement.read.layer)
    assert norm is not None
    return fold_norm(encoder, norm)


def read_at_head(
    encoder: Float[Tensor, "feature d_model"], heads: Heads, head: int
) -> Float[Tensor, "feature d_head"]:
    """What encoder directions read of a head's mixed values: `W_O^h e`, since it writes `z W_O^h`.

    Example:
        >>> import torch
        >>> from circuits.subject import Heads
        >>> heads = Heads(torch.ones(1, 2, 1), torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1),
        ...               torch.zeros(2))
        >>> read_at_head(torch.tensor([[1.0, 0.5]]), heads, 0)
        tensor([[5.]])
    """
    return encoder @ heads.W_O[head].T


def encoder_at_head(
    model: SubjectModel,
    placement: Placement,
    head: Head,
    features: list[int] | slice = slice(None),
) -> Float[Tensor, "feature d_head"]:
    """A dictionary's encoder directions as they read the mixed values of one head below it.

    Raises:
        ValueError: if there is no such head, it does not write below what the dictionary reads, or
            a post-norm follows it.
    """
    check_head(model, placement, head)
    if placement.read.kind == "attn_out":
        encoder = placement.dictionary.W_enc.T[features]
    else:
        encoder = effective_encoder(model, placement, features)
    return read_at_head(encoder, model.heads(head[0]), head[1])


def encoder_through_head(
    model: SubjectModel,
    placement: Placement,
    head: Head,
    features: list[int] | slice = slice(None),
) -> Float[Tensor, "feature d_model"]:
    """A dictionary's encoder directions as one head carries them down the residual stream.

        e' = gain * (W_V W_O e)    (mean removed where ln1 is a LayerNorm)

    `A[q, k] <e', x_k> / (sigma_ln1(k) sigma(q))` is what they read at `q`, of a stream `x_k` at
    `k`, through this head (Dunefsky et al. 2024, with the norms
    written out).

    Raises:
        ValueError: as `encoder_at_head`.
    """
    layer, index = head
    at_head = encoder_at_head(model, placement, head, features)
    norm = model.norm("ln1", layer)
    assert norm is not None
    return fold_norm(at_head @ model.heads(layer).W_V[index].T, norm)


def deembed(
    encoder: Float[Tensor, "feature d_model"], W_E: Float[Tensor, "d_vocab d_model"]
) -> Float[Tensor, "feature d_vocab"]:
    """Score each vocabulary token by its direct push on each feature's pre-activation.

        score[f, v] = <encoder[f], W_E[v]>

    Only the path embedding -> residual stream -> encoder: no attention, MLP or bias (Dunefsky et
    al. 2024, section 3). With `encoder_through_head` the path goes through that head; with
    `extended_embedding` in place of `W_E`, through layer 0's MLP.

    Args:
        encoder: encoder directions with the norm folded in, as `effective_encoder` gives them.
        W_E: token embedding, without the factor some models multiply it by (Gemma).

    Returns:
        Signed, in pre-activation units before the norm's division. Rank tokens within a row; rows
        of different features are not comparable.

    Example:
        >>> import torch
        >>> deembed(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        tensor([[ 2., -3.]])
    """
    return einops.einsum(encoder, W_E, "feature d_model, d_vocab d_model -> feature d_vocab")


def deembed_feature(
    spliced: SplicedModel, site: str, feature: int, *, top: int = 10
) -> list[tuple[str, float]]:
    """The vocabulary tokens that push one feature most, with their scores, strongest first.

    Raises:
        ValueError: if there is no such dictionary or feature, or it reads a sublayer's output.
    """
    model, placement = spliced.model, spliced.placements[spliced.write_site(site)]
    check_feature(placement.dictionary, feature)
    scores = deembed(effective_encoder(model, placement, [feature]), model.W_E)[0]
    return top_tokens(model, scores, top)


def deembed_feature_through_head(
    spliced: SplicedModel, site: str, feature: int, head: Head, *, top: int = 10
) -> list[tuple[str, float]]:
    """The tokens that push one feature most where `head` looks at them, strongest first.

        score[v] = <gain * (W_V W_O e), W_E[v]>

    in pre-activation units before both norms' divisions and at attention 1.

    Args:
        spliced: the model with its dictionaries.
        site: the reading dictionary, such as `mlp.3`.
        feature: which of its features.
        head: (layer, query head); it must write below what the dictionary reads.
        top: how many tokens.

    Raises:
        ValueError: if there is no such dictionary, feature or head, if the head does not write
            below what the dictionary reads, or if a post-norm follows the head.
    """
    model, placement = spliced.model, spliced.placements[spliced.write_site(site)]
    check_feature(placement.dictionary, feature)
    scores = deembed(encoder_through_head(model, placement, head, [feature]), model.W_E)[0]
    return top_tokens(model, scores, top)


def top_tokens(
    model: SubjectModel, scores: Float[Tensor, " d_vocab"], top: int
) -> list[tuple[str, float]]:
    """The `top` best-scored tokens as text, with their scores; equal ones in order of their ids."""
    values, ids = scores.sort(descending=True, stable=True)
    return list(zip(model.token_strings(ids[:top]), values[:top].tolist(), strict=True))


def check_feature(dictionary: Dictionary, feature: int) -> None:
    """Raise ValueError unless `dictionary` has `feature`."""
    if not 0 <= feature < dictionary.n_features:
        raise ValueError(f"feature must be in [0, {dictionary.n_features}), got {feature}")


def check_features(dictionary: Dictionary, features: Iterable[int]) -> None:
    """Raise ValueError unless `dictionary` has all of `features`."""
    for feature in features:
        check_feature(dictionary, feature)
