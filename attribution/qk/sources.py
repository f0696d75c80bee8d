"""The sources of the residual stream at one position, with the vector that each has written there.

Input-dependent: at one prompt. The vectors add up to the residual stream that a block reads; what
came through attention is one source a head, since its own inputs lie at other positions.
"""

from dataclasses import dataclass

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.frozen import norm_scale
from attribution.invariant.logits import feature_directions
from attribution.nodes import Kind, Node, NodeTable
from circuits.sites import NormName, Site
from circuits.spliced import FrozenState, Placement, SplicedModel
from circuits.subject import Norm, SubjectModel

__all__ = ["StreamSources", "stream_sources"]


@dataclass(frozen=True, eq=False)
class StreamSources:
    """What adds up to the residual stream: `sum_s coefficients[s] * directions[s]`.

    Attributes:
        nodes: one row a source.
        coefficients: of a feature its activation, over the denominator of the post-norm that
            follows (Gemma); of everything else 1.
        directions: of a feature its decoder direction, times the gain of that post-norm (of a
            cross-layer feature all that it writes below, added up), and of a token or position its
            embedding: weights alone. Of an error, a held MLP or a head it is what was written at
            this prompt.
    """

    nodes: NodeTable
    coefficients: Float[Tensor, " source"]
    directions: Float[Tensor, "source d_model"]


@dataclass(frozen=True, eq=False)
class _Part:
    nodes: list[Node]
    coefficients: Float[Tensor, " part"]
    directions: Float[Tensor, "part d_model"]


@dataclass(frozen=True)
class _Post:
    """A post-norm with its denominator held at one position, or none, which changes nothing."""

    norm: Norm | None
    scale: Float[Tensor, " 1"]

    def linear(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        return x if self.norm is None else self.norm.linear(x, self.scale)

    def affine(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        return x if self.norm is None else self.linear(x) + self.norm.bias


def stream_sources(
    spliced: SplicedModel, state: FrozenState, layer: int, pos: int
) -> StreamSources:
    """Every source of what block `layer` reads at `pos` (`resid_pre`), exactly.

    Tokens, positions, active features, errors, held MLPs, what skip transcoders carry past their
    features, heads (`head3.attn`), and constants: output biases of attention with what value
    biases and norm biases give through the pattern, decoder biases, biases of post-norms. An SAE
    on the residual stream stands for everything below it, but for what features below it write
    above it (cross-layer transcoders).
    """
    cuts = [s for s in spliced.placements if s.kind == "resid_post" and s.layer < layer]
    cut = max(cuts, key=lambda site: site.layer, default=Site("resid_pre"))
    start = cut.layer + 1 if cuts else 0
    parts = _resid_dictionary(spliced, state, cut, pos) or _inputs(state, pos)
    for write, placement in spliced.placements.items():
        slots = range(start - write.layer, min(layer - write.layer, placement.dictionary.n_writes))
        if placement.site == "mlp" and write.layer < start and slots:
            parts.append(_features(spliced, state, placement, pos, slots))
    for below in range(start, layer):
        parts += _attention(spliced, state, below, pos)
        parts += _mlp(spliced, state, below, pos, reader=layer)
    return StreamSources(
        NodeTable([node for part in parts for node in part.nodes]),
        torch.cat([part.coefficients for part in parts]),
        torch.cat([part.directions for part in parts]),
    )


def _single(
    kind: Kind, layer: int, site: str, pos: int, vector: Tensor, feature: int = -1
) -> _Part:
    activation = 1.0 if layer < 0 else 0.0
    node = Node(kind=kind, layer=layer, site=site, pos=pos, feature=feature, activation=activation)
    return _Part([node], vector.new_ones(1), vector[None])


def _bias(layer: int, site: str, vector: Float[Tensor, " d_model"]) -> list[_Part]:
    """A constant, or nothing where the architecture has none there."""
    return [_single("bias", layer, site, -1, vector)] if vector.any() else []


def _inputs(state: FrozenState, pos: int) -> list[_Part]:
    token = state.values[Site("embed")][0, pos]
    position = state.values[Site("resid_pre")][0, pos] - token
    parts = [_single("token", -1, "embed", pos, token, int(state.tokens[0, pos]))]
    return [*parts, _single("position", -1, "embed", pos, position)] if position.any() else parts


def _resid_dictionary(
    spliced: SplicedModel, state: FrozenState, site: Site, pos: int
) -> list[_Part]:
    placement = spliced.placements.get(site)
    return [] if placement is None else _dictionary(spliced, state, placement, pos)


def _dictionary(
    spliced: SplicedModel, state: FrozenState, placement: Placement, pos: int, n_layers: int = 1
) -> list[_Part]:
    """Features, error, skip and bias of one dictionary, through a post-norm where there is one.

    Of a cross-layer transcoder, what its features write to the first `n_layers` from its own on.
    """
    model, write, dictionary = spliced.model, placement.write, placement.dictionary
    layer, name = write.layer, placement.site
    post = _post_of(model, state, write, pos)
    slots = range(min(dictionary.n_writes, n_layers))
    parts = [
        _features(spliced, state, placement, pos, slots),
        _single("error", layer, name, pos, post.linear(state.errors[write][0, pos])),
    ]
    if dictionary.W_skip is not None:
        skip = post.linear(state.values[placement.read][0, pos] @ dictionary.W_skip)
        parts.append(_single("sublayer", layer, "mlp_skip", pos, skip))
    return [*parts, *_bias(layer, name, post.affine(dictionary.b_dec))]


def _features(
    spliced: SplicedModel, state: FrozenState, placement: Placement, pos: int, slots: range
) -> _Part:
    """The active features of one dictionary, each with the sum of what it writes in `slots`."""
    write = placement.write
    post = _post_of(spliced.model, state, write, pos)
    a = state.activations[write][0, pos]
    active = a.nonzero()[:, 0]
    where = {"kind": "feature", "layer": write.layer, "site": placement.site, "pos": pos}
    nodes = [
        Node(feature=f, activation=value, **where)  # type: ignore[arg-type]
        for f, value in zip(active.tolist(), a[active].tolist(), strict=True)
    ]
    directions = feature_directions(spliced.model, placement, slots)[active]
    return _Part(nodes, a[active] / post.scale, directions)


def _mlp(
    spliced: SplicedModel, state: FrozenState, layer: int, pos: int, reader: int
) -> list[_Part]:
    """What the MLP of `layer` writes; of cross-layer features also what they write further up,
    below the layer that reads.
    """
    model = spliced.model
    for kind in ("mlp_out", "mlp_raw_out"):
        placement = spliced.placements.get(Site(kind, layer))
        if placement is not None:
            return _dictionary(spliced, state, placement, pos, reader - layer)
    post = _post(model, state, "ln2_post", layer, pos)
    raw = state.values[Site("mlp_raw_out", layer)][0, pos]
    return [
        _single("sublayer", layer, "mlp", pos, post.linear(raw)),
        *_bias(layer, "mlp", post.affine(torch.zeros_like(raw))),
    ]


def _attention(spliced: SplicedModel, state: FrozenState, layer: int, pos: int) -> list[_Part]:
    """`sum_k A[pos, k] ln1(x_k) W_V W_O` of each head; biases, which do not depend on x, apart."""
    model = spliced.model
    placement = spliced.placements.get(Site("attn_out", layer))
    if placement is not None:
        return _dictionary(spliced, state, placement, pos)
    heads, ln1 = model.heads(layer), model.norm("ln1", layer)
    post = _post(model, state, "ln1_post", layer, pos)
    assert ln1 is not None
    reached = slice(pos + 1)
    x = state.values[Site("resid_pre", layer)][0, reached]
    x = ln1.linear(x, state.values[Site("ln1_scale", layer)][0, reached].to(x.dtype))
    pattern = state.values[Site("pattern", layer)][0, :, pos, reached].to(x.dtype)
    z = einops.einsum(pattern @ x, heads.W_V, "head d, head d e -> head e")
    written = einops.einsum(z, heads.W_O, "head e, head e d -> head d")
    b_V = pattern.sum(1, keepdim=True) * (heads.b_V + ln1.bias @ heads.W_V)
    bias = heads.b_O + einops.einsum(b_V, heads.W_O, "head e, head e d -> d")
    return [
        *(
            _single("sublayer", layer, f"head{head}.attn", pos, vector, head)
            for head, vector in enumerate(post.linear(written))
        ),
        *_bias(layer, "attn", post.affine(bias)),
    ]


def _post_of(model: SubjectModel, state: FrozenState, write: Site, pos: int) -> _Post:
    """The post-norm behind a dictionary."""
    if write.kind == "mlp_raw_out":
        return _post(model, state, "ln2_post", write.layer, pos)
    return _Post(None, state.logits.new_ones(1))


def _post(model: SubjectModel, state: FrozenState, name: NormName, layer: int, pos: int) -> _Post:
    norm = model.norm(name, layer)
    if norm is None:
        return _Post(None, state.logits.new_ones(1))
    return _Post(norm, norm_scale(state, name, layer, state.logits.dtype)[pos])
