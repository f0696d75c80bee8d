"""How well a dictionary does under a hypothesis: its input and target as the hypothesis has them.

The weights stay as the file has them and the activations are changed instead, so that conventions
which no weights express can be tried too. Folding (`circuits.folding`) must agree with this.
"""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import nan

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.conventions import Convention
from circuits.dictionaries import Dictionary
from circuits.metrics import fvu
from circuits.plausibility.hypotheses import Change, Hypothesis, changed
from circuits.sites import Site, SiteKind
from circuits.subject import Norm, SubjectModel

__all__ = [
    "Activations",
    "Carried",
    "Score",
    "Way",
    "input_of",
    "measure",
    "read_activations",
    "reread",
    "sites_of",
    "way_of",
    "written_at",
]


@dataclass(frozen=True)
class Activations:
    """A model's values on some rows of tokens, laid end to end."""

    values: dict[Site, Float[Tensor, "token _"]]
    is_bos: Bool[Tensor, " token"]
    is_first: Bool[Tensor, " token"]


@dataclass(frozen=True)
class Score:
    """What a hypothesis comes to, over the tokens that count under it.

    Args:
        n_tokens: how many they are.
        fvu: NaN if the reconstruction is not finite.
        l0: mean active features a token.
        mean_missed: of the mean over d_model of the model's own value, what the reconstruction
            misses: `sum (mean y - mean y_hat)^2 / sum (mean y)^2`. 1 for what writes no mean; NaN
            where there is none to write.
    """

    n_tokens: int
    fvu: float
    l0: float
    mean_missed: float


Way = tuple[bool, str, str, bool]
"""How inputs are read: with BOS, norm, subtracted, centred."""
Carried = MutableMapping[tuple[int, Way], Float[Tensor, "token d_model"]]
"""What features of lower layers write to a layer, each way (cross-layer transcoders)."""


def sites_of(site: str, layer: int, model: SubjectModel) -> list[Site]:
    """What must be read to try every hypothesis of a dictionary there."""
    if site != "mlp":
        return [Site(site, layer)]  # type: ignore[arg-type]
    kinds: list[SiteKind] = ["mlp_in", "ln2_scale", "mlp_raw_out", "mlp_out"]
    return [_stream(model, layer), *(Site(kind, layer) for kind in kinds)]


def _stream(model: SubjectModel, layer: int) -> Site:
    """What the norm before the MLP reads."""
    return Site("resid_pre" if model.parallel else "resid_mid", layer)


def read_activations(
    model: SubjectModel, rows: Sequence[Int[Tensor, " _"]], sites: Iterable[Site]
) -> Activations:
    """One pass over the rows of each length, ended as soon as all sites are read.

    In at least float32, shorter rows first.
    """
    wanted = set(sites)
    dtype = torch.promote_types(model.dtype, torch.float32)
    batches = [torch.stack(list(same)) for _, same in groupby(sorted(rows, key=len), key=len)]
    with torch.no_grad():
        read = [model.read(batch, wanted) for batch in batches]
    first = [torch.zeros_like(batch, dtype=torch.bool) for batch in batches]
    for each in first:
        each[:, 0] = True
    return Activations(
        {site: torch.cat([v[site].flatten(0, 1) for v in read]).to(dtype) for site in wanted},
        torch.cat([batch.flatten() for batch in batches]) == model.bos_token,
        torch.cat([each.flatten() for each in first]),
    )


def _centred(x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    return x - x.mean(-1, keepdim=True)


def input_of(
    hypothesis: Hypothesis, model: SubjectModel, activations: Activations
) -> Float[Tensor, "token d_model"]:
    """What the dictionary reads if the hypothesis is right."""
    layer, convention = hypothesis.layer, hypothesis.convention
    if hypothesis.site != "mlp":
        x = activations.values[Site(hypothesis.site, layer)]  # type: ignore[arg-type]
        return _centred(x) if convention.centred else x
    if convention.norm == "gain and bias":
        return activations.values[Site("mlp_in", layer)]
    stream = activations.values[_stream(model, layer)]
    if convention.norm == "none":
        return _centred(stream) if convention.centred else stream
    norm = model.norm("ln2", layer)
    assert norm is not None
    bare = Norm(torch.ones_like(norm.gain), torch.zeros_like(norm.bias), norm.centred)
    return bare.linear(stream, activations.values[Site("ln2_scale", layer)])


def written_at(hypothesis: Hypothesis, activations: Activations) -> Float[Tensor, "token d_model"]:
    """The model's own value where the dictionary writes, if the hypothesis is right."""
    kind = hypothesis.site
    if kind == "mlp":
        before = hypothesis.convention.output == "before post-norm"
        kind = "mlp_raw_out" if before else "mlp_out"
    return activations.values[Site(kind, hypothesis.layer)]  # type: ignore[arg-type]


def reread(dictionary: Dictionary, convention: Convention) -> Dictionary:
    """The dictionary that the file would have given had it declared `convention`.

    `b_enc - b_dec W_enc` where b_dec is to be subtracted from the input and was not; back where it
    was. No other convention changes weights before they are folded.
    """
    was, wanted = dictionary.convention.subtracted, convention.subtracted
    if was == wanted:
        return replace(dictionary, convention=convention)
    if "own vector" in (was, wanted):
        raise ValueError(
            f"cannot read as subtracted={wanted!r} what was read as {was!r}: the vector is not "
            "in the dictionary; read the file again"
        )
    shift = dictionary.b_dec @ dictionary.W_enc
    b_enc = dictionary.b_enc - shift if wanted == "b_dec" else dictionary.b_enc + shift
    return replace(dictionary, b_enc=b_enc, convention=convention)


def measure(
    model: SubjectModel,
    dictionary: Dictionary,
    declared: Hypothesis,
    changes: Iterable[Change],
    activations: Mapping[bool, Activations],
    carried: Carried,
) -> dict[Change, Score]:
    """FVU and L0 of one dictionary under several hypotheses.

    Args:
        model: the subject model.
        dictionary: as its file has it.
        declared: how it is declared.
        changes: what to try instead.
        activations: of rows without (False) and with (True) BOS in front.
        carried: what lower layers wrote to this one, which is taken out, and what this one writes
            to higher layers, which is put in: for cross-layer transcoders in the order of layers.
    """
    scores: dict[Change, Score] = {}
    read: dict[tuple[str, int, Way], tuple[Tensor, Tensor]] = {}
    for change in changes:
        hypothesis = changed(declared, change)
        layer, way = hypothesis.layer, way_of(hypothesis)
        values = activations[hypothesis.with_bos]
        if (place := (hypothesis.site, layer, way)) not in read:
            x = input_of(hypothesis, model, values).to(dictionary.W_enc)
            a = reread(dictionary, hypothesis.convention).encode(x)
            read[place] = (a != 0).sum(1), dictionary.decode(a, x) + carried.pop((layer, way), 0)
            for slot in range(1, dictionary.n_writes):
                above = carried.get((layer + slot, way), 0)
                carried[layer + slot, way] = above + a @ dictionary.decoder(slot)
        n_active, y_hat = read[place]
        keep = ~values.is_bos if hypothesis.first else ~(values.is_bos | values.is_first)
        y, centred = written_at(hypothesis, values)[keep], hypothesis.convention.centred
        scores[change] = _score(y, y_hat[keep], n_active[keep], centred=centred)
    return scores


def way_of(hypothesis: Hypothesis) -> Way:
    """What decides the activations of features; the rest decides their target."""
    c = hypothesis.convention
    centred = c.centred and (hypothesis.site != "mlp" or c.norm == "none")
    return hypothesis.with_bos, c.norm, c.subtracted, centred


def _score(
    y: Float[Tensor, "token d_model"],
    y_hat: Float[Tensor, "token d_model"],
    n_active: Int[Tensor, " token"],
    *,
    centred: bool,
) -> Score:
    """Of one hypothesis: the target is `y`, or `y` less its mean where that is taken away."""
    finite = bool(y_hat.isfinite().all())
    mean, mean_hat = y.double().mean(1), y_hat.double().mean(1)
    return Score(
        len(y),
        fvu(_centred(y) if centred else y, y_hat) if finite else nan,
        n_active.double().mean().item(),
        ((mean - mean_hat).square().sum() / mean.square().sum()).item(),
    )
