"""Sums over a corpus for every feature of a dictionary, from lists of active entries."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.feature_store.layout import N_BINS, histogram_edges

__all__ = ["FeatureSums", "histogram_bins"]


def histogram_bins(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The bin of each positive activation; what is beyond the edges goes to the bins at the ends.

    Example:
        >>> histogram_bins(torch.tensor([1e-9, 1.0, 1.5, 1e9]))
        tensor([ 0, 24, 25, 47])
    """
    return (torch.bucketize(values, histogram_edges(), right=True) - 1).clamp(0, N_BINS - 1)


class FeatureSums:
    """Counts, sum and maximum of activation, and their histogram."""

    def __init__(self, n_features: int) -> None:
        self.n_active = torch.zeros(n_features, dtype=torch.int64)
        self.sum = torch.zeros(n_features, dtype=torch.float64)
        self.maximum = torch.zeros(n_features, dtype=torch.float32)
        self.histogram = torch.zeros(n_features, N_BINS, dtype=torch.int64)

    def add(self, features: Int[Tensor, " n"], values: Float[Tensor, " n"]) -> None:
        """Count the active entries of some positions: their features and positive activations."""
        n = len(self.n_active)
        self.n_active += features.bincount(minlength=n)
        self.sum += features.bincount(weights=values.double(), minlength=n)
        self.maximum.scatter_reduce_(0, features, values, "amax")
        bins = features * N_BINS + histogram_bins(values)
        self.histogram += bins.bincount(minlength=n * N_BINS).view(n, N_BINS)
