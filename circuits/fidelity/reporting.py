"""From sums to records: the numbers of one dictionary, and of one set of sites."""

import torch

from circuits.fidelity.passes import DictionaryStatistics, Losses
from circuits.fidelity.records import CrossEntropy, Density, DictionaryFidelity, KLDivergence
from circuits.metrics import LOG10_DENSITY_EDGES, ce_recovered, density_histogram, kl_recovered

__all__ = ["dictionary_record", "loss_records"]


def loss_records(
    clean: float, spliced: Losses, mean: Losses, zero: Losses
) -> tuple[CrossEntropy, KLDivergence]:
    """Losses and divergences of one set of sites, recovered against both ablations.

    Args:
        clean: the model's own loss.
        spliced: with reconstructions at the sites.
        mean: with the sites mean-ablated.
        zero: with the sites zero-ablated.
    """
    losses = CrossEntropy(
        clean=clean,
        spliced=spliced.cross_entropy,
        mean_ablated=mean.cross_entropy,
        zero_ablated=zero.cross_entropy,
        recovered_mean=_ce_recovered(clean, spliced, mean),
        recovered_zero=_ce_recovered(clean, spliced, zero),
    )
    divergences = KLDivergence(
        spliced=spliced.kl,
        mean_ablated=mean.kl,
        zero_ablated=zero.kl,
        recovered_mean=_kl_recovered(spliced, mean),
        recovered_zero=_kl_recovered(spliced, zero),
    )
    return losses, divergences


def _ce_recovered(clean: float, spliced: Losses, ablated: Losses) -> float | None:
    if ablated.cross_entropy <= clean:
        return None
    return ce_recovered(clean, spliced.cross_entropy, ablated.cross_entropy)


def _kl_recovered(spliced: Losses, ablated: Losses) -> float | None:
    return None if ablated.kl <= 0 else kl_recovered(spliced.kl, ablated.kl)


def dictionary_record(
    name: str, statistics: DictionaryStatistics, losses: CrossEntropy, divergences: KLDivergence
) -> DictionaryFidelity:
    """All there is to say of the dictionary called `name`."""
    sums = statistics.reconstruction
    density = statistics.firings.double() / sums.n_tokens
    return DictionaryFidelity(
        name=name,
        n_features=len(density),
        l0=density.sum().item(),
        fvu=sums.fvu(),
        explained_variance=1 - sums.fvu(),
        cosine=sums.cosine(),
        l2_ratio=sums.l2_ratio(),
        reconstruction_bias=sums.reconstruction_bias(),
        dead_share=_share(density == 0),
        density=Density(
            log10_edges=LOG10_DENSITY_EDGES,
            counts=density_histogram(density),
            above_1_percent=_share(density > 0.01),
            above_10_percent=_share(density > 0.1),
        ),
        cross_entropy=losses,
        kl=divergences,
    )


def _share(of: torch.Tensor) -> float:
    return of.double().mean().item()
