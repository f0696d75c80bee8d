"""Patched runs of the plain model: keep some units, give every other its value on other prompts.

The model is live: kept heads attend anew, norms and kept neurons are recomputed from what reaches
them. So keeping everything gives the model's logits, and keeping nothing the other prompts'.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.sites import Site
from circuits.subject import Edit, SubjectModel
from graphs.units.places import as_parts

__all__ = ["run_units", "site_values"]


def site_values(
    model: SubjectModel, tokens: Int[Tensor, "batch pos"], sites: list[Site]
) -> tuple[Float[Tensor, "batch d_vocab"], dict[Site, Tensor]]:
    """Last-position logits, and the values at `sites` in their order.

    Raises:
        ValueError: if the architecture does not show one of them.
    """
    last: dict[Site, Edit] = {Site("unembed_in"): lambda x: x[:, -1:]}
    with torch.no_grad():
        logits, found = model.run(tokens, edits=last, capture=sites)
    for site in sites:
        if site not in found or (site.kind == "z" and found[site].ndim != 4):
            raise ValueError(
                f"{model.name!r} does not show {site}, one row a head or neuron; its architecture "
                "has none there (experts, or attention of another form)"
            )
    return logits[:, -1], {site: found[site] for site in sites}


def run_units(
    model: SubjectModel,
    tokens: Int[Tensor, "batch pos"],
    other: Mapping[Site, Tensor],
    keep: Mapping[Site, Bool[Tensor, "circuit pos part"]],
) -> Float[Tensor, "circuit batch d_vocab"]:
    """Last-position logits of each circuit on each prompt, every other unit at its `other` value.

    Args:
        model: run live.
        tokens: the clean prompts.
        other: values of the same prompts, row by row, at every site of `keep` (`site_values`).
        keep: which units stay, for several circuits at once; other sites are left alone.
    """
    n_circuits = len(next(iter(keep.values())))

    def patch(site: Site) -> Edit:
        flags = keep[site].to(tokens.device)[:, None, :, :, None]
        patched = as_parts(site, other[site])

        def edit(value: Tensor) -> Tensor:
            rows = as_parts(site, value).unflatten(0, (n_circuits, len(tokens)))
            return torch.where(flags, rows, patched).reshape(value.shape)

        return edit

    edits: dict[Site, Edit] = {site: patch(site) for site in keep}
    edits[Site("unembed_in")] = lambda x: x[:, -1:]  # the vocabulary is the dearest product
    with torch.no_grad():
        logits, _ = model.run(tokens.repeat(n_circuits, 1), edits=edits)
    return logits[:, -1].unflatten(0, (n_circuits, len(tokens)))
