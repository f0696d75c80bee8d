"""One forward pass with changed nodes: the real model with its errors, or the frozen one.

Rows of a batch are changed each in its own way, so many interventions share a pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel
from circuits.subject import Edit
from graphs.interventions.affine import Affine, Place, moved

__all__ = ["ChangedRun", "run_frozen", "run_live"]


@dataclass(frozen=True)
class ChangedRun:
    """What a pass gave; activations are those of the dictionaries that were run, as they go on."""

    logits: Float[Tensor, "row d_vocab"]
    activations: dict[Site, Float[Tensor, "row pos feature"]]


def run_live(
    spliced: SplicedModel, tokens: Int[Tensor, "row pos"], changes: Mapping[Place, Affine]
) -> ChangedRun:
    """The real model (mode `exact`), attention and norms recomputed, with changed nodes.

        y -> y + sum over features (a' - a) d + (e' - e)

    at each place where a dictionary writes, with its features `a` and its error `e = y - a W_dec -
    b_dec` as they are in this very pass. Logits are those of the last position.

    Args:
        spliced: the model with its dictionaries.
        tokens: one prompt a row.
        changes: by place.
    """
    inputs: dict[Site, Tensor] = {}
    live: dict[Site, Tensor] = {}
    after: dict[Site, Tensor] = {}
    run_here = _dictionaries_to_run(spliced, changes)

    def splice(write: Site) -> Edit:
        placement = spliced.placements[write]
        change, error_change = changes.get(("feature", write)), changes.get(("error", write))

        def edit(y: Tensor) -> Tensor:
            x = inputs.setdefault(placement.read, y)
            live[write] = placement.dictionary.encode(x)
            after[write] = moved(change, live[write])
            new = y
            for writer, slot in spliced.writers(write):
                if ("feature", writer) in changes:
                    decoder = spliced.placements[writer].dictionary.decoder(slot)
                    new = new + (after[writer] - live[writer]) @ decoder
            if error_change is not None:
                error = y - spliced.reconstruct(write, live, x)
                new = new + (error_change(error) - error)
            return new

        return edit

    edits = _vector_edits(changes)
    for write in run_here:
        edits |= _reading(spliced, write, inputs)
        edits[write] = splice(write)
    logits = _last_logits(spliced, tokens, edits)
    return ChangedRun(logits, after)


def run_frozen(
    spliced: SplicedModel,
    state: FrozenState,
    tokens: Int[Tensor, "row pos"],
    changes: Mapping[Place, Affine],
) -> ChangedRun:
    """The frozen model: attention, norms, unreplaced MLPs and errors held, features live.

    Args:
        spliced: the model with its dictionaries.
        state: what is held: of one prompt for all rows, or of one a row.
        tokens: one prompt a row.
        changes: by place; of errors and unreplaced MLPs, from their held values.
    """
    inputs: dict[Site, Tensor] = {}
    used: dict[Site, Tensor] = {}

    def held(value: Tensor) -> Tensor:
        return value.expand(len(tokens), *value.shape[1:]).clone()

    def hold(site: Site) -> Edit:
        change = changes.get(("sublayer", site))
        return lambda _: moved(change, held(state.values[site]))

    def splice(write: Site) -> Edit:
        placement = spliced.placements[write]
        error = moved(changes.get(("error", write)), held(state.errors[write]))

        def edit(y: Tensor) -> Tensor:
            x = inputs.setdefault(placement.read, y)
            a = placement.dictionary.encode(x)
            used[write] = moved(changes.get(("feature", write)), a)
            return spliced.reconstruct(write, used, x) + error

        return edit

    patterns = [Site("pattern", layer) for layer in range(spliced.model.n_layers)]
    edits = _vector_edits(changes)
    held_sites = (*spliced.model.scale_sites(), *patterns, *spliced.held_mlps())
    edits |= {site: hold(site) for site in held_sites}
    for write in spliced.placements:
        edits |= _reading(spliced, write, inputs)
        edits[write] = splice(write)
    return ChangedRun(_last_logits(spliced, tokens, edits), used)


def _dictionaries_to_run(spliced: SplicedModel, changes: Mapping[Place, Affine]) -> list[Site]:
    """Where something must be added or worked out: where changed features write, where errors
    change, and what writes there.
    """
    needed: set[Site] = set()
    for write in spliced.placements:
        writers = {writer for writer, _ in spliced.writers(write)}
        if ("error", write) in changes or any(("feature", w) in changes for w in writers):
            needed |= writers
    return [write for write in spliced.placements if write in needed]


def _vector_edits(changes: Mapping[Place, Affine]) -> dict[Site, Edit]:
    """Changes of tokens and unreplaced MLPs, which are values of a site themselves."""
    return {
        site: change for (kind, site), change in changes.items() if kind in ("token", "sublayer")
    }


def _reading(spliced: SplicedModel, write: Site, inputs: dict[Site, Tensor]) -> dict[Site, Edit]:
    """The edit that keeps what the dictionary placed at `write` reads, if that is elsewhere."""
    read = spliced.placements[write].read
    return {} if read == write else {read: lambda x: inputs.setdefault(read, x)}


def _last_logits(
    spliced: SplicedModel, tokens: Int[Tensor, "row pos"], edits: dict[Site, Edit]
) -> Float[Tensor, "row d_vocab"]:
    last: Edit = lambda x: x[:, -1:]  # noqa: E731  the vocabulary is the dearest product
    with torch.no_grad():
        logits, _ = spliced.model.run(tokens, edits={**edits, Site("unembed_in"): last})
    return logits[:, -1]
