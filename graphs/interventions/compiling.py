"""From changes of nodes to affine maps of tensors, with every value looked up and checked."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.nodes import Node
from circuits.patching import NodeValues, mean_values, patch_values, zero_values
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel
from graphs.interventions.affine import Affine, Entries, Place, gather
from graphs.interventions.changes import Change

__all__ = ["OtherValues", "compile_changes", "make_values", "place_of", "value_of", "zeros_for"]


@dataclass(frozen=True)
class OtherValues:
    """What nodes carry elsewhere, one row a prompt; what no change needs may be missing."""

    own: NodeValues | None = None
    corrupted: NodeValues | None = None
    mean: NodeValues | None = None


def make_values(
    spliced: SplicedModel,
    clean: FrozenState,
    changes: Sequence[Change],
    other: Int[Tensor, "other other_pos"] | None,
) -> OtherValues:
    """The values that `changes` take from this and other prompts.

    Args:
        spliced: the model with its dictionaries.
        clean: the prompts whose nodes are changed.
        changes: what is done to them.
        other: counterparts row by row for `corrupted`, any prompts of the same length for `mean`.

    Raises:
        ValueError: if a change needs other prompts that are not there, or of another shape.
    """
    kinds = {change.how for change in changes}
    needing = sorted(kinds & {"corrupted", "mean"})
    own = patch_values(spliced, clean) if "exchange" in kinds else None
    if not needing:
        return OtherValues(own)
    if other is None:
        raise ValueError(f"{needing[0]} values come from other prompts; give `other`")
    rows_fit = "corrupted" not in kinds or len(other) == len(clean.tokens)
    if other.shape[1] != clean.n_pos or not rows_fit:
        raise ValueError(
            f"other prompts must line up with these token by token, got shapes "
            f"{tuple(other.shape)} and {tuple(clean.tokens.shape)} [prompt, pos]; use words of as "
            "many tokens"
        )
    with torch.no_grad():
        state = spliced.state(other)
    corrupted = patch_values(spliced, state) if "corrupted" in kinds else None
    mean = None
    if "mean" in kinds:
        embed = state.values[Site("embed")].mean(0, keepdim=True)
        mean = mean_values(spliced, state, clean)
        mean = replace(mean, embed=embed.expand(len(clean.tokens), *embed.shape[1:]))
    return OtherValues(own, corrupted, mean)


def zeros_for(spliced: SplicedModel, clean: FrozenState) -> NodeValues:
    """Zero for every node, tokens too."""
    embed = torch.zeros_like(clean.values[Site("embed")])
    return replace(zero_values(spliced, clean), embed=embed)


def compile_changes(
    spliced: SplicedModel,
    changes: Sequence[Change],
    n_rows: int,
    n_pos: int,
    values: OtherValues = OtherValues(),
) -> dict[Place, Affine]:
    """The maps that make `changes` on every row of a batch.

    A node at all positions changes at all `n_pos`; where its value comes from a prompt, at the
    positions of that prompt.

    Raises:
        ValueError: if a node does not exist in this model at these positions, is of a kind that
            cannot be changed, or is changed twice.
    """
    parts: dict[Place, list[Entries]] = defaultdict(list)
    changed: dict[tuple[Place, int, int], str] = {}
    rows = torch.arange(n_rows, device=spliced.model.device)
    for change in changes:
        for node, positions, scale, shift in _steps(spliced, change, n_rows, n_pos, values):
            place = place_of(spliced, node)
            for pos in positions:
                _once(changed, place, node, pos)
            at = torch.tensor(positions, device=rows.device)
            parts[place].append(
                Entries(
                    rows.repeat_interleave(len(at)),
                    at.repeat(n_rows),
                    node.feature if node.kind == "feature" else -1,
                    scale,
                    shift.flatten(0, 1),
                )
            )
    return gather(parts)


def place_of(spliced: SplicedModel, node: Node) -> Place:
    """Where the values of a node are.

    Raises:
        ValueError: if the model has no such place, or nodes of this kind cannot be changed.
    """
    match node.kind:
        case "feature" | "error":
            write = spliced.write_site(f"{node.site}.{node.layer}")
            n_features = spliced.placements[write].dictionary.n_features
            if node.kind == "feature" and not 0 <= node.feature < n_features:
                raise ValueError(
                    f"{node.site}.{node.layer} has features 0 to {n_features - 1}, got "
                    f"{node.feature}"
                )
            return node.kind, write
        case "sublayer":
            held = {site.layer: site for site in spliced.held_mlps()}
            if node.site != "mlp" or node.layer not in held:
                raise ValueError(
                    f"no MLP without a dictionary is called {node.site}{node.layer}; there are "
                    f"{', '.join(f'mlp{layer}' for layer in held) or 'none'}, and where a "
                    "dictionary is, change its features and its error"
                )
            return "sublayer", held[node.layer]
        case "token":
            return "token", Site("embed")
        case _:
            raise ValueError(
                f"{node.id} is a {node.kind}; features, errors, sublayers and tokens can be changed"
            )


def value_of(
    values: NodeValues, place: Place, node: Node, positions: Sequence[int]
) -> Float[Tensor, "prompt pos ..."]:
    """What a node carries at some positions."""
    kind, site = place
    match kind:
        case "feature":
            return values.activations[site][:, positions, node.feature]
        case "error":
            return values.errors[site][:, positions]
        case "sublayer":
            return values.sublayers[site][:, positions]
        case "token":
            return values.embed[:, positions]


def _positions(node: Node, n_pos: int) -> list[int]:
    if node.pos < 0:
        return list(range(n_pos))
    if node.pos >= n_pos:
        raise ValueError(
            f"{node.id} is at position {node.pos}, but the prompt has positions 0 to {n_pos - 1}"
        )
    return [node.pos]


def _once(changed: dict[tuple[Place, int, int], str], place: Place, node: Node, pos: int) -> None:
    key = (place, pos, node.feature if node.kind == "feature" else -1)
    name = node.id.removesuffix("@-1")
    if key in changed:
        also = changed[key]
        raise ValueError(
            f"change each node once, but {name} is named twice"
            if also == name
            else f"change each node once, but {name} is also in {also}"
        )
    changed[key] = name


_Step = tuple[Node, list[int], float, Tensor]
"""A node, positions, and by which scale and shift (row by row) its values change there."""


def _steps(
    spliced: SplicedModel, change: Change, n_rows: int, n_pos: int, values: OtherValues
) -> Iterator[_Step]:
    if change.how == "exchange":
        assert values.own is not None
        for pair in zip(change.nodes, change.partners, strict=True):
            for node, giver in (pair, pair[::-1]):
                yield _set_to(spliced, values.own, node, giver, n_rows)
        return
    for node in change.nodes:
        place = place_of(spliced, node)
        if change.how in ("corrupted", "mean"):
            source = values.corrupted if change.how == "corrupted" else values.mean
            assert source is not None
            yield _set_to(spliced, source, node, node, n_rows)
            continue
        positions = _positions(node, n_pos)
        width = () if place[0] == "feature" else (spliced.model.d_model,)
        scale = {"add": 1.0, "multiply": change.value}.get(change.how, 0.0)
        amount = change.value if change.how in ("add", "set") else 0.0
        like = spliced.model.W_E
        yield node, positions, scale, like.new_full((n_rows, len(positions), *width), amount)


def _set_to(
    spliced: SplicedModel, values: NodeValues, node: Node, giver: Node, n_rows: int
) -> _Step:
    """`node` gets what `giver` carries in `values`, at the positions of those prompts."""
    n_pos = values.embed.shape[1]
    positions, taken = _positions(node, n_pos), _positions(giver, n_pos)
    place_of(spliced, node)
    shift = value_of(values, place_of(spliced, giver), giver, taken)
    return node, positions, 0.0, shift.expand(n_rows, *shift.shape[1:])
