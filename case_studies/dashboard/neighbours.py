"""The features of the same site that write into features or read them, along the stream.

Input-invariant. Many features at once: one product a pair of layers, not one a feature.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution import virtual_weights
from attribution.invariant.null import isotropic_significance
from attribution.invariant.routes import check_route
from attribution.invariant.strongest import WeightPairs, largest_columns, top_sources
from case_studies.dashboard.places import in_order, only
from circuits import SplicedModel
from circuits.dictionaries import SAE

__all__ = ["Neighbour", "Neighbours", "find_neighbours"]


@dataclass(frozen=True)
class Neighbour:
    """A feature, its virtual weight, and how that compares with a random direction's."""

    name: str
    weight: float
    z: float
    p: float


@dataclass(frozen=True)
class Neighbours:
    """The strongest by size, out of how many; and why layers could not be looked at, if any."""

    strongest: list[Neighbour]
    n_looked_at: int
    obstacles: tuple[str, ...] = ()


class _Found(NamedTuple):
    """The strongest neighbours of some features in one other dictionary."""

    name: str
    indices: Int[Tensor, "feature k"]
    weights: Float[Tensor, "feature k"]
    z: Float[Tensor, "feature k"]
    p: Float[Tensor, "feature k"]


def find_neighbours(
    spliced: SplicedModel, name: str, features: list[int], top: int
) -> list[dict[str, Neighbours]]:
    """For each feature, the strongest virtual weights from below (`upstream`) and to above
    (`downstream`), by size.

    SAEs are taken in pairs, since others between them would replace what they pass on. `z` and `p`
    are of the isotropic null. A dictionary without a weights-only path from or to this one (a
    post-norm lies on it) is left out, and why is in `obstacles`.

    Args:
        spliced: holds dictionaries of one site alone.
        name: of the features' dictionary, such as `mlp.2`.
        features: their indices.
        top: how many on each side.
    """
    found: dict[str, list[_Found]] = {"upstream": [], "downstream": []}
    n_looked_at = dict.fromkeys(found, 0)
    obstacles: dict[str, list[str]] = {"upstream": [], "downstream": []}
    key = "upstream"
    for other in in_order(spliced):
        if other.name == name:
            key = "downstream"
            continue
        ends = (name, other.name) if key == "upstream" else (other.name, name)
        pair = only(spliced, ends) if isinstance(other.dictionary, SAE) else spliced
        try:
            check_route(pair, pair.write_site(ends[0]), pair.write_site(ends[1]), None)
        except ValueError as error:
            obstacles[key].append(str(error))
            continue
        look = _writers if key == "upstream" else _readers
        found[key].append(look(pair, *ends, features, min(top, other.dictionary.n_features)))
        n_looked_at[key] += other.dictionary.n_features
    lists = {key: _strongest(near, len(features), top) for key, near in found.items()}
    return [
        {k: Neighbours(lists[k][i], n_looked_at[k], tuple(obstacles[k])) for k in found}
        for i in range(len(features))
    ]


def _writers(pair: SplicedModel, target: str, source: str, features: list[int], k: int) -> _Found:
    """The features of `source` that write most into each feature of `target`."""
    best = top_sources(pair, target, source, k, target_features=features)
    pairs = WeightPairs(
        best.targets.repeat_interleave(k), best.sources.flatten(), best.weights.flatten()
    )
    return _judged(pair, target, source, pairs, source, best.sources)


def _readers(pair: SplicedModel, target: str, source: str, features: list[int], k: int) -> _Found:
    """The features of `target` that read each feature of `source` most."""
    weights = virtual_weights(pair, target, source, source_features=features).T
    targets = largest_columns(weights.abs(), k)
    sources = torch.tensor(features, device=targets.device).repeat_interleave(k)
    pairs = WeightPairs(targets.flatten(), sources, weights.gather(1, targets).flatten())
    return _judged(pair, target, source, pairs, target, targets)


def _judged(
    pair: SplicedModel,
    target: str,
    source: str,
    pairs: WeightPairs,
    other: str,
    indices: Int[Tensor, "feature k"],
) -> _Found:
    """Pairs, one row a feature, against the isotropic null."""
    null = isotropic_significance(pair, target, source, pairs)
    rows = (column.view_as(indices) for column in (pairs.weights, null.z, null.p))
    return _Found(other, indices, *rows)


def _strongest(found: list[_Found], n: int, top: int) -> list[list[Neighbour]]:
    """Of several dictionaries, the strongest neighbours of each of `n` features."""
    if not found:
        return [[] for _ in range(n)]
    parts = [
        (torch.full_like(near.indices, i), near.indices, near.weights, near.z, near.p)
        for i, near in enumerate(found)
    ]
    columns = [torch.cat(column, dim=1) for column in zip(*parts, strict=True)]
    best = largest_columns(columns[2].abs(), min(top, columns[0].shape[1]))
    rows = zip(*(column.gather(1, best).tolist() for column in columns), strict=True)
    return [
        [
            Neighbour(f"{found[i].name}.{index}", weight, z, p)
            for i, index, weight, z, p in zip(*row, strict=True)
        ]
        for row in rows
    ]
