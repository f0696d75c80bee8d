"""One layer's attention with its pattern and norm denominators held: a linear map, and a constant.

Everything that does not depend on the target is folded here once: norm gains and centring into the
weights, norm denominators into the pattern, biases into one vector a position. Input-dependent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.sites import NormName, Site, SiteKind
from circuits.spliced import FrozenState
from circuits.subject import SubjectModel

__all__ = ["FrozenAttention", "freeze_attention", "norm_scale", "working_dtype"]


@dataclass(frozen=True)
class FrozenAttention:
    """`out[q] = sum over heads and k of mixing[q, k] W_O W_V x[k]`, plus `constant[q]`.

    Attributes:
        W_V: from the residual stream to each key-value head, the norm before folded in.
        W_O: from each query head to the residual stream, any post-norm folded in.
        mixing: patterns over the denominators of the norm before (at the key) and of any post-norm
            (at the query).
        constant: what value, output and norm biases write.
    """

    W_V: Float[Tensor, "kv_head d_head d_model"]
    W_O: Float[Tensor, "head d_head d_model"]
    mixing: Float[Tensor, "head query key"]
    constant: Float[Tensor, "pos d_model"]

    @property
    def group(self) -> int:
        """Query heads a key-value head."""
        return self.W_O.shape[0] // self.W_V.shape[0]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum in: at least float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def norm_scale(
    state: FrozenState, name: NormName, layer: int, dtype: torch.dtype
) -> Float[Tensor, "pos 1"]:
    """The held denominators of a norm."""
    kind: SiteKind = f"{name}_scale"  # type: ignore[assignment]
    return state.values[Site(kind, layer)][0].to(dtype)


def freeze_attention(model: SubjectModel, state: FrozenState, layer: int) -> FrozenAttention:
    """Attention of `layer`, held at the one prompt of `state`."""
    dtype = working_dtype(model.dtype)
    heads = model.heads(layer)
    before, after = model.norm("ln1", layer), model.norm("ln1_post", layer)
    assert before is not None
    one = torch.ones(1, dtype=dtype, device=model.device)
    W_V = heads.W_V[:: heads.group].to(dtype)
    folded = before.to(dtype).adjoint(W_V.transpose(1, 2), one)
    pattern = state.values[Site("pattern", layer)][0].to(dtype)
    mixing = pattern / norm_scale(state, "ln1", layer, dtype)[:, 0]
    # Biases: what the norm's bias and b_V become after the head's output weights.
    b_V = heads.b_V.to(dtype) + torch.einsum(
        "hde,d->he", W_V, before.bias.to(dtype)
    ).repeat_interleave(heads.group, 0)
    W_O = heads.W_O.to(dtype)
    written = torch.einsum("he,hed->hd", b_V, W_O)
    constant = pattern.sum(-1).T @ written + heads.b_O.to(dtype)
    if after is not None:
        after = after.to(dtype)
        scale = norm_scale(state, "ln1_post", layer, dtype)
        W_O = after.linear(W_O, one)
        mixing = mixing / scale
        constant = after.linear(constant, scale) + after.bias
    return FrozenAttention(folded.contiguous(), W_O, mixing, constant)
