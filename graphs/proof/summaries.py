"""From gaps and harms on every prompt to records with intervals."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from attribution.nodes import Node
from graphs.proof.estimates import Estimate, as_estimate, share_estimate, shares
from graphs.proof.records import Knockouts, Minimality, NodeHarm

__all__ = ["summarise_gaps", "summarise_harms"]


def summarise_gaps(
    search: str,
    sets: Bool[Tensor, "set unit"],
    gaps: Float[Tensor, "set prompt"],
    whole: Float[Tensor, " prompt"],
    weights: Float[Tensor, "resample prompt"],
    units: Sequence[Node],
) -> Knockouts:
    """Mean and worst gap of `knockout_gaps` as shares of `whole`, m(M) - m(empty).

    Raises:
        ValueError: if there is no K.
    """
    if not len(sets):
        raise ValueError(f"the search {search!r} has no K; ask for at least one")
    share = gaps.mean(1) / whole.mean()
    worst = int(share.abs().argmax())
    return Knockouts(
        search=search,
        n_sets=len(sets),
        mean=as_estimate(float(share.abs().mean()), shares(gaps, whole, weights).abs().mean(0)),
        worst=share_estimate(gaps[worst], whole, weights),
        worst_nodes=tuple(units[i].id for i in sets[worst].nonzero().flatten().tolist()),
    )


def summarise_harms(
    members: Sequence[Node],
    harms: Float[Tensor, "context member prompt"],
    whole: Float[Tensor, " prompt"],
    weights: Float[Tensor, "resample prompt"],
    *,
    threshold: float,
) -> Minimality:
    """Minimality from the harms of `removal_harms`; the first context is the circuit itself."""
    share = harms.mean(-1) / whole.mean()
    counts = share.abs() >= threshold
    resampled = shares(harms, whole, weights)
    counted = resampled.abs() >= threshold
    largest = share.gather(0, share.abs().argmax(0, keepdim=True))[0].tolist()
    alone = [
        as_estimate(value, draws)
        for value, draws in zip(share[0].tolist(), resampled[0], strict=True)
    ]
    least = int(share[0].abs().argmin())
    return Minimality(
        threshold=threshold,
        n_contexts=len(harms) - 1,
        smallest=alone[least],
        smallest_node=members[least].id,
        needed_alone=_portion(counts[0], counted[0]),
        needed=_portion(counts.any(0), counted.any(0)),
        nodes=tuple(
            NodeHarm(node=node.id, alone=harm, largest=most)
            for node, harm, most in zip(members, alone, largest, strict=True)
        ),
    )


def _portion(counts: Bool[Tensor, " member"], counted: Bool[Tensor, "member resample"]) -> Estimate:
    return as_estimate(float(counts.double().mean()), counted.double().mean(0))
