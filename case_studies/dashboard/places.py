"""The dictionaries of one site in a spliced model: their order, and some of them alone."""

from collections.abc import Container

from circuits import SplicedModel
from circuits.dictionaries import SAE
from circuits.spliced import Placement

__all__ = ["in_order", "only"]


def in_order(spliced: SplicedModel) -> list[Placement]:
    """Placements from the lowest to the highest, of dictionaries of one site.

    Only a residual SAE in front of the model (`resid_pre.0`) shares a layer with another.
    """
    return sorted(
        spliced.placements.values(), key=lambda p: (p.write.layer, p.write.kind == "resid_post")
    )


def only(spliced: SplicedModel, names: Container[str]) -> SplicedModel:
    """The model with those of its dictionaries that have these names (`Placement.name`)."""
    kept = (p for p in spliced.placements.values() if p.name in names)
    return SplicedModel(spliced.model, {_own_layer(p): p.dictionary for p in kept})


def _own_layer(placement: Placement) -> int:
    """The layer by the dictionary's own name of its place: `resid_pre.1` is at `resid_post.0`."""
    own = placement.dictionary
    moved = isinstance(own, SAE) and own.site == "resid_pre" and placement.write.kind != own.site
    return placement.write.layer + moved
