"""What ablations do: each group of nodes ablated alone, many in one pass, and a readout watched.

Input-dependent: one prompt.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.effects.observing import listen
from attribution.nodes import Node
from attribution.targets import Readout
from circuits.patching import NodeValues
from circuits.spliced import FrozenState, SplicedModel
from graphs.interventions.affine import Affine, Entries, Place, gather
from graphs.interventions.compiling import place_of, value_of
from graphs.interventions.outcome import Attention
from graphs.interventions.running import ChangedRun, run_frozen, run_live

__all__ = ["ablation_maps", "observe_ablations"]


def observe_ablations(
    spliced: SplicedModel,
    state: FrozenState,
    other: NodeValues,
    groups: Sequence[Sequence[Node]],
    readouts: Sequence[Readout],
    attention: Attention,
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Float[Tensor, "group output"], Int[Tensor, " group"]]:
    """Changes of the readouts when each group is ablated alone.

    Args:
        spliced: the model with its dictionaries.
        state: one prompt, held.
        other: what ablated nodes carry.
        groups: a feature that the prompt does not use stays as it is.
        readouts: what to watch.
        attention: `live` is the real model, `frozen` the one that attribution explains.
        batch_size: groups in one pass.
        progress: called with how many groups a pass was for.

    Returns:
        The changes; and how many features went on or off beside those of the group, counted in the
        frozen model (0 in the live one, where it means nothing).
    """
    heard, model = listen(spliced, {readout.site for readout in readouts})
    effects, switched = [], []
    for start in range(0, len(groups), batch_size):
        some = groups[start : start + batch_size]
        # The first row is not changed: what it reads has the rounding of the same batch.
        maps = ablation_maps(heard, state, other, [(), *some])
        tokens = state.tokens.expand(len(some) + 1, -1)
        if attention == "live":
            run_live(heard, tokens, maps)
            switched.append(torch.zeros(len(some), dtype=torch.long))
        else:
            run = run_frozen(heard, state, tokens, maps)
            switched.append(_switched(run, maps)[1:].cpu())
        seen = [
            model.arrived(r.site)[:, r.pos].to(r.vector) @ r.vector + r.constant for r in readouts
        ]
        values = torch.stack(seen, -1)
        effects.append((values[1:] - values[0]).cpu())
        progress(len(some))
    return torch.cat(effects), torch.cat(switched)


def ablation_maps(
    spliced: SplicedModel,
    state: FrozenState,
    other: NodeValues,
    groups: Sequence[Sequence[Node]],
) -> dict[Place, Affine]:
    """The maps that ablate one group a row; features that the prompt does not use are left out."""
    parts: dict[Place, list[Entries]] = {}
    for row, group in enumerate(groups):
        for node in group:
            place = place_of(spliced, node)
            if place[0] == "feature" and not state.activations[place[1]][0, node.pos, node.feature]:
                continue
            shift = value_of(other, place, node, [node.pos])[0]
            at = (
                torch.tensor([row], device=shift.device),
                torch.tensor([node.pos], device=shift.device),
            )
            index = node.feature if place[0] == "feature" else -1
            parts.setdefault(place, []).append(Entries(*at, index, 0.0, shift))
    return gather(parts)


def _switched(run: ChangedRun, maps: dict[Place, Affine]) -> Int[Tensor, " row"]:
    """How many features of each row are on where the first row's are off, or off where on."""
    n_rows = len(run.logits)
    total = torch.zeros(n_rows, dtype=torch.long, device=run.logits.device)
    for site, a in run.activations.items():
        differs = (a != 0) != (a[:1] != 0)
        if (change := maps.get(("feature", site))) is not None:
            differs[change.at] = False
        total += differs.flatten(1).sum(1)
    return total
