"""What a checkpoint might mean: ways to read a dictionary that can be tried against each other.

Conventions and words only; what they come to on activations is in `readings`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, get_args

from circuits.conventions import Convention
from circuits.dictionaries import SAE, CrossLayerTranscoder, Dictionary
from circuits.sites import DICTIONARY_SITES

__all__ = [
    "Change",
    "Hypothesis",
    "ModelFacts",
    "changed",
    "changes",
    "declared",
    "described",
    "misplacements",
    "opposite",
    "pairs",
    "place",
    "remedy",
    "written",
]

Change = tuple[tuple[str, Any], ...]
"""Fields of a hypothesis, or of its convention, and their other values; none is as declared."""


@dataclass(frozen=True)
class ModelFacts:
    """What of a model decides which conventions are possible in it.

    Args:
        layer_norm: whether its norms take the mean away.
        post_norm: whether an MLP's output is normalised before it joins the stream.
        parallel: whether attention and MLP read the same stream.
        bos: whether its prompts begin with BOS; None where it is not known.
        n_layers: its blocks.
    """

    layer_norm: bool
    post_norm: bool
    parallel: bool
    bos: bool | None
    n_layers: int


@dataclass(frozen=True)
class Hypothesis:
    """One way to read a dictionary.

    Args:
        site: `mlp` for a transcoder, else where an SAE sits.
        layer: the block it belongs to.
        convention: what it expects and was taught to write.
        with_bos: whether rows begin with BOS.
        first: whether the first position of a row counts (BOS never does).
    """

    site: str
    layer: int
    convention: Convention
    with_bos: bool
    first: bool


def place(name: str, n_layers: int) -> tuple[str, int]:
    """Site and layer of the dictionary called `name`.

    Raises:
        ValueError: if it names none, or a layer that the model has not.
    """
    site, _, layer = name.rpartition(".")
    if site not in ("mlp", *DICTIONARY_SITES) or not layer.isdigit() or int(layer) >= n_layers:
        raise ValueError(
            f"want names such as mlp.0 or resid_post.2, with layers 0 to {n_layers - 1}, got "
            f"{name!r}"
        )
    return site, int(layer)


def declared(name: str, convention: Convention, facts: ModelFacts) -> Hypothesis:
    """The dictionary called `name` as it is declared, on prompts as the model makes them."""
    site, layer = place(name, facts.n_layers)
    first = convention.first_position == "read"
    return Hypothesis(site, layer, convention, bool(facts.bos), first)


def changed(hypothesis: Hypothesis, change: Change) -> Hypothesis:
    """The hypothesis with some fields changed."""
    of_convention = {k: v for k, v in change if k in Convention.model_fields}
    others = {k: v for k, v in change if k not in Convention.model_fields}
    convention = hypothesis.convention.model_copy(update=of_convention)
    return replace(hypothesis, convention=convention, **others)


def changes(dictionary: Dictionary, facts: ModelFacts) -> list[Change]:
    """Every single other convention that the model makes possible and activations can tell.

    Position 0 left out though it was trained on is not among them: the true value goes on there, so
    nothing is lost.
    """
    convention = dictionary.convention
    found: list[Change] = []
    if not isinstance(dictionary, SAE):
        norms = get_args(Convention.model_fields["norm"].annotation)
        impossible = {convention.norm, "none" if facts.parallel else ""}
        found += [(("norm", norm),) for norm in norms if norm not in impossible]
        if facts.post_norm:
            after = convention.output == "after post-norm"
            found.append((("output", "before post-norm" if after else "after post-norm"),))
    if convention.subtracted != "own vector" and dictionary.d_in == dictionary.d_out:
        taken = convention.subtracted == "b_dec"
        found.append((("subtracted", "nothing" if taken else "b_dec"),))
    if facts.layer_norm or convention.centred:
        found.append((("centred", not convention.centred),))
    if convention.first_position == "read":
        found.append((("first", False),))
    if facts.bos is not None:
        # The first position may have any size: it would decide the variance of one side only.
        found.append((("with_bos", not facts.bos), ("first", False)))
    return found


def pairs(single: Sequence[Change]) -> list[Change]:
    """Two changes at once, of different fields."""
    return [
        one + other
        for one, other in combinations(single, 2)
        if not {name for name, _ in one} & {name for name, _ in other}
    ]


def misplacements(hypothesis: Hypothesis, dictionary: Dictionary, n_layers: int) -> list[Change]:
    """The layer below or above, and a transcoder that is an SAE of the MLP's output, or back."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return []
    layers = (hypothesis.layer - 1, hypothesis.layer + 1)
    found: list[Change] = [(("layer", layer),) for layer in layers if 0 <= layer < n_layers]
    found += [(("site", site),) for site in ("mlp", "mlp_out") if site != hypothesis.site]
    return found


_WORDS: dict[tuple[str, Any], str] = {
    ("norm", "gain and bias"): "read with gain and bias",
    ("norm", "bare"): "read bare, without the norm's gain and bias",
    ("norm", "none"): "read before the norm",
    ("subtracted", "nothing"): "with nothing taken from its input",
    ("subtracted", "b_dec"): "with b_dec taken from its input",
    ("subtracted", "own vector"): "with a vector of its own taken from its input",
    ("centred", False): "on activations as they are",
    ("centred", True): "on activations of mean 0 over d_model",
    ("output", "before post-norm"): "against what comes before the post-norm",
    ("output", "after post-norm"): "against what comes after the post-norm",
    ("first", False): "with the first position left out",
    ("first", True): "with the first position",
    ("with_bos", True): "with BOS in front",
    ("with_bos", False): "without BOS in front",
    ("site", "mlp"): "read as a transcoder",
    ("site", "mlp_out"): "read as an SAE of the MLP's output",
}


def described(change: Change) -> str:
    """A change in words.

    Example:
        >>> described((("norm", "bare"), ("centred", True)))
        "read bare, without the norm's gain and bias, on activations of mean 0 over d_model"
    """
    if "with_bos" in dict(change):
        change = tuple(item for item in change if item[0] != "first")
    return ", ".join(
        f"read at layer {value}" if name == "layer" else _WORDS[name, value]
        for name, value in change
    )


def opposite(convention: Convention, change: Change) -> Change:
    """What is declared of the fields that `change` is about; places are not repeated."""
    of_convention = convention.model_dump()
    return tuple(
        (name, of_convention.get(name, not value))
        for name, value in change
        if name in of_convention or isinstance(value, bool)
    )


def remedy(convention: Convention, change: Change) -> str:
    """What to do if the dictionary is as `change` says.

    Example:
        >>> remedy(Convention(centred=True), (("norm", "bare"),))
        "pass convention=Convention(norm='bare', centred=True)"
    """
    wanted = dict(change)
    if "layer" in wanted:
        return f"check which layer the file is of: {wanted['layer']} fits"
    if "site" in wanted:
        kind = "a transcoder" if wanted["site"] == "mlp" else "an SAE"
        return f"pass site={wanted['site']!r}: it is {kind}"
    update = {name: value for name, value in change if name in Convention.model_fields}
    if "first" in wanted and "with_bos" not in wanted:
        update["first_position"] = "left out"
    steps = [f"pass convention={written(convention.model_copy(update=update))}"] if update else []
    if "with_bos" in wanted:
        steps.append(f"load the model with prepend_bos={wanted['with_bos']}")
    return " and ".join(steps)


def written(convention: Convention) -> str:
    """A convention as one writes it.

    Example:
        >>> written(Convention(norm="bare"))
        "Convention(norm='bare')"
    """
    given = convention.model_dump(exclude_defaults=True)
    return f"Convention({', '.join(f'{name}={value!r}' for name, value in given.items())})"
