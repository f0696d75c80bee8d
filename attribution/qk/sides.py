"""The two ends of an attention score: the sources at a position as the head's query or key reads
them.

Input-dependent factors and weights-only vectors are kept apart.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.nodes import Node, NodeTable
from attribution.qk.held import HeldAttention
from attribution.qk.rotary import relative_rotation, rotate
from circuits.sites import Site
from circuits.subject import Norm

__all__ = ["ScoreSide", "key_side", "query_side", "read_through"]


@dataclass(frozen=True, eq=False)
class ScoreSide:
    """Queries (or keys) of the sources at one position; they add up to the head's query (or key).

        query = sum_s factors[s] * vectors[s]

    Attributes:
        nodes: the sources of the residual stream, and one constant (`bias.query`, `bias.key`).
        factors: coefficients of the sources over the denominators of `ln1` and a query or key norm.
        vectors: `d_s W_Q` with the gain of `ln1` folded in; weights alone where `d_s` is.
    """

    nodes: NodeTable
    factors: Float[Tensor, " source"]
    vectors: Float[Tensor, "source d_head"]

    @property
    def whole(self) -> Float[Tensor, " d_head"]:
        """The query, or the key."""
        return self.factors @ self.vectors


def read_through(
    directions: Float[Tensor, "source d_model"], ln1: Norm, W: Float[Tensor, "d_model d_head"]
) -> Float[Tensor, "source d_head"]:
    """What a head's queries or keys read of each direction, before any denominator."""
    return ln1.linear(directions, directions.new_ones(1)) @ W


def query_side(held: HeldAttention, head: int, pos: int) -> ScoreSide:
    """The query of `head` at `pos` and its sources, before the rotation."""
    weights = held.weights
    scale = held.query_scale[head, pos]
    return _side(held, pos, weights.W_Q[head], weights.b_Q[head], scale, "query")


def key_side(held: HeldAttention, head: int, pos: int, query: int) -> ScoreSide:
    """The key of `head` at `pos` and its sources, turned as an unrotated query at `query` meets it.

    Only the relative rotation is applied, so that the vectors depend on the offset alone.
    """
    weights, rotary = held.weights, held.rotary
    scale = held.key_scale[head, pos]
    side = _side(held, pos, weights.W_K[head], weights.b_K[head], scale, "key")
    cos, sin = relative_rotation(rotary.cos, rotary.sin, query, pos)
    return ScoreSide(side.nodes, side.factors, rotate(side.vectors, cos, sin))


def _side(
    held: HeldAttention,
    pos: int,
    W: Float[Tensor, "d_model d_head"],
    b: Float[Tensor, " d_head"],
    scale: Float[Tensor, ""],
    name: Literal["query", "key"],
) -> ScoreSide:
    ln1 = held.model.norm("ln1", held.layer)
    assert ln1 is not None
    stream = held.sources(pos)
    sigma = held.state.values[Site("ln1_scale", held.layer)][0, pos, 0]
    nodes, factors = list(stream.nodes), stream.coefficients / sigma.to(scale.dtype)
    vectors = read_through(stream.directions, ln1, W)
    constant = ln1.bias @ W + b
    if constant.any():
        nodes.append(Node(kind="bias", layer=held.layer, site=name, pos=-1))
        factors = torch.cat([factors, factors.new_ones(1)])
        vectors = torch.cat([vectors, constant[None]])
    return ScoreSide(NodeTable(nodes), factors / scale, vectors)
