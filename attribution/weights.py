"""Virtual weights: how strongly one feature writes into what another reads. Input-invariant."""

import einops
from jaxtyping import Float
from torch import Tensor

from attribution.deembedding import effective_encoder
from circuits.sites import Site
from circuits.spliced import SplicedModel

__all__ = ["direct_virtual_weights", "virtual_weights"]


def direct_virtual_weights(
    encoder: Float[Tensor, "target d_model"], decoder: Float[Tensor, "source d_model"]
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
    return einops.einsum(encoder, decoder, "target d_model, source d_model -> target source")


def virtual_weights(
    spliced: SplicedModel,
    target: str,
    source: str,
    *,
    target_features: list[int] | None = None,
) -> Float[Tensor, "target source"]:
    """Direct virtual weights from every feature of `source` to features of `target`.

    Args:
        spliced: holds both dictionaries.
        target: the reading dictionary, such as `mlp.3`.
        source: the writing dictionary, such as `mlp.1`; it must write below where `target` reads.
        target_features: which targets; None takes all.

    Raises:
        ValueError: if `source` does not write below what `target` reads, if `target` reads a
            sublayer's output, if something replaces the residual stream between them, or if a
            post-norm lies on the way (no weights-only form).
    """
    model = spliced.model
    write, read_at = spliced.write_site(source), spliced.write_site(target)
    reader = spliced.placements[read_at]
    encoder = effective_encoder(model, reader)
    if not (write.layer, _HEIGHT[write.kind]) < (reader.read.layer, _READ_HEIGHT[reader.read.kind]):
        raise ValueError(f"{source} does not write below what {target} reads; swap them?")
    if model.parallel and write == Site("attn_out", reader.read.layer) and reader.read != read_at:
        raise ValueError(f"in a parallel block {target} does not read what {source} writes")
    cut = [
        site
        for site in spliced.placements
        if site.kind in ("resid_pre", "resid_post")
        and site not in (write, read_at)
        and (write.layer, _HEIGHT[write.kind]) < (site.layer, _HEIGHT[site.kind])
        and (site.layer, _HEIGHT[site.kind]) < (reader.read.layer, _READ_HEIGHT[reader.read.kind])
    ]
    if cut:
        raise ValueError(f"{cut[0]} replaces the residual stream between {source} and {target}")
    if write.kind == "mlp_raw_out" and model.norm("ln2_post", write.layer) is not None:
        raise ValueError(
            f"{model.name!r} normalises what {source} writes, with an input-dependent denominator; "
            "no weights-only direct path exists"
        )
    encoder = encoder if target_features is None else encoder[target_features]
    return direct_virtual_weights(encoder, spliced.placements[write].dictionary.W_dec)


_HEIGHT = {"resid_pre": 0, "attn_out": 1, "mlp_raw_out": 3, "mlp_out": 3, "resid_post": 4}
"""Order of writing places inside a block."""
_READ_HEIGHT = {"resid_pre": 0, "mlp_in": 2, "resid_post": 4}
