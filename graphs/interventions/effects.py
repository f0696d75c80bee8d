"""Effects of a circuit's nodes: what the graph foretells of ablating each, and what then happens.

Predicted from the trace of the prompt: along direct edges, and over all paths. Observed in the
frozen model that the trace describes, and in the real one, where attention and norms follow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.engine import attribute
from attribution.nodes import Node
from attribution.targets import Target
from circuits.patching import patch_values
from circuits.spliced import SplicedModel
from graphs.interventions.agreement import EffectAgreement, compare_effects
from graphs.interventions.changes import ablate
from graphs.interventions.compiling import compile_changes, place_of, zeros_for
from graphs.interventions.observing import observe_ablations
from graphs.interventions.predicting import predict_ablations
from graphs.scorer import is_candidate

__all__ = ["Effects", "Observed", "Predicted", "kept_groups", "measure_effects"]

Predicted = Literal["direct", "total"]
Observed = Literal["frozen", "live"]


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of the outputs when each group is ablated alone, on each prompt.

    Attributes:
        groups: the nodes ablated together, one group a column.
        outputs: names of what was watched.
        direct: predicted along edges from the group to the output.
        total: predicted over all paths, features passing their input on with slope 1.
        frozen: observed with attention, norms, errors and unreplaced MLPs held; `total` is exact
            there wherever `switched` is 0.
        live: observed in the real model.
        switched: features that went on or off in the frozen model, the group's own left out.
        ablation: what ablated nodes carry, in words.
    """

    groups: tuple[tuple[Node, ...], ...]
    outputs: tuple[str, ...]
    direct: Float[Tensor, "prompt group output"]
    total: Float[Tensor, "prompt group output"]
    frozen: Float[Tensor, "prompt group output"]
    live: Float[Tensor, "prompt group output"]
    switched: Int[Tensor, "prompt group"]
    ablation: str

    def mean(self, side: Predicted | Observed, output: int = 0) -> Float[Tensor, " group"]:
        """Mean effect of each group on one output over the prompts."""
        return getattr(self, side)[:, :, output].double().mean(0)

    def agreement(
        self, predicted: Predicted, observed: Observed, output: int = 0
    ) -> EffectAgreement:
        """Mean predicted effects against mean observed ones, one pair a group.

        Raises:
            ValueError: if either side is the same for all groups.
        """
        return compare_effects(self.mean(predicted, output), self.mean(observed, output))


def measure_effects(
    spliced: SplicedModel,
    tokens: Int[Tensor, "prompt pos"],
    groups: Sequence[Sequence[Node]],
    targets: Sequence[Target],
    *,
    corrupted: Int[Tensor, "prompt pos"] | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Effects:
    """Ablate each group of nodes alone, on every prompt, in the frozen and in the real model.

    Each node has its position. A feature that a prompt does not use has no edges there, and its
    ablation no effect.

    Args:
        spliced: the model with its dictionaries.
        tokens: prompts whose positions line up.
        groups: nodes to ablate together; `kept_groups` makes one of each node of a circuit.
        targets: what is explained on each prompt, as in `attribute`.
        corrupted: counterparts row by row whose values ablated nodes carry; None ablates to zero.
        batch_size: groups in one pass.
        progress: called with (passes of groups done, in all).

    Raises:
        ValueError: if there is no group, a node is not there or is twice in its group, or prompts,
            targets and counterparts differ in number or shape.
    """
    _check(spliced, tokens, groups, targets, corrupted)
    n_all, done = 2 * len(tokens) * len(groups), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, n_all)

    rows = []
    for i, target in enumerate(targets):
        with torch.no_grad():
            state = spliced.state(tokens[i : i + 1])
            other = zeros_for(spliced, state)
            if corrupted is not None:
                other = patch_values(spliced, spliced.state(corrupted[i : i + 1]))
        trace = attribute(spliced, tokens[i], target)
        n_outputs = len(trace.outputs)
        direct, total = predict_ablations(spliced, state, other, trace, target, groups)
        (frozen, switched), (live, _) = (
            observe_ablations(
                spliced,
                state,
                other,
                groups,
                trace.outputs,
                how,
                batch_size=batch_size,
                progress=advance,
            )
            for how in ("frozen", "live")
        )
        names = tuple(readout.name for readout in trace.outputs)
        rows.append((names, direct[:, :n_outputs], total[:, :n_outputs], frozen, live, switched))
    names = _one_name([row[0] for row in rows])
    direct, total, frozen, live, switched = (
        torch.stack([row[k].cpu() for row in rows]) for k in range(1, 6)
    )
    carried = "zero" if corrupted is None else "their values on the corrupted prompt"
    return Effects(tuple(map(tuple, groups)), names, direct, total, frozen, live, switched, carried)


def kept_groups(nodes: Sequence[Node]) -> list[tuple[Node, ...]]:
    """Each node of a circuit that can be ablated, as a group of its own."""
    return [(node,) for node in nodes if is_candidate(node)]


def _one_name(names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    for found in names:
        if found != names[0]:
            raise ValueError(
                f"every prompt needs the same targets, got {names[0]} and {found}; give them one "
                "name"
            )
    return names[0]


def _check(
    spliced: SplicedModel,
    tokens: Int[Tensor, "prompt pos"],
    groups: Sequence[Sequence[Node]],
    targets: Sequence[Target],
    corrupted: Int[Tensor, "other other_pos"] | None,
) -> None:
    if not groups or not all(groups):
        raise ValueError(f"want groups of at least one node each, got {len(groups)} groups")
    if not len(tokens) or len(targets) != len(tokens):
        raise ValueError(f"want one target a prompt, got {len(targets)} for {len(tokens)} prompts")
    if corrupted is not None and corrupted.shape != tokens.shape:
        raise ValueError(
            f"prompts and counterparts must line up token by token, got shapes "
            f"{tuple(tokens.shape)} and {tuple(corrupted.shape)} [prompt, pos]"
        )
    for group in groups:
        for node in group:
            place_of(spliced, node)
            if node.pos < 0:
                raise ValueError(f"each node needs a position, got {node.id}")
        compile_changes(spliced, [ablate(list(group))], 1, tokens.shape[1])
