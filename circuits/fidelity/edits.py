"""Edits that put something else at some sites, but only where positions are kept."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.sites import Site
from circuits.spliced import SplicedModel
from circuits.subject import Edit

__all__ = ["constants", "splices"]


def constants(
    values: Mapping[Site, Float[Tensor, " d_model"]], keep: Bool[Tensor, "batch pos"]
) -> dict[Site, Edit]:
    """Put one vector at every kept position of each site: its mean, or zero."""

    def constant(value: Float[Tensor, " d_model"]) -> Edit:
        return lambda y: torch.where(keep[..., None], value, y)

    return {site: constant(value) for site, value in values.items()}


def splices(
    spliced: SplicedModel, writes: Sequence[Site], keep: Bool[Tensor, "batch pos"]
) -> dict[Site, Edit]:
    """Put reconstructions at the kept positions of some write sites, the others left alone.

    Each dictionary reads what arrives in the same run, after the splices below it.
    """
    inputs: dict[Site, Tensor] = {}
    activations: dict[Site, Tensor] = {}

    def read(write: Site, x: Tensor) -> Tensor:
        inputs[write] = x
        activations[write] = spliced.placements[write].dictionary.encode(x)
        return x

    def splice(write: Site, y: Tensor) -> Tensor:
        if spliced.placements[write].read == write:
            read(write, y)
        y_hat = spliced.reconstruct(write, activations, inputs.pop(write))
        if spliced.placements[write].dictionary.n_writes == 1:  # nobody above needs them
            del activations[write]
        return torch.where(keep[..., None], y_hat, y)

    writers = {writer for write in writes for writer, _ in spliced.writers(write)}
    reading = {spliced.placements[writer].read: partial(read, writer) for writer in writers}
    return reading | {write: partial(splice, write) for write in writes}
