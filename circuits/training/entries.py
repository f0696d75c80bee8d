"""The part of the pre-activations that matters: a list of entries, or all of them as a grid.

With L0 far below the number of features only the encoder's product needs to be dense; all after it
runs over a list of entries (one token, one feature, one pre-activation each). Where many features
are active, dense products are faster. An architecture is written once, elementwise on entries, and
runs on either.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.training.step import Moment, Parameters

__all__ = [
    "DENSE_SHARE",
    "Entries",
    "GridEntries",
    "ListedEntries",
    "chosen_entries",
    "entries_above",
    "pre_activations",
]

DENSE_SHARE = {"cpu": 1 / 6, "cuda": 1 / 12}
"""Share of entries above which dense products are faster, by type of device. Measured on CPUs by
`python -m benchmarks.training --crossover` (1/6 with oneDNN, 1/4 with MKL); a guess for CUDA.
Fixed, since a run that chose by its own timing could not be resumed bit for bit."""


class Entries(ABC):
    """Some (token, feature) pairs with their pre-activations; every other pair is inactive."""

    raw: Tensor
    """Pre-activation of each entry: [entry] in a list, [token, feature] in a grid."""

    @abstractmethod
    def at(self, values: Float[Tensor, " feature"]) -> Tensor:
        """A number a feature, given to each of its entries (or ready to broadcast)."""

    @abstractmethod
    def sums(self, values: Tensor) -> Float[Tensor, " feature"]:
        """A number an entry, summed over the entries of each feature."""

    @abstractmethod
    def decode(
        self, a: Tensor, W_dec: Float[Tensor, "feature d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """Sum over the entries of a token of `a * W_dec[feature]`."""

    @abstractmethod
    def value_gradients(
        self, W_dec: Float[Tensor, "feature d_out"], g_out: Float[Tensor, "token d_out"]
    ) -> Tensor:
        """`<W_dec[feature], g_out[token]>` of each entry."""

    @abstractmethod
    def weight_gradients(
        self, pairs: Sequence[tuple[Tensor, Float[Tensor, "token _"]]]
    ) -> list[Float[Tensor, "feature _"]]:
        """For every (values, rows) in `pairs`: G[f] = sum over entries (t, f), value * rows[t]."""

    @abstractmethod
    def select(self, chosen: Bool[Tensor, "..."]) -> "Entries":
        """Only the chosen entries: the others are gone from a list, and 0 in a grid."""

    @abstractmethod
    def group(self, start: int, stop: int) -> "Entries":
        """The entries of the features from `start` to before `stop`, numbered from `start`."""

    def fired(self, a: Tensor) -> Bool[Tensor, " feature"]:
        """Which features have an entry where `a` is above 0."""
        return self.sums((a > 0).to(self.raw.dtype)) > 0


class ListedEntries(Entries):
    """Entries as lists, in the order of tokens.

    Args:
        raw: pre-activation of each entry.
        token: row of each entry, ascending.
        feature: column of each entry.
        shape: tokens and features in all.
    """

    def __init__(
        self,
        raw: Float[Tensor, " entry"],
        token: Int[Tensor, " entry"],
        feature: Int[Tensor, " entry"],
        shape: tuple[int, int],
    ) -> None:
        self.raw, self.token, self.feature, self.shape = raw, token, feature, shape
        self._starts = _starts(token, shape[0])

    def at(self, values: Float[Tensor, " feature"]) -> Float[Tensor, " entry"]:
        return values[self.feature]

    def sums(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " feature"]:
        return values.new_zeros(self.shape[1]).index_add_(0, self.feature, values)

    def decode(
        self, a: Float[Tensor, " entry"], W_dec: Float[Tensor, "feature d_out"]
    ) -> Float[Tensor, "token d_out"]:
        return F.embedding_bag(
            self.feature, W_dec, self._starts[:-1], per_sample_weights=a, mode="sum"
        )

    def value_gradients(
        self, W_dec: Float[Tensor, "feature d_out"], g_out: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, " entry"]:
        return _sampled(self._starts, self.feature, g_out, W_dec)

    def weight_gradients(
        self, pairs: Sequence[tuple[Float[Tensor, " entry"], Float[Tensor, "token _"]]]
    ) -> list[Float[Tensor, "feature _"]]:
        order = torch.argsort(self.feature, stable=True)  # one sort serves all pairs
        token = self.token[order]
        starts = _starts(self.feature, self.shape[1])[:-1]
        return [
            F.embedding_bag(token, rows, starts, per_sample_weights=values[order], mode="sum")
            for values, rows in pairs
        ]

    def select(self, chosen: Bool[Tensor, " entry"]) -> "ListedEntries":
        return ListedEntries(self.raw[chosen], self.token[chosen], self.feature[chosen], self.shape)

    def group(self, start: int, stop: int) -> "ListedEntries":
        inside = self.select((self.feature >= start) & (self.feature < stop))
        shape = (self.shape[0], stop - start)
        return ListedEntries(inside.raw, inside.token, inside.feature - start, shape)


class GridEntries(Entries):
    """All entries: pre-activations as they are."""

    def __init__(self, raw: Float[Tensor, "token feature"]) -> None:
        self.raw = raw

    def at(self, values: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
        return values

    def sums(self, values: Float[Tensor, "token feature"]) -> Float[Tensor, " feature"]:
        return values.sum(0)

    def decode(
        self, a: Float[Tensor, "token feature"], W_dec: Float[Tensor, "feature d_out"]
    ) -> Float[Tensor, "token d_out"]:
        return a @ W_dec

    def value_gradients(
        self, W_dec: Float[Tensor, "feature d_out"], g_out: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token feature"]:
        return g_out @ W_dec.T

    def weight_gradients(
        self, pairs: Sequence[tuple[Float[Tensor, "token feature"], Float[Tensor, "token _"]]]
    ) -> list[Float[Tensor, "feature _"]]:
        return [values.T @ rows for values, rows in pairs]

    def select(self, chosen: Bool[Tensor, "token feature"]) -> "GridEntries":
        return GridEntries(self.raw * chosen)

    def group(self, start: int, stop: int) -> "GridEntries":
        return GridEntries(self.raw[:, start:stop])


def _starts(group: Int[Tensor, " entry"], n: int) -> Int[Tensor, " group_and_end"]:
    """Where each of `n` groups of entries in ascending order begins, and where the last ends."""
    starts = torch.zeros(n + 1, dtype=torch.long, device=group.device)
    torch.cumsum(torch.bincount(group, minlength=n), 0, out=starts[1:])
    return starts


def _sampled(
    starts: Int[Tensor, " group_and_end"],
    feature: Int[Tensor, " entry"],
    rows: Float[Tensor, "token d"],
    columns: Float[Tensor, "feature d"],
) -> Float[Tensor, " entry"]:
    """`<rows[token], columns[feature]>` at every entry of a compressed sparse row pattern."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support.*")
        pattern = torch.sparse_csr_tensor(
            starts,
            feature,
            rows.new_zeros(len(feature)),
            (len(rows), len(columns)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, rows, columns.T, beta=0).values()


def pre_activations(
    p: Parameters, x: Float[Tensor, "token d_in"], moment: Moment, *, bias: str = "b_enc"
) -> Float[Tensor, "token feature"]:
    """`x W_enc^T + b` in a buffer of the workspace, valid until the next call.

    In `moment.encode_dtype` if that is set: then `chosen_entries` and `entries_above` choose by it
    and compute what they chose again in full.
    """
    dtype = moment.encode_dtype or x.dtype
    z = moment.work.take("z", len(x), len(p[bias]), like=x, dtype=dtype)
    return torch.addmm(p[bias].to(dtype), x.to(dtype), p["W_enc"].T.to(dtype), out=z)


def chosen_entries(
    p: Parameters,
    x: Float[Tensor, "token d_in"],
    z: Float[Tensor, "token feature"],
    feature: Int[Tensor, "token k"],
    *,
    bias: str = "b_enc",
) -> Entries:
    """The `feature`s of every token as entries."""
    n_tokens, k = feature.shape
    token = torch.arange(n_tokens, device=x.device).repeat_interleave(k)
    return _listed(p, x, z, token, feature.flatten(), bias)


def entries_above(
    p: Parameters,
    x: Float[Tensor, "token d_in"],
    z: Float[Tensor, "token feature"],
    floor: Float[Tensor, " feature"] | float,
    moment: Moment,
    *,
    bias: str = "b_enc",
) -> Entries:
    """At least every entry above `floor`: as a list, or all as a grid if they are many."""
    above = moment.work.take("above", *z.shape, like=z, dtype=torch.bool)
    torch.gt(z, floor.to(z.dtype) if isinstance(floor, Tensor) else floor, out=above)
    if above.count_nonzero().item() > DENSE_SHARE[z.device.type] * z.numel():
        full = z if z.dtype == x.dtype else torch.addmm(p[bias], x, p["W_enc"].T)
        return GridEntries(full)
    flat = above.flatten().nonzero().squeeze(1)
    token = flat // z.shape[1]
    return _listed(p, x, z, token, flat - token * z.shape[1], bias)


def _listed(
    p: Parameters, x: Tensor, z: Tensor, token: Tensor, feature: Tensor, bias: str
) -> ListedEntries:
    if z.dtype == x.dtype:
        raw = z[token, feature]
    else:
        raw = _sampled(_starts(token, len(z)), feature, x, p["W_enc"]) + p[bias][feature]
    return ListedEntries(raw, token, feature, (len(z), z.shape[1]))
