"""Which feature of one dictionary is which feature of another, by the directions they have.

Input-invariant: weights alone. Two dictionaries of one layer of one model have no common names;
features that are each other's nearest in direction are taken to be the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.nodes import Node
from circuits.dictionaries import Dictionary

__all__ = ["FeatureMatch", "match_dictionaries", "mutual_nearest", "rename_features"]


@dataclass(frozen=True, eq=False)
class FeatureMatch:
    """Pairs of features of two dictionaries, a feature in at most one pair.

    Attributes:
        a: features of the first dictionary, ascending.
        b: the second dictionary's, pair by pair.
        similarity: of each pair.
    """

    a: Int[Tensor, " pair"]
    b: Int[Tensor, " pair"]
    similarity: Float[Tensor, " pair"]


def mutual_nearest(
    a: Float[Tensor, "feature_a d"],
    b: Float[Tensor, "feature_b d"],
    *,
    at_least: float,
    chunk: int = 2048,
) -> FeatureMatch:
    """Pair the rows of `a` and `b` that are each other's nearest by dot product.

        pair (i, j)  if  j = argmax_j' <a[i], b[j']>  and  i = argmax_i' <a[i'], b[j]>

    Of equal ones the earlier is taken. Memory is `chunk` times the rows of `b`.

    Args:
        a: rows of unit length for cosines.
        b: likewise.
        at_least: pairs below are left out; chance alone gives nearest neighbours too.
        chunk: rows of `a` at a time.

    Raises:
        ValueError: if there is no row on a side.
    """
    if not len(a) or not len(b):
        raise ValueError(f"want features on both sides, got {len(a)} and {len(b)}")
    best = torch.full((len(b),), -torch.inf, dtype=b.dtype)
    nearest_a = torch.zeros(len(b), dtype=torch.long)
    values, nearest_b = [], []
    for start in range(0, len(a), chunk):
        dot = a[start : start + chunk] @ b.T
        value, column = dot.max(1)
        values.append(value)
        nearest_b.append(column)
        highest, row = dot.max(0)
        better = highest > best
        best = torch.where(better, highest, best)
        nearest_a = torch.where(better, row + start, nearest_a)
    similarity, column = torch.cat(values), torch.cat(nearest_b)
    mutual = (nearest_a[column] == torch.arange(len(a))) & (similarity >= at_least)
    rows = mutual.nonzero().flatten()
    return FeatureMatch(rows, column[rows], similarity[rows])


def match_dictionaries(a: Dictionary, b: Dictionary, *, at_least: float = 0.7) -> FeatureMatch:
    """Pair features of two dictionaries of the same layer and site.

        similarity(i, j) = (cos(W_enc_a[:, i], W_enc_b[:, j]) + cos(W_dec_a[i], W_dec_b[j])) / 2

    A feature is what it reads and what it writes, so both count equally; for a cross-layer
    transcoder the writes are all its decoders, end to end.

    Args:
        a: one dictionary.
        b: the other; it need not have as many features.
        at_least: smallest similarity of a pair.

    Raises:
        ValueError: if they read or write spaces of different sizes, or expect their input
            normalised in different ways, so that directions cannot be compared.
    """
    if a.convention.norm != b.convention.norm:
        raise ValueError(
            f"dictionaries to match must read inputs normalised in one way, got "
            f"{a.convention.norm!r} and {b.convention.norm!r}; fold one into the other's first"
        )
    ours, theirs = _directions(a), _directions(b)
    if ours.shape[1] != theirs.shape[1] or a.d_in != b.d_in:
        raise ValueError(
            f"dictionaries to match must read and write the same spaces, got widths {a.d_in} to "
            f"{a.d_out} and {b.d_in} to {b.d_out}; take two of one layer of one model"
        )
    return mutual_nearest(ours, theirs, at_least=at_least)


def rename_features(
    nodes: Iterable[Node],
    matches: Mapping[tuple[str, int], FeatureMatch],
    *,
    unmatched_from: int,
) -> list[Node]:
    """Call features by the names of another dictionary set.

    Args:
        nodes: their features are those of the second dictionaries (`b`) of the matches.
        matches: (site, layer) -> the match of that place.
        unmatched_from: at least as many features as any dictionary has that the nodes are to be
            compared with, so that a feature without a partner is nobody's.

    Returns:
        The same nodes; a matched feature has its partner's index, another one
        `unmatched_from + its own`.

    Raises:
        ValueError: if a feature is at a place without a match.
    """
    names = {
        place: dict(zip(match.b.tolist(), match.a.tolist(), strict=True))
        for place, match in matches.items()
    }

    def renamed(node: Node) -> Node:
        place = (node.site, node.layer)
        if node.kind != "feature":
            return node
        if place not in names:
            raise ValueError(f"no match for the dictionary of {node.id}; there are {sorted(names)}")
        index = names[place].get(node.feature, unmatched_from + node.feature)
        return node.model_copy(update={"feature": index})

    return [renamed(node) for node in nodes]


def _directions(dictionary: Dictionary) -> Float[Tensor, "feature d"]:
    """What each feature reads and writes: rows of unit length whose products are mean cosines."""
    reads, writes = dictionary.W_enc.T, dictionary.W_dec.flatten(1)
    parts = [torch.nn.functional.normalize(part.float(), dim=1) for part in (reads, writes)]
    return torch.cat(parts, dim=1) / 2**0.5
