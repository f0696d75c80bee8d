"""Fidelity metrics as plain functions: sparsity, reconstruction, and what the model loses.

Sums run in float64 over all tokens before any ratio is taken. Leave special tokens out first.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.reconstruction import ReconstructionSums

__all__ = [
    "LOG10_DENSITY_EDGES",
    "ce_recovered",
    "cosine",
    "dead_share",
    "density_histogram",
    "explained_variance",
    "fvu",
    "kl_divergence",
    "kl_recovered",
    "l0",
    "l2_ratio",
    "reconstruction_bias",
]

LOG10_DENSITY_EDGES: tuple[float, ...] = tuple(-7 + 0.25 * i for i in range(29))
"""Edges of every density histogram, so that any two can be laid side by side."""


def l0(a: Float[Tensor, "token feature"]) -> float:
    """Mean number of active features a token; leave BOS out of `a`.

    Example:
        >>> l0(torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
        1.5
    """
    return a.count_nonzero().item() / len(a)


def dead_share(a: Float[Tensor, "token feature"]) -> float:
    """Share of features that are active on no token.

    Example:
        >>> dead_share(torch.tensor([[0.0, 2.0], [0.0, 3.0]]))
        0.5
    """
    return (a == 0).all(0).double().mean().item()


def density_histogram(density: Float[Tensor, " feature"]) -> tuple[int, ...]:
    """How many features have each log10 density, density being the share of tokens they fire on.

    Bin i counts densities in [10^edge_i, 10^edge_(i+1)) of `LOG10_DENSITY_EDGES`. The first also
    has what is rarer, the last what always fires; features that never fire are in none.

    Example:
        >>> counts = density_histogram(torch.tensor([0, 0.01, 0.012, 1], dtype=torch.float64))
        >>> {edge: n for edge, n in zip(LOG10_DENSITY_EDGES, counts) if n}
        {-2.0: 2, -0.25: 1}
    """
    edges = torch.tensor(LOG10_DENSITY_EDGES, dtype=torch.float64, device=density.device)
    alive = density[density > 0].double().log10()
    bins = torch.bucketize(alive, edges, right=True) - 1
    n_bins = len(edges) - 1
    return tuple(bins.clamp(0, n_bins - 1).bincount(minlength=n_bins).tolist())


def fvu(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> float:
    """Squared error over the target's variance about its mean, both summed over all tokens.

        FVU = sum |y - y_hat|^2 / sum |y - mean(y)|^2

    0 is perfect, 1 predicts the mean. For a transcoder `y` is the MLP's output, not its input.

    Raises:
        ValueError: if the target does not vary.

    Example:
        >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
        1.0
    """
    return _sums(y, y_hat).fvu()


def explained_variance(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> float:
    """`1 - E|y - y_hat|^2 / (E|y|^2 - |E y|^2)`, which is 1 - FVU; below 0 where that is above 1.

    About the mean, over all tokens at once: relative to zero a large mean would look like fidelity.

    Raises:
        ValueError: if the target does not vary.

    Example:
        >>> explained_variance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
        0.5
    """
    return 1 - fvu(y, y_hat)


def cosine(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> float:
    """Mean cosine of target and reconstruction, over tokens whose target is not zero.

    A reconstruction that is zero counts as cosine 0.

    Raises:
        ValueError: if the target is zero on every token.

    Example:
        >>> cosine(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [2.0, 0.0]]))
        0.8
    """
    return _sums(y, y_hat).cosine()


def l2_ratio(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> float:
    """Mean of `|y_hat| / |y|`, over tokens whose target is not zero; below 1 is shrinkage.

    Raises:
        ValueError: if the target is zero on every token.

    Example:
        >>> l2_ratio(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [2.0, 0.0]]))
        1.3
    """
    return _sums(y, y_hat).l2_ratio()


def reconstruction_bias(
    y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]
) -> float | None:
    """`E|y_hat|^2 / E[y . y_hat]`: 1 is unbiased, below 1 is shrinkage (Rajamanoharan et al. 2024).

    The reciprocal of the factor by which all reconstructions would best be scaled; None where
    `E[y . y_hat]` is 0, as for a reconstruction that is always zero.

    Example:
        >>> reconstruction_bias(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0]]))
        0.5
    """
    return _sums(y, y_hat).reconstruction_bias()


def _sums(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> ReconstructionSums:
    sums = ReconstructionSums()
    sums.add(y, y_hat)
    return sums


def kl_divergence(
    log_p: Float[Tensor, "*#token d_vocab"], log_q: Float[Tensor, "*#token d_vocab"]
) -> Float[Tensor, "*_"]:
    """KL(p || q) of each token in nats, from log-probabilities: `sum_v p (log p - log q)`.

    Axes before the last broadcast. From log-softmax, since log(softmax) underflows to -inf; what p
    gives no probability counts 0.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
        >>> kl_divergence(p.log(), q.log())
        tensor([0.1438])
    """
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def ce_recovered(clean: float, spliced: float, ablated: float) -> float:
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_clean), from mean losses.

    1 is as good as the model, 0 as bad as the ablation; name the ablation with every figure.

    Raises:
        ValueError: if the ablation does not raise the loss.

    Example:
        >>> ce_recovered(clean=2.0, spliced=2.5, ablated=4.0)
        0.75
    """
    if not ablated > clean:
        raise ValueError(
            f"the ablated loss ({ablated:.6g}) is not above the clean one ({clean:.6g}), so there "
            "is nothing to recover"
        )
    return (ablated - spliced) / (ablated - clean)


def kl_recovered(spliced: float, ablated: float) -> float:
    """(KL_ablated - KL_spliced) / KL_ablated, from mean divergences from the model.

    1 is as good as the model, 0 as bad as the ablation; name the ablation with every figure.

    Raises:
        ValueError: if the ablation does not change the model's predictions.

    Example:
        >>> kl_recovered(spliced=0.5, ablated=2.0)
        0.75
    """
    if not ablated > 0:
        raise ValueError(
            f"the ablation's KL is {ablated:.6g}: it changes no prediction, so there is nothing to "
            "recover"
        )
    return (ablated - spliced) / ablated
