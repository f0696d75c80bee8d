"""What a SAELens `cfg.json` says, of any version, and what of it cannot be expressed here.

Up to version 5 all keys lay flat beside each other (`hook_point`, later `hook_name`); since 6 the
facts about the language model lie under `metadata`. Defaults are those of SAELens 6.54, which reads
both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.conventions import Convention
from circuits.formats.building import whole_number
from circuits.formats.entry import Given
from circuits.formats.hooks import sae_site, split_hook
from circuits.formats.reading import flag, read_json
from circuits.formats.saelens_conventions import convention_of, hook_of
from circuits.sites import DICTIONARY_SITES

__all__ = ["TRANSCODERS", "Described", "describe", "where"]

SAES = ("standard", "jumprelu", "gated", "topk")
TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
_REFUSED = {
    "temporal": "its features depend on other positions, and a dictionary here reads one",
    "matching_pursuit": "it encodes by repeated projection, not by one encoder and an activation",
    "abstopk": "its activations may be negative; activations here are not",
    "batchtopk": "it is a training checkpoint; write it with `save_inference_model` of SAELens, "
    "which makes it jumprelu",
    "matryoshka_batchtopk": "it is a training checkpoint; write it with `save_inference_model` of "
    "SAELens, which makes it jumprelu",
}
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_EACH_TOKEN = "scales each token by its own norm, so that features are not linear in the activation"
_NORMALISED = {
    "layer_norm": _EACH_TOKEN,
    "constant_norm_rescale": _EACH_TOKEN,
    "covariance_whitening": "the whitening is not in the file; fold it with SAELens first",
}


@dataclass(frozen=True)
class Described:
    """One dictionary as its config describes it.

    Args:
        architecture: as SAELens calls it.
        sizes: d_in, d_out and the number of features.
        k: of TopK.
        subtracts: whether `b_dec` is subtracted from the input.
        scaled: whether the input was scaled by a factor that is not in the weights.
        rescaled: whether TopK ranks pre-activations times decoder norms.
        convention: what it expects and writes.
        model: name of the model.
    """

    architecture: str
    sizes: tuple[int, int, int]
    k: int | None
    subtracts: bool
    scaled: bool
    rescaled: bool
    convention: Convention
    model: str


def _facts(path: Path) -> dict[str, Any]:
    """The config as one flat record, under the names of version 6."""
    raw = read_json(path)
    metadata = raw.pop("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: metadata must be an object, got {type(metadata).__name__}")
    flat: dict[str, Any] = {**metadata, **raw}
    return {_RENAMED.get(key, key): value for key, value in flat.items()}


def where(path: Path, given: Given) -> tuple[str, int]:
    """Site and layer of the dictionary, as given or by its hook.

    Files from before SAELens had transcoders may hold one as an SAE: then `mlp` must be given.

    Raises:
        ValueError: if neither says, or no dictionary can sit there.
    """
    found = _facts(path)
    named = found.get("architecture") in TRANSCODERS
    site, layer = given.site, given.layer
    if str(found.get("hook_name")).endswith("hook_z"):
        site = None  # whatever is given: its width is another
    if site is None or layer is None:
        try:
            hook_layer, place = split_hook(hook_of(found, "hook_name"))
            site = site or ("mlp" if named else sae_site(place))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        layer = hook_layer if layer is None else layer
    wanted = ("mlp",) if named else ("mlp", *DICTIONARY_SITES)
    if site not in wanted:
        what = "a transcoder" if named else "an SAE, or a transcoder saved as one,"
        raise ValueError(f"{path}: {what} sits at one of {wanted}, got {site!r}")
    return site, layer


def describe(path: Path, given: Given) -> Described:
    """What the config at `path` says.

    Raises:
        ValueError: if it is damaged, or describes what a dictionary here cannot be, with the
            reason.
    """
    found = _facts(path)
    architecture, k = _architecture(path, found)
    named = architecture in TRANSCODERS
    transcodes = named or given.site == "mlp"
    subtracts = found.get("apply_b_dec_to_input", not named)
    if not isinstance(subtracts, bool) or (named and subtracts):
        raise ValueError(
            f"{path}: apply_b_dec_to_input must be {'false' if named else 'true or false'} "
            f"for {architecture!r}, got {subtracts!r}"
        )
    d_in, n_features = whole_number(path, found, "d_in"), whole_number(path, found, "d_sae")
    if k is not None and k > n_features:
        raise ValueError(f"{path}: k must be at most d_sae = {n_features}, got {k}")
    for key, plain in (("reshape_activations", "none"), ("hook_head_index", None)):
        if found.get(key, plain) != plain:
            raise ValueError(
                f"{path}: {key} is {found[key]!r}, so it reads single heads; dictionaries here "
                "read activations of width d_model"
            )
    convention = given.convention
    if convention is None:
        try:
            convention = convention_of(found, transcodes, subtracts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return Described(
        architecture=architecture,
        sizes=(d_in, whole_number(path, found, "d_out") if named else d_in, n_features),
        k=k,
        subtracts=subtracts,
        scaled=_scaled(path, found, given, transcodes),
        rescaled=flag(path, found, "rescale_acts_by_decoder_norm"),
        convention=convention,
        model=str(found.get("model_name") or ""),
    )


def _architecture(path: Path, found: Mapping[str, Any]) -> tuple[str, int | None]:
    """Its name, and k if that is TopK."""
    name = found.get("architecture", "standard")
    activation = found.get("activation_fn", "relu")
    if not isinstance(name, str) or not isinstance(activation, str):
        raise ValueError(
            f"{path}: architecture and activation_fn must be names, got {name!r} and {activation!r}"
        )
    if name in _REFUSED:
        raise ValueError(f"{path}: architecture {name!r} is refused: {_REFUSED[name]}")
    if name not in (*SAES, *TRANSCODERS):
        raise ValueError(
            f"{path}: architecture must be one of {', '.join((*SAES, *TRANSCODERS))}, got {name!r}"
        )
    if activation not in ("relu", "topk"):
        raise ValueError(f"{path}: activation_fn must be relu or topk, got {activation!r}")
    if name != "topk" and activation != "topk":
        return name, None
    if name not in ("standard", "topk"):
        raise ValueError(f"{path}: activation_fn 'topk' does not go with architecture {name!r}")
    of_activation = found.get("activation_fn_kwargs")
    old = of_activation if isinstance(of_activation, dict) and "k" in of_activation else found
    return "topk", whole_number(path, old, "k")


def _scaled(path: Path, found: Mapping[str, Any], given: Given, transcodes: bool) -> bool:
    """Whether the input scale of training still has to be folded into the weights."""
    normalised = found.get("normalize_activations") or "none"
    if normalised == "none":
        return False
    if isinstance(normalised, str) and normalised in _NORMALISED:
        raise ValueError(
            f"{path}: normalize_activations {normalised!r} is refused: {_NORMALISED[normalised]}"
        )
    if normalised not in (True, "expected_average_only_in"):
        raise ValueError(f"{path}: normalize_activations is unknown, got {normalised!r}")
    if transcodes:
        raise ValueError(
            f"{path}: the transcoder's input was scaled, and the file does not say how its output "
            "was; fold the scales into the weights first"
        )
    if given.input_norm is None or not given.input_norm > 0:
        raise ValueError(
            f"{path}: the input was scaled to mean norm sqrt(d_in), which is not in the weights; "
            f"give `input_norm`, the mean norm of the inputs in training, got {given.input_norm}"
        )
    return True
