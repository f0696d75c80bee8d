"""QK virtual weights: how strongly a head matches one feature at the query with one at the key.

Input-invariant: weights alone, and the offset between the two positions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.invariant.logits import feature_directions
from attribution.qk.held import rotary_tables
from attribution.qk.rotary import relative_rotation, rotate
from attribution.qk.sides import read_through
from circuits.sites import Site
from circuits.spliced import SplicedModel

__all__ = ["FeaturePairs", "qk_virtual_weights", "top_qk_virtual_weights"]


@dataclass(frozen=True, eq=False)
class FeaturePairs:
    """Pairs of features with their weights, strongest first."""

    query_features: Int[Tensor, " pair"]
    key_features: Int[Tensor, " pair"]
    values: Float[Tensor, " pair"]


def qk_virtual_weights(
    spliced: SplicedModel,
    query: str,
    key: str,
    layer: int,
    head: int,
    *,
    offset: int = 0,
    query_features: list[int] | None = None,
    key_features: list[int] | None = None,
) -> Float[Tensor, "query_feature key_feature"]:
    """Per unit of both activations, what a pair of features gives to a score, up to denominators.

        weight[s, t] = scale * d_s W_Q R_offset W_K^T d_t

    The gain of `ln1` (and of query, key and post-norms) is folded in. Times both activations and
    over both norm denominators it is the pair's entry in `AttentionScore.pairs`.

    Args:
        spliced: holds both dictionaries.
        query: the dictionary whose features write at the query, such as `mlp.1`.
        key: the dictionary whose features write at the key.
        layer: which block attends.
        head: which query head.
        offset: query position minus key position; matters only with rotary positions.
        query_features: which; None takes all. For a whole dictionary see `top_qk_virtual_weights`.
        key_features: likewise.

    Raises:
        ValueError: if there is no such dictionary, layer or head, the offset is not one of a
            prompt, or what a dictionary writes does not reach the stream that `layer` reads.
    """
    q, k = _ends(spliced, query, key, layer, head, offset)
    q = q if query_features is None else q[query_features]
    k = k if key_features is None else k[key_features]
    return q @ k.T


def top_qk_virtual_weights(
    spliced: SplicedModel,
    query: str,
    key: str,
    layer: int,
    head: int,
    *,
    offset: int = 0,
    top: int = 100,
    chunk: int = 1024,
) -> FeaturePairs:
    """The `top` pairs of largest absolute weight, `chunk` query features at a time.

    No more than `chunk` rows of the matrix of all pairs exist at once. Other arguments and errors
    are those of `qk_virtual_weights`.

    Raises:
        ValueError: also if `top` or `chunk` is not positive.
    """
    if top < 1 or chunk < 1:
        raise ValueError(f"want top >= 1 and chunk >= 1, got {top} and {chunk}")
    q, k = _ends(spliced, query, key, layer, head, offset)
    flat = torch.zeros(0, dtype=torch.long, device=q.device)
    values = q.new_zeros(0)
    for start in range(0, len(q), chunk):
        block = (q[start : start + chunk] @ k.T).flatten()
        found = block.abs().topk(min(top, len(block))).indices
        flat = torch.cat([flat, found + start * len(k)])
        values = torch.cat([values, block[found]])
        kept = values.abs().topk(min(top, len(values))).indices
        flat, values = flat[kept], values[kept]
    return FeaturePairs(flat // len(k), flat % len(k), values)


def _ends(
    spliced: SplicedModel, query: str, key: str, layer: int, head: int, offset: int
) -> tuple[Float[Tensor, "query_feature d_head"], Float[Tensor, "key_feature d_head"]]:
    """Queries and keys of all features, scaled and turned, so that their products are weights."""
    model = spliced.model
    if not 0 <= layer < model.n_layers or not 0 <= head < model.n_heads:
        raise ValueError(
            f"{model.name!r} has layers 0 to {model.n_layers - 1} with heads 0 to "
            f"{model.n_heads - 1}, got layer {layer}, head {head}"
        )
    if not 0 <= offset < model.n_ctx:
        raise ValueError(f"the offset must be in [0, {model.n_ctx}), got {offset}")
    weights, ln1 = model.query_key(layer), model.norm("ln1", layer)
    assert ln1 is not None
    q = read_through(_written(spliced, query, layer), ln1, weights.W_Q[head])
    k = read_through(_written(spliced, key, layer), ln1, weights.W_K[head])
    cos, sin = _tables(spliced, layer, offset)
    return weights.scale * q, rotate(k, cos, sin)


def _tables(
    spliced: SplicedModel, layer: int, offset: int
) -> tuple[Float[Tensor, " rotary"], Float[Tensor, " rotary"]]:
    """The rotation of an offset, from the tables the model shows on any prompt long enough."""
    model = spliced.model
    sites = [site for site in model.score_sites(layer) if site.kind.startswith("rotary")]
    if not sites:
        return model.W_E.new_ones(0), model.W_E.new_zeros(0)
    tokens = torch.zeros(1, offset + 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        _, captured = model.run(tokens, capture=sites)
    rotary = rotary_tables(model, captured, layer, offset + 1)
    return relative_rotation(rotary.cos, rotary.sin, offset, 0)


def _written(
    spliced: SplicedModel, dictionary: str, layer: int
) -> Float[Tensor, "feature d_model"]:
    """Directions of a dictionary's features in the stream that block `layer` reads.

    Raises:
        ValueError: if they are not there: written above, or hidden by an SAE on the stream.
    """
    write, read = spliced.write_site(dictionary), _moment(Site("resid_pre", layer))
    if _moment(write) > read:
        raise ValueError(
            f"{dictionary} does not write below the heads of layer {layer}; choose a higher layer"
        )
    for site in spliced.placements:
        on_stream = site.kind in ("resid_pre", "resid_post")
        if on_stream and _moment(write) < _moment(site) < read:
            raise ValueError(
                f"{site} replaces the residual stream between {dictionary} and layer {layer}"
            )
    placement = spliced.placements[write]
    n_below = max(1, layer - write.layer)  # 1 where an SAE writes what the layer reads
    slots = range(min(placement.dictionary.n_writes, n_below))
    return feature_directions(spliced.model, placement, slots)


def _moment(site: Site) -> tuple[int, int]:
    order = ("resid_pre", "attn_out", "mlp_raw_out", "mlp_out", "resid_post")
    return site.layer, order.index(site.kind)
