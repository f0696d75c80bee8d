"""What patching a neuron, head, MLP or token would do to a metric, estimated by gradients.

The formulas of `graphs.feature_effects`, on the plain model:

    effect[u]     = <grad of m at clean u, other_u - clean_u>
    integrated[u] = <mean over k of grad of m at clean u + (k + 1/2) / steps (other_u - clean_u),
                     other_u - clean_u>
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.sites import Site
from circuits.subject import Edit
from graphs.units.places import Unit, as_parts
from graphs.units.trial import UnitTrial

__all__ = ["unit_attribution", "unit_integrated"]


def unit_attribution(trial: UnitTrial, units: Sequence[Unit]) -> Float[Tensor, "prompt unit"]:
    """The first-order effect of patching each unit alone: one forward and one backward pass.

    Exact where the model is linear in the unit between its two values.

    Args:
        trial: holds the prompts, their corrupted values and the metric.
        units: of the trial's kind; its own, or those of other prompts of the same length.
    """
    moved = _differences(trial)
    still = {site: torch.zeros_like(difference) for site, difference in moved.items()}
    return _effects(trial, units, _gradients(trial, still), moved)


def unit_integrated(
    trial: UnitTrial, units: Sequence[Unit], *, steps: int = 10
) -> Float[Tensor, "prompt unit"]:
    """Integrated gradients: the gradient averaged between the clean and the corrupted values.

    One path a site: its units move together while everything upstream is clean and everything
    downstream live, so that their effects add up to what patching the whole site does.

    Args:
        trial: as in `unit_attribution`.
        units: likewise.
        steps: points a path, in the middles of equal intervals; one pass each.

    Raises:
        ValueError: if `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}; 10 is usual")
    moved, found = _differences(trial), {}
    for site, difference in moved.items():
        total = torch.zeros_like(difference)
        for k in range(steps):
            total += _gradients(trial, {site: (k + 0.5) / steps * difference})[site]
        found[site] = total / steps
    return _effects(trial, units, found, moved)


def _differences(trial: UnitTrial) -> dict[Site, Tensor]:
    return {site: trial.other[site] - value for site, value in trial.clean.items()}


def _gradients(trial: UnitTrial, shifts: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Gradients of the metric with respect to values that stand `shifts` from the clean ones."""
    leaves = {site: shift.detach().requires_grad_() for site, shift in shifts.items()}

    def shifted(site: Site) -> Edit:
        return lambda value: value + leaves[site]

    edits: dict[Site, Edit] = {site: shifted(site) for site in leaves}
    edits[Site("unembed_in")] = lambda x: x[:, -1:]
    with torch.enable_grad():
        logits, _ = trial.model.run(trial.tokens, edits=edits)
        total = trial.metric(logits[:, -1]).sum()
        found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _effects(
    trial: UnitTrial,
    units: Sequence[Unit],
    gradients: Mapping[Site, Tensor],
    moved: Mapping[Site, Tensor],
) -> Float[Tensor, "prompt unit"]:
    """Gradient times difference of every unit, contracted over its width."""
    columns: dict[Site, list[int]] = defaultdict(list)
    for i, unit in enumerate(units):
        columns[unit.site].append(i)
    effects = trial.model_logits.new_zeros(len(trial.tokens), len(units))
    for site, mine in columns.items():
        products = as_parts(site, gradients[site] * moved[site]).sum(-1)
        pos, row = [units[i].pos for i in mine], [units[i].row for i in mine]
        effects[:, mine] = products[:, pos, row]
    return effects
