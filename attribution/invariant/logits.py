"""Direct logit attribution: what a feature promotes and suppresses. Input-invariant.

Read through the final norm's gain and centring. Left out, since they need a prompt or are the same
whatever the feature does: the final norm's denominator and bias, `b_U`, and a final softcap.
"""

import einops
from jaxtyping import Float
from torch import Tensor

from attribution.invariant.deembedding import check_feature, fold_norm
from circuits.spliced import Placement, SplicedModel
from circuits.subject import Norm, SubjectModel

__all__ = ["direct_logit_attribution", "feature_directions", "promoted_and_suppressed"]


def direct_logit_attribution(
    decoder: Float[Tensor, "feature d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    final_norm: Norm,
) -> Float[Tensor, "feature d_vocab"]:
    """Each feature's direct push on each logit, per unit of activation, before the norm's division.

        dla[f, v] = <decoder[f], gain * W_U[:, v] (mean removed for a LayerNorm)>

    Divide by the final norm's denominator at a position for the push on that prompt. Only the
    path decoder -> residual stream -> final norm -> unembedding: `b_U` is no part of it, and with
    a final softcap (Gemma) it is the push on the logit before the cap.

    Args:
        decoder: what the features write into the residual stream.
        W_U: unembedding.
        final_norm: the norm before it; its bias is constant and left out.
    """
    reader = fold_norm(W_U.T, final_norm)
    return einops.einsum(decoder, reader, "feature d_model, d_vocab d_model -> feature d_vocab")


def promoted_and_suppressed(
    spliced: SplicedModel, site: str, feature: int, *, top: int = 5
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The tokens whose logits one feature raises most and lowers most, relative to the mean token.

    Direct logit attribution minus its mean over the vocabulary, which a softmax does not see.
    Where a post-norm follows (Gemma), its gain is applied and its division, by a denominator that
    depends on the prompt, is not.

    Raises:
        ValueError: if there is no such dictionary or feature, or a post-norm follows a cross-layer
            transcoder.
    """
    model, placement = spliced.model, spliced.placements[spliced.write_site(site)]
    check_feature(placement.dictionary, feature)
    norm = model.norm("final")
    assert norm is not None
    decoder = feature_directions(model, placement)[[feature]]
    dla = direct_logit_attribution(decoder, model.W_U, norm)[0]
    dla = dla - dla.mean()

    def named(largest: bool) -> list[tuple[str, float]]:
        values, ids = dla.topk(min(top, model.d_vocab), largest=largest)
        return list(zip(model.token_strings(ids), values.tolist(), strict=True))

    return named(largest=True), named(largest=False)


def feature_directions(
    model: SubjectModel, placement: Placement, slots: range | None = None
) -> Float[Tensor, "feature d_model"]:
    """What each feature writes into the residual stream per unit of activation. Input-invariant.

    Where a post-norm follows a transcoder (Gemma) its gain is in and its denominator is not.

    Args:
        model: the subject model.
        placement: the dictionary in its place.
        slots: of a cross-layer transcoder, which writes to add up; None for all.

    Raises:
        ValueError: if a post-norm follows a cross-layer transcoder: its denominators differ from
            layer to layer, so that no sum is made of weights alone.
    """
    dictionary = placement.dictionary
    decoder = dictionary.summed_decoder(range(dictionary.n_writes) if slots is None else slots)
    post = model.norm("ln2_post", placement.write.layer)
    if placement.write.kind != "mlp_raw_out" or post is None:
        return decoder
    if dictionary.n_writes > 1:
        raise ValueError(
            f"{model.name!r} normalises what each MLP writes (a post-norm), with one "
            "input-dependent denominator a layer; what features of the cross-layer transcoder "
            f"mlp.{placement.write.layer} write has no weights-only form"
        )
    return post.linear(decoder, decoder.new_ones(1))
