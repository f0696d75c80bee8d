"""What weights alone say of many features of one dictionary at once. Input-invariant."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from attribution import deembed, direct_logit_attribution
from attribution.invariant.deembedding import check_features, effective_encoder
from attribution.invariant.logits import feature_directions
from attribution.invariant.routes import check_reads_stream
from attribution.invariant.strongest import largest_columns
from case_studies.dashboard.neighbours import find_neighbours
from case_studies.dashboard.records import FeatureWeights, Missing, TokenScores
from circuits import SplicedModel
from circuits.spliced import Placement
from circuits.subject import SubjectModel

__all__ = ["Words", "feature_weights", "reads_above_layer_0"]

Words = Callable[[Sequence[int]], tuple[str, ...]]
"""Token ids as text."""

_Lists = list[TokenScores] | Missing


def reads_above_layer_0(placement: Placement) -> bool:
    """Whether the extended embedding lies below what the dictionary reads."""
    return placement.read.layer > 0 or placement.read.kind == "resid_post"


def feature_weights(
    spliced: SplicedModel,
    name: str,
    features: list[int],
    *,
    top: int,
    extended: Float[Tensor, "d_vocab d_model"] | None,
    words: Words,
) -> list[FeatureWeights]:
    """De-embeddings, logits and virtual weights of `features`, in batches.

    What has no weights-only form is `Missing`, with the reason.

    Args:
        spliced: holds dictionaries of one site alone.
        name: of their dictionary, such as `mlp.2`.
        features: their indices in it.
        top: entries a list.
        extended: `extended_embedding` of the model; None where nothing reads above layer 0.
        words: token ids as text.

    Raises:
        ValueError: if there is no such dictionary or feature.
    """
    model, placement = spliced.model, spliced.placements[spliced.write_site(name)]
    check_features(placement.dictionary, features)
    reads, reads_extended = _read(model, placement, features, extended, top, words)
    promoted, suppressed = _moved(model, placement, features, top, words)
    neighbours = find_neighbours(spliced, name, features, top)
    return [
        FeatureWeights(
            _at(reads, i),
            _at(reads_extended, i),
            _at(promoted, i),
            _at(suppressed, i),
            _logits_note(model, placement),
            near["upstream"],
            near["downstream"],
        )
        for i, near in enumerate(neighbours)
    ]


def _at(lists: _Lists, i: int) -> TokenScores | Missing:
    return lists if isinstance(lists, Missing) else lists[i]


def _read(
    model: SubjectModel,
    placement: Placement,
    features: list[int],
    extended: Float[Tensor, "d_vocab d_model"] | None,
    top: int,
    words: Words,
) -> tuple[_Lists, _Lists]:
    """Tokens the features read, off the embedding and once layer 0 has read them."""
    try:
        check_reads_stream(placement)
    except ValueError as error:
        return Missing(str(error)), Missing(str(error))
    encoder = effective_encoder(model, placement, features)
    plain = _top_tokens(deembed(encoder, model.W_E), top, words)
    if extended is None or not reads_above_layer_0(placement):
        return plain, Missing("it reads inside layer 0, below the extended embedding")
    return plain, _top_tokens(deembed(encoder, extended), top, words)


def _moved(
    model: SubjectModel, placement: Placement, features: list[int], top: int, words: Words
) -> tuple[_Lists, _Lists]:
    """Tokens whose logits the features raise and lower, relative to the mean token."""
    try:
        decoder = feature_directions(model, placement)[features]
    except ValueError as error:
        return Missing(str(error)), Missing(str(error))
    norm = model.norm("final")
    assert norm is not None
    dla = direct_logit_attribution(decoder, model.W_U, norm)
    dla = dla - dla.mean(1, keepdim=True)
    lowered = _top_tokens(-dla, top, words)
    return _top_tokens(dla, top, words), [tuple((t, -x) for t, x in row) for row in lowered]


def _logits_note(model: SubjectModel, placement: Placement) -> str:
    layer = placement.write.layer
    if placement.write.kind != "mlp_raw_out" or model.norm("ln2_post", layer) is None:
        return ""
    return (
        f"{model.name} normalises what the MLP of layer {layer} writes (a post-norm). Its gain is "
        "in these numbers; its denominator depends on the prompt and is not: they rank tokens, but "
        "their sizes hold only once divided by it."
    )


def _top_tokens(
    scores: Float[Tensor, "feature d_vocab"], top: int, words: Words
) -> list[TokenScores]:
    """In each row the best-scored tokens, equal ones in the order of their ids."""
    ids = largest_columns(scores, min(top, scores.shape[1]))
    rows = zip(ids.tolist(), scores.gather(1, ids).tolist(), strict=True)
    return [tuple(zip(words(row), values, strict=True)) for row, values in rows]
