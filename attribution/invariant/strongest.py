"""The strongest virtual weights between two dictionaries, without ever holding them all.

Input-invariant. Weights are made a few targets at a time, to a memory budget, and dropped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.invariant.deembedding import check_features
from attribution.invariant.routes import Head, check_route
from attribution.invariant.weights import direct_virtual_weights, readings, writings
from circuits.spliced import SplicedModel

__all__ = ["TopSources", "WeightPairs", "largest_columns", "top_sources", "top_virtual_weights"]

Progress = Callable[[int, int], None]

_COPIES = 16
"""Memory that one chunk of weights and all that is made of it take, in chunks (as measured)."""


@dataclass(frozen=True, eq=False)
class WeightPairs:
    """Pairs of features and the virtual weights between them, strongest first."""

    targets: Int[Tensor, " pair"]
    sources: Int[Tensor, " pair"]
    weights: Float[Tensor, " pair"]


@dataclass(frozen=True, eq=False)
class TopSources:
    """The strongest sources of each target, strongest first in every row."""

    targets: Int[Tensor, " target"]
    sources: Int[Tensor, "target k"]
    weights: Float[Tensor, "target k"]


def top_virtual_weights(
    spliced: SplicedModel,
    target: str,
    source: str,
    k: int,
    *,
    head: Head | None = None,
    target_features: list[int] | None = None,
    signed: bool = False,
    chunk_bytes: int = 64 * 2**20,
    progress: Progress | None = None,
) -> WeightPairs:
    """The `k` strongest of all virtual weights from `source` to `target`, along one path.

    The entries of `virtual_weights`, chunk by chunk. Equal weights come in the order of their
    targets (as given), then of their sources.

    Args:
        spliced: holds both dictionaries.
        target: the reading dictionary.
        source: the writing dictionary.
        k: how many pairs; all of them if there are fewer.
        head: (layer, query head) on the way; None is the residual stream alone.
        target_features: which targets; None takes all.
        signed: rank by the weight itself, largest first, not by its size.
        chunk_bytes: memory for the weights in flight and all that is made from them; one target's
            are made together, however many.
        progress: called with (targets done, targets in all).

    Raises:
        ValueError: as `virtual_weights`, or if `k` is less than 1.
    """
    _check_k(k)
    targets = _targets(spliced, target, target_features)
    best = WeightPairs(targets[:0], targets[:0], spliced.model.W_E.new_zeros(0))
    for done, rows, block in _blocks(spliced, target, source, head, targets, chunk_bytes):
        best = _merge(best, _beating(best, rows, block, k, signed), k, signed)
        if progress is not None:
            progress(done, len(targets))
    return best


def top_sources(
    spliced: SplicedModel,
    target: str,
    source: str,
    k: int,
    *,
    head: Head | None = None,
    target_features: list[int] | None = None,
    signed: bool = False,
    chunk_bytes: int = 64 * 2**20,
    progress: Progress | None = None,
) -> TopSources:
    """For each target by itself, the `k` sources with the strongest virtual weights.

    Arguments and errors as `top_virtual_weights`; equal weights come in the order of the sources.
    """
    _check_k(k)
    targets = _targets(spliced, target, target_features)
    writer = spliced.placements[spliced.write_site(source)].dictionary
    shape = (len(targets), min(k, writer.n_features))
    # Made at once: small results kept between large blocks would fragment memory.
    sources, weights = targets.new_empty(shape), writer.W_dec.new_empty(shape)
    for done, rows, block in _blocks(spliced, target, source, head, targets, chunk_bytes):
        columns = largest_columns(_keys(block, signed), shape[1])
        sources[done - len(rows) : done] = columns
        weights[done - len(rows) : done] = block.gather(1, columns)
        if progress is not None:
            progress(done, len(targets))
    return TopSources(targets, sources, weights)


def largest_columns(keys: Float[Tensor, "row column"], k: int) -> Int[Tensor, "row k"]:
    """In each row, the columns of the `k` largest entries, largest first, ties to the left.

    Unlike `topk`, which leaves open which of several equal entries it returns.

    Example:
        >>> largest_columns(torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]]), 4)
        tensor([[1, 3, 0, 2]])
    """
    kth = keys.topk(k, dim=1).values[:, -1:]
    above, level = keys > kth, keys == kth
    room = k - above.sum(1, keepdim=True)
    taken = above | (level & (level.cumsum(1, dtype=torch.int32) <= room))
    columns = taken.nonzero()[:, 1].view(len(keys), k)
    order = keys.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def _blocks(
    spliced: SplicedModel,
    target: str,
    source: str,
    head: Head | None,
    targets: Int[Tensor, " target"],
    chunk_bytes: int,
) -> Iterator[tuple[int, Int[Tensor, " chunk"], Float[Tensor, "chunk source"]]]:
    """Weights of a few targets at a time, with how many are done after them."""
    check_route(spliced, spliced.write_site(target), spliced.write_site(source), head)
    written = writings(spliced, target, source, head)
    n_rows = max(1, chunk_bytes // (_COPIES * len(written) * written.element_size()))
    done = 0
    for rows in targets.split(n_rows):
        done += len(rows)
        read = readings(spliced, target, head, rows.tolist())
        yield done, rows, direct_virtual_weights(read, written)


def _keys(weights: Float[Tensor, "*n"], signed: bool) -> Float[Tensor, "*n"]:
    return weights if signed else weights.abs()


def _beating(
    best: WeightPairs,
    rows: Int[Tensor, " chunk"],
    block: Float[Tensor, "chunk source"],
    k: int,
    signed: bool,
) -> WeightPairs:
    """The pairs of a chunk that may enter: no earlier pair loses its place to an equal one."""
    keys = _keys(block, signed).flatten()
    if len(best.weights) < k:
        found = largest_columns(keys[None], min(k, len(keys)))[0]
    else:
        found = (keys > _keys(best.weights, signed)[-1]).nonzero()[:, 0]
    row, column = found // block.shape[1], found % block.shape[1]
    return WeightPairs(rows[row], column, block[row, column])


def _merge(best: WeightPairs, new: WeightPairs, k: int, signed: bool) -> WeightPairs:
    weights = torch.cat([best.weights, new.weights])
    order = largest_columns(_keys(weights, signed)[None], min(k, len(weights)))[0]
    return WeightPairs(
        torch.cat([best.targets, new.targets])[order],
        torch.cat([best.sources, new.sources])[order],
        weights[order],
    )


def _targets(
    spliced: SplicedModel, target: str, features: list[int] | None
) -> Int[Tensor, " target"]:
    dictionary = spliced.placements[spliced.write_site(target)].dictionary
    if features is None:
        return torch.arange(dictionary.n_features, device=spliced.model.device)
    if not features:
        raise ValueError("target_features is empty; give at least one, or None for all")
    check_features(dictionary, features)
    return torch.tensor(features, device=spliced.model.device)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
