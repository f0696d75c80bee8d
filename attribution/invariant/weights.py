"""Virtual weights: how strongly one feature writes into what another reads. Input-invariant.

A weight is `<what the target reads, what the source writes>`, in the residual stream, or, through
a head, in the space of that head's values, which is far smaller.
"""

import einops
from jaxtyping import Float
from torch import Tensor

from attribution.invariant.deembedding import (
    check_features,
    effective_encoder,
    encoder_at_head,
    fold_norm,
)
from attribution.invariant.routes import Head, check_route, slots_on_route
from circuits.sites import Site
from circuits.spliced import SplicedModel
from circuits.subject import Heads, Norm

__all__ = [
    "decoder_on_route",
    "direct_virtual_weights",
    "readings",
    "virtual_weights",
    "write_into_head",
    "writings",
]


def direct_virtual_weights(
    encoder: Float[Tensor, "target d_read"], decoder: Float[Tensor, "source d_read"]
) -> Float[Tensor, "target source"]:
    """`<encoder[t], decoder[s]>`: the path through the residual stream alone.

    Times the source's activation and over the target's norm denominator, it is the direct part of
    the edge between them at one position (Dunefsky et al. 2024, equation 4).

    Example:
        >>> import torch
        >>> direct_virtual_weights(torch.eye(2), torch.tensor([[3.0, 4.0]]))
        tensor([[3.],
                [4.]])
    """
    return einops.einsum(encoder, decoder, "target d_read, source d_read -> target source")


def write_into_head(
    decoder: Float[Tensor, "source d_model"], heads: Heads, head: int, norm: Norm
) -> Float[Tensor, "source d_head"]:
    """What a head makes of decoder directions, before the division of the norm in front of it.

        v = (gain * d) W_V^h    (the mean of `d` removed first for a LayerNorm)

    Biases are left out: they are the same whatever the source does.
    """
    return decoder @ fold_norm(heads.W_V[head].T, norm).T


def readings(
    spliced: SplicedModel,
    target: str,
    head: Head | None = None,
    features: list[int] | slice = slice(None),
) -> Float[Tensor, "target d_read"]:
    """What features of `target` read: of the residual stream, or of the values of `head`."""
    model, placement = spliced.model, spliced.placements[spliced.write_site(target)]
    if head is None:
        return effective_encoder(model, placement, features)
    return encoder_at_head(model, placement, head, features)


def decoder_on_route(
    spliced: SplicedModel, target: Site, source: Site, head: Head | None = None
) -> Float[Tensor, "source d_model"]:
    """What features of `source` write below what `target` (or `head`) reads, over all places."""
    slots = slots_on_route(spliced, target, source, head)
    return spliced.placements[source].dictionary.summed_decoder(slots)


def writings(
    spliced: SplicedModel,
    target: str,
    source: str,
    head: Head | None = None,
    features: list[int] | slice = slice(None),
) -> Float[Tensor, "source d_read"]:
    """What features of `source` write: into the residual stream below what `target` reads, or into
    the values of `head`.
    """
    ends = spliced.write_site(target), spliced.write_site(source)
    decoder = decoder_on_route(spliced, *ends, head)[features]
    if head is None:
        return decoder
    norm = spliced.model.norm("ln1", head[0])
    assert norm is not None
    return write_into_head(decoder, spliced.model.heads(head[0]), head[1], norm)


def virtual_weights(
    spliced: SplicedModel,
    target: str,
    source: str,
    *,
    head: Head | None = None,
    target_features: list[int] | None = None,
    source_features: list[int] | None = None,
) -> Float[Tensor, "target source"]:
    """Virtual weights from features of `source` to features of `target`, along one path.

    Direct, `w[t, s] = <e_t, d_s>`; through a head, `w[t, s] = d_s W_V W_O e_t` (design 2.5, the
    input-invariant factor; `e_t` with the norm it reads through folded in, `d_s` with `ln1`). Of a
    cross-layer feature `d_s` is the sum of what it writes to all layers below the target (or head).

    The edge's part along this path is `a_s w / sigma_t(q)`, and through a head
    `a_s w A[q, k] / (sigma_ln1(k) sigma_t(q))`; `sigma_t` is 1 where no norm lies in front (a
    residual SAE, a transcoder that reads the stream before the norm). Other paths
    (other heads, skip connections of transcoders between) have weights of their own.

    Args:
        spliced: holds both dictionaries; any others in it may cut the path.
        target: the reading dictionary, such as `mlp.3`.
        source: the writing dictionary, such as `mlp.1`; it must write below where `target` (or
            `head`) reads.
        head: (layer, query head) on the way; None is the residual stream alone. Grouped-query
            models number their query heads.
        target_features: which targets; None takes all.
        source_features: which sources; None takes all.

    Raises:
        ValueError: if there is no such dictionary, feature or head; if the places are not in the
            order source, head, target; if `target` reads a sublayer's output (an SAE on attention's
            output can be reached through a head of its layer); if something replaces the residual
            stream or the head's output between them; or if a post-norm lies on the way (no
            weights-only form).
    """
    read_at, write = spliced.write_site(target), spliced.write_site(source)
    check_route(spliced, read_at, write, head)
    check_features(spliced.placements[read_at].dictionary, target_features or ())
    check_features(spliced.placements[write].dictionary, source_features or ())
    every = slice(None)
    return direct_virtual_weights(
        readings(spliced, target, head, every if target_features is None else target_features),
        writings(
            spliced, target, source, head, every if source_features is None else source_features
        ),
    )
