"""The features of the same site that write into one feature or read it, along the stream.

Input-invariant.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from attribution import virtual_weights
from attribution.invariant.null import isotropic_significance
from attribution.invariant.strongest import WeightPairs, top_virtual_weights
from circuits import SplicedModel

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
    """The strongest by size, out of how many."""

    strongest: list[Neighbour]
    n_looked_at: int


def find_neighbours(
    spliced: SplicedModel, site: str, layer: int, index: int, top: int
) -> dict[str, Neighbours]:
    """The strongest virtual weights from below (`upstream`) and to above (`downstream`), by size.

    SAEs are taken in pairs, since others between them would replace what they pass on. `z` and `p`
    are of the isotropic null.
    """
    dictionaries = {write.layer: p.dictionary for write, p in spliced.placements.items()}
    here = f"{site}.{layer}"
    found: dict[str, list[Neighbour]] = {"upstream": [], "downstream": []}
    n_looked_at = {"upstream": 0, "downstream": 0}
    for other, dictionary in dictionaries.items():
        if other == layer:
            continue
        there = f"{site}.{other}"
        pair = spliced
        if site != "mlp":
            pair = SplicedModel(spliced.model, {here: dictionaries[layer], there: dictionary})
        if other < layer:
            key, ends = "upstream", (here, there)
            weights = top_virtual_weights(pair, *ends, top, target_features=[index])
            features = weights.sources
        else:
            key, ends = "downstream", (there, here)
            weights = _readers(pair, *ends, index, top)
            features = weights.targets
        found[key] += _judged(pair, *ends, weights, features, there)
        n_looked_at[key] += dictionary.n_features
    return {
        key: Neighbours(sorted(near, key=lambda n: -abs(n.weight))[:top], n_looked_at[key])
        for key, near in found.items()
    }


def _readers(
    spliced: SplicedModel, target: str, source: str, feature: int, top: int
) -> WeightPairs:
    """The features of `target` that read one feature of `source` most, by size."""
    weights = virtual_weights(spliced, target, source, source_features=[feature])[:, 0]
    targets = weights.abs().topk(min(top, len(weights))).indices
    return WeightPairs(targets, torch.full_like(targets, feature), weights[targets])


def _judged(
    spliced: SplicedModel,
    target: str,
    source: str,
    pairs: WeightPairs,
    features: Int[Tensor, " pair"],
    site: str,
) -> list[Neighbour]:
    """The pairs under the names of one end's features, against the isotropic null."""
    null = isotropic_significance(spliced, target, source, pairs)
    rows = (features, pairs.weights, null.z, null.p)
    return [
        Neighbour(f"{site}.{feature}", weight, z, p)
        for feature, weight, z, p in zip(*(column.tolist() for column in rows), strict=True)
    ]
