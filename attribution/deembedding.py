"""De-embedding: which vocabulary tokens a feature reads straight off the embedding.

Input-invariant: weights alone, so nothing here takes a prompt.
"""

import einops
from jaxtyping import Float
from torch import Tensor

from circuits.dictionaries import Dictionary
from circuits.spliced import Placement, SplicedModel
from circuits.subject import Norm, SubjectModel

__all__ = ["check_feature", "deembed", "deembed_feature", "effective_encoder", "fold_norm"]


def fold_norm(
    encoder: Float[Tensor, "feature d_model"], norm: Norm
) -> Float[Tensor, "feature d_model"]:
    """Encoder directions on the residual stream: the norm's gain multiplied in, its mean removed.

    `<fold_norm(e), x> / scale` is what `e` reads through the norm, up to the norm's bias.
    """
    folded = encoder * norm.gain
    return folded - folded.mean(-1, keepdim=True) if norm.centred else folded


def effective_encoder(
    model: SubjectModel, placement: Placement
) -> Float[Tensor, "feature d_model"]:
    """A dictionary's encoder directions as they read the residual stream (norm folded in).

    Raises:
        ValueError: if the dictionary reads a sublayer's output: no residual stream reaches it
            directly.
    """
    encoder = placement.dictionary.W_enc.T
    if placement.read.kind in ("attn_out", "mlp_out"):
        raise ValueError(
            f"the SAE at {placement.read} reads a sublayer's output, not the residual stream, so "
            "no direct path ends there; use a transcoder or a residual SAE"
        )
    if placement.read.kind != "mlp_in":
        return encoder
    norm = model.norm("ln2", placement.read.layer)
    assert norm is not None
    return fold_norm(encoder, norm)


def deembed(
    encoder: Float[Tensor, "feature d_model"], W_E: Float[Tensor, "d_vocab d_model"]
) -> Float[Tensor, "feature d_vocab"]:
    """Score each vocabulary token by its direct push on each feature's pre-activation.

        score[f, v] = <encoder[f], W_E[v]>

    Only the path embedding -> residual stream -> encoder: no attention, MLP or bias (Dunefsky et
    al. 2024, section 3).

    Args:
        encoder: encoder directions with the norm folded in, as `effective_encoder` gives them.
        W_E: token embedding.

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
    scores = deembed(effective_encoder(model, placement)[[feature]], model.W_E)[0]
    values, ids = scores.topk(min(top, model.d_vocab))
    return list(zip(model.token_strings(ids), values.tolist(), strict=True))


def check_feature(dictionary: Dictionary, feature: int) -> None:
    """Raise ValueError unless `dictionary` has `feature`."""
    if not 0 <= feature < dictionary.n_features:
        raise ValueError(f"feature must be in [0, {dictionary.n_features}), got {feature}")
