"""What overlap chance would give: random circuits with the same number of nodes in every layer.

Closed form. In a stratum (a kind of node in a layer, perhaps at a position) let circuit A be n_a
nodes out of a pool of N_a, circuit B n_b out of N_b, with M nodes in both pools. Of the n_a, j lie
in both pools, and of those B draws k, each with a hypergeometric probability:

    P(k) = sum over j of H(j; N_a, M, n_a) H(k; N_b, j, n_b)
    H(k; N, K, n) = C(K, k) C(N - K, n - k) / C(N, n)

With one pool this is H(k; N, n_a, n_b). Strata are independent, so the number shared in all is
distributed as the convolution of theirs.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attribution.nodes import Node

__all__ = ["ChanceOverlap", "chance_overlap", "shared_by_chance"]

_DRAWN = ("feature", "error", "sublayer")
"""What `random_circuits` draws; tokens, positions, biases and outputs are the input and frame."""


class ChanceOverlap(BaseModel):
    """Shared features, errors and sublayers, against random circuits of the same size.

    The same size per layer, or per layer and position.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_shared: int = Field(description="nodes of these kinds that both circuits have")
    expected_shared: float = Field(description="mean over random circuits")
    spread: float = Field(description="standard deviation over random circuits")
    jaccard: float = Field(description="shared over those of either circuit; 0 where none is")
    expected_jaccard: float = Field(description="mean over random circuits")
    p_value: float = Field(description="share of random pairs that have at least as many in common")
    n_pool_a: int = Field(description="nodes that the first could have been chosen from")
    n_pool_b: int = Field(description="nodes that the second could have been chosen from")


def shared_by_chance(pools: tuple[int, int, int], n_a: int, n_b: int) -> Float[Tensor, " n_shared"]:
    """P(k) for k = 0 .. min(n_a, n_b), float64; see the module's formula.

    Args:
        pools: nodes in the first pool, in the second, and in both: `(N_a, N_b, M)`.
        n_a: nodes chosen from the first.
        n_b: nodes chosen from the second.

    Raises:
        ValueError: if a choice is larger than its pool, or what is in both larger than either.

    Example:
        >>> [round(p, 3) for p in shared_by_chance((4, 4, 4), 2, 2).tolist()]
        [0.167, 0.667, 0.167]
    """
    first, second, both = pools
    if not (0 <= n_a <= first and 0 <= n_b <= second and 0 <= both <= min(first, second)):
        raise ValueError(
            f"cannot choose {n_a} and {n_b} nodes from pools of {first} and {second} nodes, {both} "
            "of them in both; count every node that could have been chosen"
        )
    j = torch.arange(n_a + 1, dtype=torch.float64)
    k = torch.arange(min(n_a, n_b) + 1, dtype=torch.float64)
    in_both = _hypergeometric(j, first, torch.tensor(both, dtype=torch.float64), n_a)
    return in_both @ _hypergeometric(k, second, j[:, None], n_b)


def chance_overlap(
    a: Iterable[Node],
    b: Iterable[Node],
    pool_a: Iterable[Node],
    pool_b: Iterable[Node],
    *,
    per_position: bool = False,
) -> ChanceOverlap:
    """Set the nodes that two circuits share against chance.

    Args:
        a: nodes of one circuit.
        b: nodes of the other; the same nodes have the same ids.
        pool_a: what the first could have been chosen from: every node that is active on its
            prompts, say. A wider pool makes every overlap look less like chance.
        pool_b: likewise of the second.
        per_position: whether random circuits have the same size in every layer at every position,
            not in every layer alone. Circuits that both lie at the last position share more than
            chance per layer gives for that alone.

    Raises:
        ValueError: if a circuit has a node that its pool has not.
    """
    ours, theirs, first, second = (_drawn(nodes, per_position) for nodes in (a, b, pool_a, pool_b))
    for circuit, pool in ((ours, first), (theirs, second)):
        if missing := circuit.keys() - pool.keys():
            raise ValueError(
                f"a circuit must be chosen from its own pool, but {min(missing)} is not in it; "
                "add the circuit's nodes to the pool"
            )
    chances = torch.ones(1, dtype=torch.float64)
    for stratum in sorted(set(ours.values()) & set(theirs.values())):
        sizes = [_count(nodes, stratum) for nodes in (first, second, _common(first, second))]
        n_a, n_b = _count(ours, stratum), _count(theirs, stratum)
        own = shared_by_chance((sizes[0], sizes[1], sizes[2]), n_a, n_b)
        chances = _convolve(chances, own)
    shared = torch.arange(len(chances), dtype=torch.float64)
    jaccard = shared / (len(ours) + len(theirs) - shared).clamp_min(1)
    mean = float(chances @ shared)
    n_shared = len(_common(ours, theirs))
    return ChanceOverlap(
        n_shared=n_shared,
        expected_shared=mean,
        spread=float(chances @ (shared - mean) ** 2) ** 0.5,
        jaccard=float(jaccard[n_shared]),
        expected_jaccard=float(chances @ jaccard),
        p_value=min(1.0, float(chances[n_shared:].sum())),
        n_pool_a=len(first),
        n_pool_b=len(second),
    )


_Stratum = tuple[str, int, str, int]
"""Kind, layer, site and position (-1 for all)."""
_Strata = dict[str, _Stratum]
"""By node id."""


def _drawn(nodes: Iterable[Node], per_position: bool) -> _Strata:
    return {
        node.id: (node.kind, node.layer, node.site, node.pos if per_position else -1)
        for node in nodes
        if node.kind in _DRAWN
    }


def _common(a: _Strata, b: _Strata) -> _Strata:
    return {key: stratum for key, stratum in a.items() if key in b}


def _count(nodes: _Strata, stratum: _Stratum) -> int:
    return sum(own == stratum for own in nodes.values())


def _hypergeometric(
    k: Float[Tensor, " k"], n: int, marked: Float[Tensor, "*rest"], drawn: int
) -> Float[Tensor, "*rows k"]:
    """P(k marked ones among `drawn` of n), for each number of marked ones (axes before `k`)."""
    ways = _log_choose(marked, k) + _log_choose(n - marked, drawn - k)
    return (ways - _log_choose(*torch.tensor([n, drawn], dtype=torch.float64))).exp()


def _log_choose(n: Float[Tensor, "*n"], k: Float[Tensor, "*k"]) -> Float[Tensor, "*both"]:
    """Logarithm of C(n, k); minus infinity where there is no such choice."""
    possible = (k >= 0) & (k <= n)
    k = torch.where(possible, k, 0)
    logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp_min(0) + 1)
    return torch.where(possible, logs, -torch.inf)


def _convolve(a: Float[Tensor, " a"], b: Float[Tensor, " b"]) -> Float[Tensor, " c"]:
    """The distribution of a sum of independent counts."""
    total = torch.zeros(len(a) + len(b) - 1, dtype=a.dtype)
    for k, chance in enumerate(b.tolist()):
        total[k : k + len(a)] += chance * a
    return total
