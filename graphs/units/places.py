"""Where the plain model's units are: neurons, heads, MLPs and tokens, each at one position.

Every site's values are seen as `[batch, pos, part, width]`: one part a unit.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.sites import Site, SiteKind
from circuits.subject import SubjectModel

__all__ = ["Part", "Unit", "UnitKind", "as_parts", "differing_units", "unit_sites"]

UnitKind = Literal["neurons", "heads"]
Part = Literal["token", "head", "neuron", "MLP"]

_SITES: dict[UnitKind, tuple[SiteKind, ...]] = {
    "neurons": ("mlp_post",),
    "heads": ("z", "mlp_raw_out"),
}
_PARTS: dict[SiteKind, Part] = {
    "embed": "token",
    "z": "head",
    "mlp_post": "neuron",
    "mlp_raw_out": "MLP",
}


class Unit(NamedTuple):
    """One part of a site at one position: a neuron, a head, a whole MLP output or a token."""

    site: Site
    pos: int
    row: int
    """Of the neuron or head in its layer; 0 where a site has one part."""

    @property
    def part(self) -> Part:
        return _PARTS[self.site.kind]

    def __str__(self) -> str:
        match self.part:
            case "token":
                return f"token@{self.pos}"
            case "MLP":
                return f"mlp{self.site.layer}@{self.pos}"
            case part:
                return f"{part}{self.site.layer}.{self.row}@{self.pos}"


def unit_sites(model: SubjectModel, kind: UnitKind) -> list[Site]:
    """Sites whose parts are the units of a kind, in the order of computation.

    With every one of them patched, all that the prompt decides is patched: neurons (or heads and
    MLP outputs) of every layer, and the tokens.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in _SITES:
        raise ValueError(f"units must be one of {', '.join(_SITES)}, got {kind!r}")
    layers = range(model.n_layers)
    return [Site("embed"), *(Site(site, layer) for layer in layers for site in _SITES[kind])]


def as_parts(site: Site, value: Tensor) -> Float[Tensor, "batch pos part width"]:
    """A site's value, one row a unit: heads are vectors, neurons numbers, the rest one vector."""
    match _PARTS[site.kind]:
        case "head":
            return value
        case "neuron":
            return value[..., None]
        case _:
            return value[:, :, None]


def differing_units(
    clean: Mapping[Site, Tensor], other: Mapping[Site, Tensor]
) -> dict[Site, Bool[Tensor, "pos part"]]:
    """Which units have another value on some pair of prompts: those that patching can change."""

    def differs(site: Site) -> Bool[Tensor, "pos part"]:
        return (as_parts(site, clean[site]) != as_parts(site, other[site])).any(-1).any(0)

    return {site: differs(site).cpu() for site in clean}


def list_units(flags: Mapping[Site, Bool[Tensor, "pos part"]]) -> Iterator[Unit]:
    """The flagged units, by site, position and row."""
    for site, flagged in flags.items():
        yield from (Unit(site, *place) for place in torch.nonzero(flagged).tolist())
