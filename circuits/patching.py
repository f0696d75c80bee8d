"""Patched runs: keep some nodes of the spliced model, give every other its value on other prompts.

The model is live (attention, norms and features are recomputed); only nodes are replaced.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.sites import Site
from circuits.spliced import FrozenState, Placement, SplicedModel
from circuits.subject import Edit

__all__ = ["Keep", "NodeValues", "mean_values", "patch_values", "run_patched", "zero_values"]


@dataclass(frozen=True)
class NodeValues:
    """What nodes outside a circuit carry: features, errors, unreplaced MLPs and embeddings."""

    activations: dict[Site, Float[Tensor, "batch pos feature"]]
    errors: dict[Site, Float[Tensor, "batch pos d_model"]]
    sublayers: dict[Site, Float[Tensor, "batch pos d_model"]]
    embed: Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True)
class Keep:
    """Which nodes stay, for several circuits at once (the leading axis); absent means all stay."""

    features: dict[Site, Bool[Tensor, "circuit pos feature"]] = field(default_factory=dict)
    errors: dict[Site, Bool[Tensor, "circuit pos"]] = field(default_factory=dict)
    sublayers: dict[Site, Bool[Tensor, "circuit pos"]] = field(default_factory=dict)
    tokens: Bool[Tensor, "circuit pos"] | None = None


def patch_values(spliced: SplicedModel, corrupted: FrozenState) -> NodeValues:
    """Every node's value on corrupted prompts (resample ablation)."""
    sublayers = {site: corrupted.values[site] for site in spliced.held_mlps()}
    embed = corrupted.values[Site("embed")]
    return NodeValues(corrupted.activations, corrupted.errors, sublayers, embed)


def mean_values(spliced: SplicedModel, reference: FrozenState, clean: FrozenState) -> NodeValues:
    """Every node's mean over reference prompts, position by position; tokens stay clean."""

    def mean(value: Tensor) -> Tensor:
        return value.mean(0, keepdim=True).expand(len(clean.tokens), *value.shape[1:])

    return NodeValues(
        {site: mean(v) for site, v in reference.activations.items()},
        {site: mean(v) for site, v in reference.errors.items()},
        {site: mean(reference.values[site]) for site in spliced.held_mlps()},
        clean.values[Site("embed")],
    )


def zero_values(spliced: SplicedModel, clean: FrozenState) -> NodeValues:
    """Zero for every node but tokens, which stay clean."""
    return NodeValues(
        {site: torch.zeros_like(v) for site, v in clean.activations.items()},
        {site: torch.zeros_like(v) for site, v in clean.errors.items()},
        {site: torch.zeros_like(clean.values[site]) for site in spliced.held_mlps()},
        clean.values[Site("embed")],
    )


def run_patched(
    spliced: SplicedModel, clean: FrozenState, other: NodeValues, keep: Keep
) -> Float[Tensor, "circuit batch d_vocab"]:
    """Last-position logits of each circuit on each clean prompt, every other node at its `other`.

    A kept feature is recomputed from what it reads; a kept error keeps its clean value; a kept
    unreplaced MLP is recomputed. A feature outside the circuit takes its `other` value if it is
    active on the clean prompt; features that the clean prompt does not use stay live. So keeping
    everything gives the model's own logits, and with `patch_values` keeping nothing gives the
    corrupted prompt's.
    """
    n_circuits = _n_circuits(keep)

    def tile(value: Tensor) -> Tensor:
        return value.repeat(n_circuits, *[1] * (value.ndim - 1))

    def choose(
        mask: Bool[Tensor, "circuit pos"] | None, kept: Tensor, dropped: Tensor
    ) -> Float[Tensor, "row pos d_model"]:
        if mask is None:
            return kept
        rows = mask.repeat_interleave(len(clean.tokens), 0)[..., None]
        return torch.where(rows, kept, dropped)

    inputs: dict[Site, Tensor] = {}
    used: dict[Site, Tensor] = {}

    def remember(read: Site) -> Edit:
        def edit(x: Tensor) -> Tensor:
            inputs[read] = x
            return x

        return edit

    def splice(write: Site, placement: Placement) -> Edit:
        error = choose(keep.errors.get(write), tile(clean.errors[write]), tile(other.errors[write]))
        replaced = tile(other.activations[write])
        active = tile(clean.activations[write] != 0)
        mask = keep.features.get(write)
        if mask is not None:
            active = active & ~mask.repeat_interleave(len(clean.tokens), 0)
        else:
            active = torch.zeros_like(active)

        def edit(y: Tensor) -> Tensor:
            x = y if placement.read == write else inputs[placement.read]
            used[write] = torch.where(active, replaced, placement.dictionary.encode(x))
            return spliced.reconstruct(write, used, x) + error

        return edit

    def replace_sublayer(site: Site) -> Edit:
        return lambda y: choose(keep.sublayers.get(site), y.clone(), tile(other.sublayers[site]))

    embed = choose(keep.tokens, tile(clean.values[Site("embed")]), tile(other.embed))
    edits: dict[Site, Edit] = {Site("embed"): lambda _: embed}
    for write, placement in spliced.placements.items():
        if placement.read != write:
            edits[placement.read] = remember(placement.read)
        edits[write] = splice(write, placement)
    edits |= {site: replace_sublayer(site) for site in keep.sublayers}
    edits[Site("unembed_in")] = lambda x: x[:, -1:]  # the vocabulary is the dearest product
    logits, _ = spliced.model.run(tile(clean.tokens), edits=edits)
    return logits[:, -1].unflatten(0, (n_circuits, len(clean.tokens)))


def _n_circuits(keep: Keep) -> int:
    """The common leading axis of all masks (1 where there is none)."""
    masks = [*keep.features.values(), *keep.errors.values(), *keep.sublayers.values()]
    masks += [] if keep.tokens is None else [keep.tokens]
    sizes = {len(mask) for mask in masks} or {1}
    if len(sizes) > 1:
        raise ValueError(f"masks must be for one number of circuits, got {sorted(sizes)}")
    return sizes.pop()
