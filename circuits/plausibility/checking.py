"""The passes of the check: a few prompts through the model, and through each dictionary in turn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.conventions import Convention
from circuits.dictionaries import SAE, CrossLayerTranscoder, Dictionary
from circuits.plausibility.hypotheses import (
    Change,
    ModelFacts,
    changes,
    declared,
    misplacements,
    pairs,
    place,
)
from circuits.plausibility.readings import (
    Activations,
    Carried,
    Score,
    measure,
    read_activations,
    sites_of,
)
from circuits.plausibility.text import PARAGRAPHS
from circuits.plausibility.verdicts import Fit, ImplausibleDictionaryError, judge
from circuits.subject import SubjectModel

__all__ = ["MIN_TOKENS", "check_plausible", "measure_fits"]

MIN_TOKENS = 64
"""On fewer tokens FVU says more of the tokens than of a dictionary."""


def check_plausible(
    model: SubjectModel,
    dictionaries: Mapping[str, Dictionary],
    prompts: Sequence[str] | Int[Tensor, "row pos"] | None = None,
    *,
    recorded_l0: Mapping[str, float] | None = None,
) -> list[Fit]:
    """What `measure_fits` says of each dictionary, if all of them fit.

    Raises:
        ImplausibleDictionaryError: if one does not: with the reasons, and with the conventions
            under which they would fit, if there are such.
        ValueError: as `measure_fits`.
    """
    fits = measure_fits(model, dictionaries, prompts, recorded_l0=recorded_l0)
    refused = [fit.reason for fit in fits if fit.verdict == "refused"]
    if refused:
        raise ImplausibleDictionaryError(
            f"{len(refused)} of {len(fits)} dictionaries do not fit {model.name!r} as they are "
            "declared:" + "".join(f"\n  {reason}" for reason in refused)
        )
    return fits


def measure_fits(
    model: SubjectModel,
    dictionaries: Mapping[str, Dictionary],
    prompts: Sequence[str] | Int[Tensor, "row pos"] | None = None,
    *,
    recorded_l0: Mapping[str, float] | None = None,
) -> list[Fit]:
    """Try each dictionary as declared and under every other convention that the model allows.

    Each convention is changed alone; for a dictionary that does not fit, two are changed at once,
    and it is tried at the layers next to its own, and as an SAE for a transcoder or back. One
    dictionary is read at a time, in the order of layers. A cross-layer transcoder is tried as a
    whole, so give all of its layers.

    Args:
        model: the subject model.
        dictionaries: by `SITE.LAYER`, as their files have them: not folded.
        prompts: text, or rows of token ids (natural ones); None for a few paragraphs of English.
        recorded_l0: mean active features a token that files have on record, by name.

    Returns:
        One record a dictionary, in the order of layers.

    Raises:
        ValueError: if a name or a width does not fit the model, there are too few tokens, or the
            layers of a cross-layer transcoder declare different conventions.
    """
    rows = _rows(model, prompts)
    facts = _facts(model, rows)
    names = sorted(dictionaries, key=lambda name: place(name, facts.n_layers)[::-1])
    activations = _activations(model, rows, facts, names)
    recorded = recorded_l0 or {}
    carried: Carried = {}
    cases = []
    for name in names:
        case = _tried(model, name, dictionaries[name], facts, activations, carried)
        if not case.crosses and _refused(case, facts, recorded):
            _try_more(model, case, dictionaries[name], facts, activations, {})
        cases.append(case)
    crossing = [case for case in cases if case.crosses]
    _check_one_convention(crossing)
    if any(_refused(case, facts, recorded) for case in crossing):
        for case in crossing:
            _try_more(model, case, dictionaries[case.name], facts, activations, carried)
    return [_fit(case, facts, recorded) for case in cases]


@dataclass(frozen=True)
class _Case:
    """What has been found of one dictionary so far."""

    name: str
    convention: Convention
    n_features: int
    k: float | None
    crosses: bool
    scores: dict[Change, Score]


def _fit(case: _Case, facts: ModelFacts, recorded: Mapping[str, float]) -> Fit:
    return judge(
        case.name,
        case.convention,
        case.n_features,
        case.scores,
        bos=facts.bos,
        recorded_l0=recorded.get(case.name, case.k),
    )


def _refused(case: _Case, facts: ModelFacts, recorded: Mapping[str, float]) -> bool:
    return _fit(case, facts, recorded).verdict == "refused"


def _tried(
    model: SubjectModel,
    name: str,
    dictionary: Dictionary,
    facts: ModelFacts,
    activations: Mapping[bool, Activations],
    carried: Carried,
) -> _Case:
    """A dictionary as declared, and with one convention changed."""
    _check_fits_name(model, name, dictionary)
    dictionary = dictionary.to(device=model.device)
    hypothesis = declared(name, dictionary.convention, facts)
    wanted = [(), *changes(dictionary, facts)]
    crosses = isinstance(dictionary, CrossLayerTranscoder)
    return _Case(
        name,
        dictionary.convention,
        dictionary.n_features,
        None if dictionary.k is None else float(dictionary.k),
        crosses,
        measure(model, dictionary, hypothesis, wanted, activations, carried if crosses else {}),
    )


def _try_more(
    model: SubjectModel,
    case: _Case,
    dictionary: Dictionary,
    facts: ModelFacts,
    activations: Mapping[bool, Activations],
    carried: Carried,
) -> None:
    """Two conventions changed at once, and other places: for what fits under no single change."""
    dictionary = dictionary.to(device=model.device)
    hypothesis = declared(case.name, case.convention, facts)
    more = pairs(changes(dictionary, facts)) + misplacements(hypothesis, dictionary, facts.n_layers)
    case.scores.update(measure(model, dictionary, hypothesis, more, activations, carried))


def _check_fits_name(model: SubjectModel, name: str, dictionary: Dictionary) -> None:
    if (dictionary.d_in, dictionary.d_out) != (model.d_model, model.d_model):
        raise ValueError(
            f"{name} reads width {dictionary.d_in} and writes width {dictionary.d_out}, but "
            f"{model.name!r} has d_model {model.d_model}; was it made for another model?"
        )
    site = dictionary.site if isinstance(dictionary, SAE) else "mlp"
    if name.rpartition(".")[0] != site:
        raise ValueError(f"{name} names a dictionary of site {site!r}; call it {site}.LAYER")


def _check_one_convention(crossing: Sequence[_Case]) -> None:
    for case in crossing[1:]:
        if case.convention != crossing[0].convention:
            raise ValueError(
                "the layers of a cross-layer transcoder must have one convention, but "
                f"{crossing[0].name} and {case.name} declare different ones"
            )


def _rows(
    model: SubjectModel, prompts: Sequence[str] | Int[Tensor, "row pos"] | None
) -> list[Int[Tensor, " _"]]:
    """Prompts as the model makes them, one row each."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; give a list of them")
    if isinstance(prompts, Tensor):
        rows = [model.check_tokens(row) for row in prompts]
    else:
        ours = prompts is None
        texts = PARAGRAPHS if ours else prompts
        rows = [model.tokenize(text, cut=ours) for text in texts]
    n_tokens = sum(int((row[1:] != model.bos_token).sum()) for row in rows)
    if n_tokens < MIN_TOKENS:
        raise ValueError(
            f"want at least {MIN_TOKENS} tokens to try dictionaries on, first positions not "
            f"counted, got {n_tokens}; give more prompts"
        )
    return rows


def _facts(model: SubjectModel, rows: Sequence[Int[Tensor, " _"]]) -> ModelFacts:
    begin = {int(row[0]) == model.bos_token for row in rows}
    if len(begin) > 1:
        raise ValueError("some prompts begin with BOS and others do not; give all alike")
    norm = model.norm("ln2", 0)
    return ModelFacts(
        layer_norm=norm is not None and norm.centred,
        post_norm=model.norm("ln2_post", 0) is not None,
        parallel=model.parallel,
        bos=None if model.bos_token < 0 else begin.pop(),
        n_layers=model.n_layers,
    )


def _activations(
    model: SubjectModel,
    rows: Sequence[Int[Tensor, " _"]],
    facts: ModelFacts,
    names: Iterable[str],
) -> dict[bool, Activations]:
    """By whether BOS is in front: as the prompts are, and the other way if there is a BOS."""
    sites = {
        site
        for name in names
        for kind, own in [place(name, facts.n_layers)]
        for layer in range(max(own - 1, 0), min(own + 2, facts.n_layers))
        for site in (*sites_of(kind, layer, model), *sites_of("mlp", layer, model))
    }
    found = {bool(facts.bos): read_activations(model, rows, sites)}
    if facts.bos is not None:
        bos = rows[0].new_tensor([model.bos_token])
        others = [row[1:] if facts.bos else torch.cat([bos, row])[: model.n_ctx] for row in rows]
        found[not facts.bos] = read_activations(model, others, sites)
    return found
