"""Gradients through the heads of one frozen layer: from behind attention to before it.

Plain functions on tensors. `buffer(name, *shape)` gives memory to work in, not cleared.
"""

from collections.abc import Callable

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.frozen import FrozenAttention
from circuits.precision import fast_float32

__all__ = ["add_through_values", "edges_at_values", "gradient_at_values", "spread_to_keys"]

Buffer = Callable[..., Tensor]


def gradient_at_values(
    frozen: FrozenAttention, g: Float[Tensor, "row d_model"], t: int, n: int, buffer: Buffer
) -> Float[Tensor, "kv_head pos target d_head"]:
    """The gradient at the values: through the output weights, then from queries to keys.

    Each key-value head sums over its query heads and the queries.

    Args:
        frozen: the layer.
        g: behind attention, the first `t * n` rows by target and position; the others are there
            only to make the number of rows round.
        t: number of targets.
        n: number of positions.
        buffer: memory to work in; the result lies there.
    """
    n_heads, d_head, _ = frozen.W_O.shape
    n_kv = len(frozen.W_V)
    at_z = buffer("a", len(g), n_heads * d_head)
    with fast_float32(g.device):
        torch.mm(g, frozen.W_O.flatten(0, 1).T, out=at_z)
    by_head = buffer("b", n_kv, frozen.group, n, t, d_head)
    sizes = {"t": t, "q": n, "kv": n_kv, "g": frozen.group}
    by_head.copy_(einops.rearrange(at_z[: t * n], "(t q) (kv g e) -> kv g q t e", **sizes))
    mixing = frozen.mixing[:, :n, :n].reshape(n_kv, -1, n).transpose(1, 2)
    at_v = buffer("a", n_kv, n, t * d_head)
    torch.bmm(mixing, by_head.view(n_kv, -1, t * d_head), out=at_v)
    return at_v.view(n_kv, n, t, d_head)


def add_through_values(
    g: Float[Tensor, "row d_model"],
    frozen: FrozenAttention,
    at_v: Float[Tensor, "kv_head pos target d_head"],
    buffer: Buffer,
) -> None:
    """Add to `g`, in place, what the gradient at the values is before attention."""
    n_kv, n, t, d_head = at_v.shape
    by_target = buffer("b", len(g), n_kv * d_head)
    ordered = einops.rearrange(at_v, "kv k t e -> t k kv e")
    by_target[: t * n].view(t, n, n_kv, d_head).copy_(ordered)
    by_target[t * n :] = 0  # rows that make the number round stay as they are
    with fast_float32(g.device):
        g.addmm_(by_target, frozen.W_V.flatten(0, 1))


def edges_at_values(
    at_v: Float[Tensor, "kv_head pos target d_head"],
    sources: Float[Tensor, "kv_head pos d_head source"],
) -> Float[Tensor, "target column"]:
    """Edges through the heads from sources that are given as values, position by position."""
    by_head = torch.bmm(at_v.flatten(0, 1), sources.flatten(0, 1))
    return einops.reduce(by_head, "(kv pos) t s -> t (pos s)", "sum", pos=at_v.shape[1])


def spread_to_keys(
    g: Float[Tensor, "target d_model"], frozen: FrozenAttention, pos: int
) -> Float[Tensor, "key target d_model"]:
    """Gradients at position `pos` through all heads, at every position up to it.

    A head writes the same vector at every key, times its mixing: one product a head, not one a key.
    """
    n_kv, d_head, d_model = frozen.W_V.shape
    at_z = g @ frozen.W_O.flatten(0, 1).T
    by_head = einops.rearrange(at_z, "t (kv g e) -> kv (g t) e", kv=n_kv, e=d_head)
    at_x = einops.rearrange(
        torch.bmm(by_head, frozen.W_V), "kv (g t) d -> (kv g) (t d)", g=frozen.group
    )
    spread = frozen.mixing[:, pos, : pos + 1].T @ at_x
    return spread.view(pos + 1, len(g), d_model)
