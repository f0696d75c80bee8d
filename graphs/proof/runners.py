"""From choices to a runner: what ablated nodes carry, and which run is patched."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from attribution.nodes import Node, NodeTable
from circuits.patching import NodeValues, mean_values, patch_values, zero_values
from circuits.spliced import FrozenState, SplicedModel
from graphs.proof.choices import ProofChoices
from graphs.scorer import CircuitRunner

__all__ = ["live_nodes", "make_runner"]


def make_runner(
    choices: ProofChoices,
    spliced: SplicedModel,
    clean: Int[Tensor, "batch pos"],
    other: Int[Tensor, "other pos"] | None,
) -> CircuitRunner:
    """Hold the prompts and the values that ablated nodes carry.

    A feature that the patched run does not use stays live, as in `circuits.patching`. With
    direction `denoising` the runner's clean prompts are the corrupted ones, its empty logits the
    model's on the clean ones, and what it keeps is what is ablated.

    Args:
        choices: of the proof.
        spliced: the model with its dictionaries.
        clean: the prompts.
        other: corrupted counterparts row by row (value `corrupted`), reference prompts of the same
            length (`mean`), None (`zero`).

    Raises:
        ValueError: if `other` is not what the value needs.
    """
    _check_other(choices, clean, other)
    with torch.no_grad():
        state = spliced.state(clean)
        if other is None:
            return _without_corruption(spliced, state, zero_values(spliced, state))
        if choices.value == "mean":
            return _without_corruption(
                spliced, state, mean_values(spliced, spliced.state(other), state)
            )
        corrupted = spliced.state(other)
    if choices.direction == "noising":
        values = patch_values(spliced, corrupted)
        return CircuitRunner(spliced, state, values, corrupted.logits[:, -1])
    values = patch_values(spliced, state)
    return CircuitRunner(spliced, _restorable(corrupted, state), values, state.logits[:, -1])


def _without_corruption(
    spliced: SplicedModel, state: FrozenState, values: NodeValues
) -> CircuitRunner:
    """A runner whose empty circuit has every node at `values`."""
    runner = CircuitRunner(spliced, state, values, state.logits[:, -1])
    nothing = runner.logits([], torch.zeros(1, 0, dtype=torch.bool))[0]
    return replace(runner, empty_logits=nothing)


def _restorable(base: FrozenState, other: FrozenState) -> FrozenState:
    """`base` with the features that only `other` uses marked as in use, so that they are patched.

    A runner asks of the patched run's activations only where they are zero, and where they differ
    from the patch: the mark is the negative of the patch.
    """
    marked = {
        site: torch.where(a != 0, a, -other.activations[site])
        for site, a in base.activations.items()
    }
    return replace(base, activations=marked)


def live_nodes(choices: ProofChoices, runner: CircuitRunner) -> NodeTable:
    """Every node that a patch could reach on the runner's prompts.

    Tokens, unreplaced MLPs, errors, and each feature that is in use on any prompt: all of them kept
    is the model itself. In order of layer (as placed), position and feature; features have their
    mean activation over the clean prompts.
    """
    clean = runner.clean if choices.direction == "noising" else runner.other
    places = range(runner.clean.n_pos)
    nodes = [Node(kind="token", layer=-1, site="embed", pos=pos) for pos in places]
    nodes += [
        Node(kind="sublayer", layer=site.layer, site="mlp", pos=pos)
        for site in runner.other.sublayers
        for pos in places
    ]
    for write, placement in runner.spliced.placements.items():
        where = {"layer": write.layer, "site": placement.site}
        nodes += [Node(kind="error", pos=pos, **where) for pos in places]
        in_use = (runner.clean.activations[write] != 0).any(0).nonzero().tolist()
        mean = clean.activations[write].double().mean(0)
        nodes += [
            Node(kind="feature", pos=pos, feature=i, activation=float(mean[pos, i]), **where)
            for pos, i in in_use
        ]
    return NodeTable(nodes)


def _check_other(
    choices: ProofChoices, clean: Int[Tensor, "batch pos"], other: Int[Tensor, "other pos"] | None
) -> None:
    if choices.value == "zero" and other is not None:
        raise ValueError("zero ablation takes no other prompts; give other=None")
    if choices.value != "zero" and other is None:
        raise ValueError(f"{choices.value} ablation takes values from other prompts; give `other`")
    if other is None:
        return
    if choices.value == "mean" and clean.shape[1] != other.shape[1]:
        raise ValueError(
            f"reference prompts must be as long as the clean ones, got {other.shape[1]} and "
            f"{clean.shape[1]} tokens; means are taken position by position"
        )
    if choices.value == "corrupted" and clean.shape != other.shape:
        raise ValueError(
            f"clean and corrupted prompts must line up token by token, got shapes "
            f"{tuple(clean.shape)} and {tuple(other.shape)}"
        )
