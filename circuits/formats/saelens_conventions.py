"""How a SAELens dictionary was trained, from its config: the norm it reads, the model, the rows."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from circuits.conventions import NATIVE, Convention
from circuits.formats.hooks import split_hook, transcoder_convention

__all__ = ["convention_of", "hook_of"]

_UNPROCESSED = (3, 19, 2)
"""The version (pull request 279) since which SAELens trains on unprocessed models: before it, on
those of `HookedTransformer.from_pretrained`, whose writing weights are centred."""
_RMS = ("gemma", "llama", "mistral", "mixtral", "qwen", "smollm", "olmo", "phi-3", "yi-")
"""Families with an RMSNorm, whose writing weights transformer-lens never centres."""


def hook_of(found: Mapping[str, Any], key: str) -> str:
    """The name of a hook.

    Raises:
        ValueError: if there is none.
    """
    name = found.get(key)
    if not isinstance(name, str):
        raise ValueError(f"{key} must name a hook, got {name!r}; give `site` and `layer`")
    return name.replace("{layer}", str(found.get("hook_layer")))


def convention_of(found: Mapping[str, Any], transcodes: bool, subtracts: bool) -> Convention:
    """What a dictionary expects and writes.

    Args:
        found: the config as one flat record.
        transcodes: whether it is a transcoder.
        subtracts: whether `b_dec` is subtracted from its input.

    Raises:
        ValueError: if a transcoder's hooks are missing or none of an MLP's.
    """
    bos = _bos(found)
    common = {
        "centred": _centred(found),
        "bos": bos,
        "first_position": _first(found, bos),
        "subtracted": "b_dec" if subtracts else "nothing",
    }
    if not transcodes:
        return NATIVE.model_copy(update=common)
    layer, reads = split_hook(hook_of(found, "hook_name"))
    out_layer, writes = layer, "hook_mlp_out"  # of a transcoder that was saved as an SAE
    if "hook_name_out" in found or "d_out" in found:
        out_layer, writes = split_hook(hook_of(found, "hook_name_out"))
    if out_layer != layer:
        raise ValueError(
            f"the transcoder reads layer {layer} and writes layer {out_layer}; want one layer"
        )
    return transcoder_convention(_reads(found, reads), writes).model_copy(update=common)


def _reads(found: Mapping[str, Any], place: str) -> str:
    """Where a transcoder reads, if the hook's name does not say it all."""
    kwargs = found.get("model_from_pretrained_kwargs")
    if place == "mlp.hook_in" and isinstance(kwargs, dict) and kwargs.get("fold_ln") is True:
        return "ln2.hook_normalized"
    module = found.get("hf_hook_name")
    if place == "hook_mlp_in" and isinstance(module, str) and module.endswith("norm.output"):
        return "mlp.hook_in"
    return place


def _version(found: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the SAELens that trained it, else of the one that wrote it; (0,) if neither is told."""
    said = found.get("sae_lens_training_version") or found.get("sae_lens_version")
    parts = re.match(r"(\d+)\.(\d+)\.(\d+)", str(said))
    return tuple(int(part) for part in parts.groups()) if parts else (0,)


def _centred(found: Mapping[str, Any]) -> bool:
    """Whether the model's writing weights were centred: told, or as SAELens of that time did."""
    model = str(found.get("model_name") or "").lower()
    if any(family in model for family in _RMS):
        return False
    if (found.get("model_class_name") or "HookedTransformer") != "HookedTransformer":
        return False
    kwargs = found.get("model_from_pretrained_kwargs")
    version = _version(found)
    unprocessed = isinstance(kwargs, dict) if version == (0,) else version >= _UNPROCESSED
    told = kwargs.get("center_writing_weights") if isinstance(kwargs, dict) else None
    return not unprocessed if told is None else bool(told)


def _bos(found: Mapping[str, Any]) -> Literal["in front", "none", "unknown"]:
    told = found.get("prepend_bos", True if _version(found) < (6,) else None)
    if told is None:
        return "unknown"
    return "in front" if told else "none"


def _first(found: Mapping[str, Any], bos: str) -> Literal["read", "left out", "unknown"]:
    """Whether the first position was trained on: only later versions could leave it out."""
    positions = found.get("seqpos_slice")
    start = positions[0] if isinstance(positions, list) and positions else None
    skips_special = bool(found.get("exclude_special_tokens")) and bos == "in front"
    if skips_special or (isinstance(start, int) and start > 0):
        return "left out"
    if _version(found) < (6,) or positions is not None:
        return "read"
    return "unknown"
