"""What patching a node would do to a metric, estimated by gradients of the live spliced model.

Attribution patching (Syed et al. 2023) and integrated gradients (Marks et al. 2024, equations 3
and 4) over features, errors, unreplaced MLPs and tokens:

    effect[n]     = <grad of m at clean n, other_n - clean_n>
    integrated[n] = <mean over k of grad of m at clean n + (k + 1/2) / steps (other_n - clean_n),
                     other_n - clean_n>

Both estimate `m(n patched) - m(clean)` of `circuits.patching.run_patched`: attention, norms and
downstream features are recomputed, and errors keep their clean values. (Marks et al. also hold the
errors, but let gradients into the residual stream pass straight through its SAEs.)
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.nodes import Node
from circuits.patching import NodeValues
from circuits.sites import Site
from circuits.spliced import FrozenState, Placement, SplicedModel
from circuits.subject import Edit
from graphs.faithfulness import Metric

__all__ = ["attribution_effects", "integrated_effects"]

_Kind = str
_Place = tuple[_Kind, Site]
"""A kind of node and where its values are: the features of one dictionary, its errors, ..."""


def attribution_effects(
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    metric: Metric,
    nodes: Sequence[Node],
) -> Float[Tensor, "prompt node"]:
    """The first-order effect of patching each node alone: one forward and one backward pass.

    Exact where the model is linear in the node between its two values.

    Args:
        spliced: the model with its dictionaries.
        clean: the prompts, held as the model is.
        other: of the same prompts, row by row (`patch_values`, `mean_values`, `zero_values`).
        metric: of last-position logits, prompt by prompt.
        nodes: of any kind; positions, biases and outputs cannot be patched and have effect 0, as
            have features that are not active on the clean prompt.

    Raises:
        ValueError: if `other` is of other prompts in number or length.
    """
    steps = _differences(spliced, clean, other)
    gradients = _gradients(spliced, clean, metric, {p: torch.zeros_like(d) for p, d in steps})
    return _effects(spliced, nodes, {p: (gradients[p], d) for p, d in steps}, clean)


def integrated_effects(
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    metric: Metric,
    nodes: Sequence[Node],
    *,
    steps: int = 10,
) -> Float[Tensor, "prompt node"]:
    """Integrated gradients: the gradient averaged between the clean and the other values.

    One path a place (the features of one dictionary, its errors, one unreplaced MLP, the tokens):
    all its nodes move together while everything upstream is clean and everything downstream live,
    as in Marks et al. So the effects of one place add up to what patching the whole place does,
    where that is continuous (ReLU; the jumps of JumpReLU and TopK have no gradient). On one path
    for all places a downstream node would be set, not recomputed, and upstream nodes would keep
    only their direct effects.

    Args:
        spliced: as in `attribution_effects`, like the next four.
        clean: the prompts.
        other: what the nodes become.
        metric: of last-position logits.
        nodes: of any kind.
        steps: points a path, in the middles of equal intervals (Marks et al.: 10, at the left
            ends). They run in one batch.

    Raises:
        ValueError: if `steps` is not positive, or `other` is of other prompts.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}; 10 is usual")
    share = (torch.arange(steps, device=spliced.model.device, dtype=torch.float64) + 0.5) / steps
    found: dict[_Place, tuple[Tensor, Tensor]] = {}
    for place, difference in _differences(spliced, clean, other):
        points = torch.cat([(float(s) * difference) for s in share])
        gradient = _gradients(spliced, clean, metric, {place: points})[place]
        found[place] = gradient.unflatten(0, (steps, -1)).mean(0), difference
    return _effects(spliced, nodes, found, clean)


def _differences(
    spliced: SplicedModel, clean: FrozenState, other: NodeValues
) -> list[tuple[_Place, Tensor]]:
    """`other - clean` of every place; 0 for features that the clean prompt does not use.

    Raises:
        ValueError: if the two are not of one shape.
    """
    if other.embed.shape != clean.values[Site("embed")].shape:
        raise ValueError(
            f"clean and other values must line up, got {tuple(clean.tokens.shape)} clean tokens "
            f"and other embeddings of shape {tuple(other.embed.shape)}"
        )
    found: list[tuple[_Place, Tensor]] = []
    embed = Site("embed")
    found.append((("token", embed), other.embed - clean.values[embed]))
    for site, value in other.sublayers.items():
        found.append((("sublayer", site), value - clean.values[site]))
    for write in spliced.placements:
        active = clean.activations[write]
        moved = torch.where(active != 0, other.activations[write] - active, 0.0)
        found.append((("feature", write), moved))
        found.append((("error", write), other.errors[write] - clean.errors[write]))
    return found


def _gradients(
    spliced: SplicedModel, clean: FrozenState, metric: Metric, shifts: dict[_Place, Tensor]
) -> dict[_Place, Tensor]:
    """Gradients of the metric with respect to nodes that stand `shifts` from their clean values."""
    leaves = {place: shift.detach().requires_grad_() for place, shift in shifts.items()}
    with torch.enable_grad():
        logits = _run_shifted(spliced, clean, leaves)
        total = metric(logits).sum()
        found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _run_shifted(
    spliced: SplicedModel, clean: FrozenState, shifts: dict[_Place, Tensor]
) -> Float[Tensor, "row d_vocab"]:
    """Last-position logits of the live model on held errors, nodes moved by `shifts`.

    Rows are the clean prompts, as often as the shifts repeat them.
    """
    n_rows = len(next(iter(shifts.values())))
    times = n_rows // len(clean.tokens)
    inputs: dict[Site, Tensor] = {}
    used: dict[Site, Tensor] = {}

    def moved(kind: _Kind, site: Site, value: Tensor) -> Tensor:
        shift = shifts.get((kind, site))
        return value if shift is None else value + shift

    def remember(read: Site) -> Edit:
        return lambda x: inputs.setdefault(read, x)

    def splice(write: Site, placement: Placement) -> Edit:
        error = moved("error", write, clean.errors[write].repeat(times, 1, 1))

        def edit(y: Tensor) -> Tensor:
            x = y if placement.read == write else inputs[placement.read]
            used[write] = moved("feature", write, placement.dictionary.encode(x))
            return spliced.reconstruct(write, used, x) + error

        return edit

    embed = Site("embed")
    edits: dict[Site, Edit] = {embed: lambda x: moved("token", embed, x)}
    for site in spliced.held_mlps():
        edits[site] = lambda y, site=site: moved("sublayer", site, y)
    for write, placement in spliced.placements.items():
        if placement.read != write:
            edits[placement.read] = remember(placement.read)
        edits[write] = splice(write, placement)
    edits[Site("unembed_in")] = lambda x: x[:, -1:]
    logits, _ = spliced.model.run(clean.tokens.repeat(times, 1), edits=edits)
    return logits[:, -1]


def _effects(
    spliced: SplicedModel,
    nodes: Sequence[Node],
    found: dict[_Place, tuple[Tensor, Tensor]],
    clean: FrozenState,
) -> Float[Tensor, "prompt node"]:
    """Gradient times difference of every node; vectors are contracted over d_model."""
    rows: dict[_Place, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        place = _place(spliced, node)
        if place is not None:
            rows[place].append(i)
    effects = clean.logits.new_zeros(len(clean.tokens), len(nodes))
    for place, mine in rows.items():
        gradient, difference = found[place]
        pos = [nodes[i].pos for i in mine]
        if place[0] == "feature":
            feature = [nodes[i].feature for i in mine]
            effects[:, mine] = gradient[:, pos, feature] * difference[:, pos, feature]
        else:
            effects[:, mine] = (gradient[:, pos] * difference[:, pos]).sum(-1)
    return effects


def _place(spliced: SplicedModel, node: Node) -> _Place | None:
    """Where a node's values are; None where it has none that a patch changes."""
    match node.kind:
        case "token":
            return "token", Site("embed")
        case "sublayer":
            return "sublayer", spliced.mlp_site(node.layer)
        case "feature" | "error":
            return node.kind, spliced.write_site(f"{node.site}.{node.layer}")
        case _:
            return None
