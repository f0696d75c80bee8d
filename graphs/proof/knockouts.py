"""Completeness by knockouts: does the circuit break where the model breaks?

Wang et al. 2023 (IOI), section 4: for every K inside C, `|F(C without K) - F(M without K)|` should
be small; K is searched at random, greedily, and class by class. What a redundant node outside the
circuit does when its twin is knocked out is seen here and nowhere else.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.nodes import Node
from graphs.proof.trial import Measure

__all__ = ["greedy_knockouts", "knockout_gaps", "knockouts_by_class", "random_knockouts"]


def knockout_gaps(
    measure: Measure, circuit: Bool[Tensor, " unit"], knockouts: Bool[Tensor, "set unit"]
) -> Float[Tensor, "set prompt"]:
    """`m(C without K) - m(M without K)` of every K, on every prompt, in the metric's units."""
    runs = torch.cat([circuit & ~knockouts, ~knockouts])
    without_c, without_m = measure(runs).metric.split(len(knockouts))
    return without_c - without_m


def random_knockouts(
    circuit: Bool[Tensor, " unit"], *, n: int, seed: int
) -> Bool[Tensor, "set unit"]:
    """Subsets of the circuit, each unit in with probability 1/2 (Wang et al., appendix)."""
    generator = torch.Generator().manual_seed(seed)
    return circuit & (torch.rand(n, len(circuit), generator=generator) < 0.5)


def knockouts_by_class(
    units: Sequence[Node], circuit: Bool[Tensor, " unit"]
) -> Bool[Tensor, "set unit"]:
    """One subset a class that the circuit has: all its units of one kind at one site and layer."""
    members: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for i in circuit.nonzero().flatten().tolist():
        members[units[i].kind, units[i].site, units[i].layer].append(i)
    sets = torch.zeros(len(members), len(circuit), dtype=torch.bool)
    for row, rows in zip(sets, members.values(), strict=True):
        row[rows] = True
    return sets


def greedy_knockouts(
    measure: Measure,
    circuit: Bool[Tensor, " unit"],
    *,
    n_steps: int,
    n_candidates: int,
    seed: int,
) -> Bool[Tensor, "set unit"]:
    """Grow K one unit at a time, each time the one of some random candidates that widens the gap.

    The greedy search of Wang et al.: candidates are drawn anew at each step. A gap found wide by
    search is partly luck, so `measure` should run the prompts that chose the circuit.

    Returns:
        K after every step: nested subsets of the circuit, as many as steps or units.

    Raises:
        ValueError: if `n_steps` or `n_candidates` is not positive.
    """
    if n_steps < 1 or n_candidates < 1:
        raise ValueError(
            f"want at least one step and candidate, got n_steps={n_steps}, "
            f"n_candidates={n_candidates}"
        )
    generator = torch.Generator().manual_seed(seed)
    knockout, found = torch.zeros_like(circuit), []
    for _ in range(min(n_steps, int(circuit.sum()))):
        left = (circuit & ~knockout).nonzero().flatten()
        tried = left[torch.randperm(len(left), generator=generator)[:n_candidates]]
        wider = knockout.repeat(len(tried), 1)
        wider[torch.arange(len(tried)), tried] = True
        gaps = knockout_gaps(measure, circuit, wider).mean(1).abs()
        knockout = wider[int(gaps.argmax())]
        found.append(knockout)
    return torch.stack(found) if found else circuit.new_zeros(0, len(circuit))
