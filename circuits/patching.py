"""Patched runs: keep some nodes of the spliced model, give every other its value on other prompts.

The model is live (attention, norms and features are recomputed); only nodes are replaced.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.agreement import Agreement, HeldRun
from circuits.sites import Site
from circuits.spliced import FrozenState, Placement, SplicedModel
from circuits.subject import Edit

__all__ = [
    "Keep",
    "NodeValues",
    "hold_patched",
    "mean_values",
    "patch_values",
    "run_patched",
    "zero_values",
]


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
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    keep: Keep,
    agreement: Agreement | None = None,
) -> Float[Tensor, "circuit batch d_vocab"]:
    """Last-position logits of each circuit on each clean prompt, every other node at its `other`.

    A kept feature is recomputed from what it reads; a kept error keeps its clean value; a kept
    unreplaced MLP is recomputed. A feature outside the circuit takes its `other` value if it is
    active on the clean prompt; features that the clean prompt does not use stay live. So keeping
    everything gives the model's own logits, and with `patch_values` keeping nothing gives the
    corrupted prompt's.

    Args:
        spliced: the model with its dictionaries.
        clean: the prompts.
        other: what nodes outside a circuit carry.
        keep: the circuits.
        agreement: where all of them are the same as a circuit that `hold_patched` ran on the same
            prompts. That is taken from its run, and `keep` is not asked about nodes there: the
            answer is that of a run without, to rounding.

    Raises:
        ValueError: if masks are for different numbers of circuits.
    """
    return _run(spliced, clean, other, keep, agreement, {}, ())[0]


def hold_patched(
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    keep: Keep,
    agreement: Agreement | None = None,
) -> tuple[Float[Tensor, "1 batch d_vocab"], HeldRun]:
    """`run_patched` of one circuit, with what runs of others can take from it.

    Raises:
        ValueError: if there is more than one circuit.
    """
    if _n_circuits(keep) != 1:
        raise ValueError(f"want one circuit to hold, got {_n_circuits(keep)}")
    first = 0 if agreement is None else agreement.first_layer
    entries = [Site("resid_pre", i) for i in range(max(first, 1), spliced.model.n_layers)]
    writes = [w for w in spliced.placements if w.layer >= first and not _is_last(spliced, w)]
    used: dict[Site, Tensor] = {}
    logits, seen = _run(spliced, clean, other, keep, agreement, used, [*entries, *writes])
    below = HeldRun({}, {}, {}) if agreement is None else agreement.run
    crossing = {w for w, p in spliced.placements.items() if p.dictionary.n_writes > 1}
    return logits, HeldRun(
        below.streams | {site.layer: seen[site] for site in entries},
        below.writes | {write: seen[write] for write in writes},
        below.activations | {write: used[write] for write in crossing},
    )


def _run(
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    keep: Keep,
    agreement: Agreement | None,
    used: dict[Site, Tensor],
    capture: Iterable[Site],
) -> tuple[Float[Tensor, "circuit batch d_vocab"], dict[Site, Tensor]]:
    """Logits and captured values; activations of the dictionaries go into `used`."""
    n, start = _n_circuits(keep), None
    if agreement is not None:
        used |= {site: a.repeat(n, 1, 1) for site, a in agreement.run.activations.items()}
        first = agreement.first_layer
        if first:
            start = (first, agreement.run.streams[first].repeat(n, 1, 1))
    edits = _edits(spliced, clean, other, keep, agreement, used)
    tokens = clean.tokens.repeat(n, 1)
    placed = spliced.placements.items()
    replaced = [w.layer for w, p in placed if w in edits and p.site == "mlp"]
    logits, seen = spliced.model.run(
        tokens, edits=edits, capture=capture, start=start, replaced=replaced
    )
    return logits[:, -1].unflatten(0, (n, len(clean.tokens))), seen


def _is_last(spliced: SplicedModel, write: Site) -> bool:
    """Whether `write` is behind the last attention: nothing mixes positions from there on, and
    only the last is read.
    """
    return write.layer == spliced.model.n_layers - 1 and write.kind != "resid_pre"


def _edits(
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    keep: Keep,
    agreement: Agreement | None,
    used: dict[Site, Tensor],
) -> dict[Site, Edit]:
    """What makes a run that of circuits. Rows are circuits times prompts.

    The activations that dictionaries write with are put into `used`, which already has those of
    the agreement.
    """
    n, edits = _n_circuits(keep), {}
    first, first_pos = 0, (0,) * spliced.model.n_layers
    held: dict[Site, Tensor] = {}
    if agreement is not None:
        first, first_pos = agreement.first_layer, agreement.first_pos
        held = agreement.run.writes
    inputs: dict[Site, Tensor] = {}

    def remember(read: Site) -> Edit:
        return lambda x: inputs.setdefault(read, x)

    def splice(write: Site, placement: Placement) -> Edit:
        begin = clean.n_pos - 1 if _is_last(spliced, write) else first_pos[write.layer]
        mask, errors = keep.errors.get(write), (clean.errors[write], other.errors[write])
        mask = None if mask is None else mask[:, begin:]
        error = _choose(mask, errors[0][:, begin:], errors[1][:, begin:], n)
        patched, value = None, other.activations[write][:, begin:]
        if write in keep.features:
            active = clean.activations[write][:, begin:] != 0
            patched = active & ~keep.features[write][:, None, begin:]

        def edit(y: Tensor) -> Tensor:
            x = (y if placement.read == write else inputs[placement.read])[:, begin:]
            a = placement.dictionary.encode(x)
            if patched is not None:
                a = torch.where(patched, value, a.unflatten(0, (n, -1))).flatten(0, 1)
            used[write] = torch.cat([used[write][:, :begin], a], 1) if write in used else a
            below = {w: used[w][:, begin:] for w, _ in spliced.writers(write) if w != write}
            new = spliced.reconstruct(write, {**below, write: a}, x) + error
            if not begin:
                return new
            same = held[write][:, :begin].repeat(n, 1, 1) if write in held else y[:, :begin]
            return torch.cat([same, new], 1)

        return edit

    def replace_sublayer(site: Site) -> Edit:
        mask, patch = keep.sublayers[site], other.sublayers[site]
        return lambda y: _choose(mask, y.unflatten(0, (n, -1)), patch, n)

    for write, placement in spliced.placements.items():
        if write.layer >= first:
            if placement.read != write:
                edits[placement.read] = remember(placement.read)
            edits[write] = splice(write, placement)
    edits |= {site: replace_sublayer(site) for site in keep.sublayers if site.layer >= first}
    if not first:
        embed = _choose(keep.tokens, clean.values[Site("embed")], other.embed, n)
        edits[Site("embed")] = lambda _: embed
    edits[Site("unembed_in")] = lambda x: x[:, -1:]  # the vocabulary is the dearest product
    return edits


def _choose(
    mask: Bool[Tensor, "circuit pos"] | None,
    kept: Float[Tensor, "*circuit batch pos d_model"],
    dropped: Float[Tensor, "batch pos d_model"],
    n_circuits: int,
) -> Float[Tensor, "row pos d_model"]:
    """A row for each circuit and prompt: `kept` where the mask says so (None: everywhere)."""
    if mask is not None:
        kept = torch.where(mask[:, None, :, None], kept, dropped)
    return kept.expand(n_circuits, *dropped.shape).flatten(0, 1)


def _n_circuits(keep: Keep) -> int:
    """The common leading axis of all masks (1 where there is none)."""
    masks = [*keep.features.values(), *keep.errors.values(), *keep.sublayers.values()]
    masks += [] if keep.tokens is None else [keep.tokens]
    sizes = {len(mask) for mask in masks} or {1}
    if len(sizes) > 1:
        raise ValueError(f"masks must be for one number of circuits, got {sorted(sizes)}")
    return sizes.pop()
