"""Decoding and weight gradients that touch active features only.

With L0 far below the number of features only the encoder's product is dense; everything after it
runs over the list of active entries (one token, one feature, one value each).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Codes", "decode", "feature_sums", "fired", "value_gradients", "weight_gradients"]


@dataclass(frozen=True)
class Codes:
    """Activations as a list of entries in the order of tokens.

    Args:
        token: row of each entry, ascending.
        feature: column of each entry.
        value: activation; 0 is allowed and means not active.
        n_tokens: rows in all.
        n_features: columns in all.
    """

    token: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    n_tokens: int
    n_features: int

    @property
    def offsets(self) -> Int[Tensor, " token"]:
        """Where each token's entries begin."""
        return _starts(self.token, self.n_tokens)


def _starts(group: Int[Tensor, " entry"], n: int) -> Int[Tensor, " group"]:
    """First entry of each of `n` groups, entries being grouped in ascending order."""
    counts = torch.bincount(group, minlength=n)
    return counts.cumsum(0) - counts


def decode(codes: Codes, W_dec: Float[Tensor, "feature d_out"]) -> Float[Tensor, "token d_out"]:
    """`a W_dec` for the sparse `a`."""
    return F.embedding_bag(
        codes.feature, W_dec, codes.offsets, per_sample_weights=codes.value, mode="sum"
    )


def value_gradients(
    codes: Codes, W_dec: Float[Tensor, "feature d_out"], gradient: Float[Tensor, "token d_out"]
) -> Float[Tensor, " entry"]:
    """`<W_dec[f], gradient[t]>` for every entry (t, f), whatever its value."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, W_dec, codes.feature, codes.offsets, codes.token, 0
    )


def weight_gradients(
    codes: Codes,
    pairs: list[tuple[Float[Tensor, " entry"], Float[Tensor, "token _"]]],
) -> list[Float[Tensor, "feature _"]]:
    """For every (weight, rows) in `pairs`: G[f] = sum over entries (t, f) of weight * rows[t].

    One sort by feature serves all of them.
    """
    order = torch.argsort(codes.feature, stable=True)
    token = codes.token[order]
    starts = _starts(codes.feature, codes.n_features)
    return [
        F.embedding_bag(token, rows, starts, per_sample_weights=weight[order], mode="sum")
        for weight, rows in pairs
    ]


def feature_sums(codes: Codes, weight: Float[Tensor, " entry"]) -> Float[Tensor, " feature"]:
    """Sum of `weight` over the entries of each feature."""
    return weight.new_zeros(codes.n_features).index_add_(0, codes.feature, weight)


def fired(codes: Codes) -> Bool[Tensor, " feature"]:
    """Which features are active anywhere."""
    out = torch.zeros(codes.n_features, dtype=torch.bool, device=codes.value.device)
    out[codes.feature[codes.value > 0]] = True
    return out
