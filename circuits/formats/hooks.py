"""Hook names: where a dictionary sits, and which norms lie between it and the residual stream.

The names are transformer-lens' for blocks (`blocks.3.ln2.hook_normalized`), which SAELens and
circuit-tracer use too.
"""

import re
from typing import Literal

from circuits.conventions import NATIVE, Convention
from circuits.sites import DICTIONARY_SITES

__all__ = ["READS", "WRITES", "sae_site", "split_hook", "transcoder_convention"]

Norm = Literal["gain and bias", "bare", "none"]
Output = Literal["before post-norm", "after post-norm"]

READS: dict[str, Norm] = {
    "ln2.hook_normalized": "bare",  # before gain and bias, whether or not they are folded away
    "mlp.hook_in": "gain and bias",
    "hook_resid_mid": "none",
    "hook_mlp_in": "none",  # a copy of the residual stream, before the norm
}
"""What a transcoder that reads a hook expects of the norm before the MLP."""

WRITES: dict[str, Output] = {
    "mlp.hook_out": "before post-norm",
    "hook_mlp_out": "after post-norm",
}
"""On which side of the MLP's post-norm a hook lies that a transcoder writes to."""

_NO_SAE = {
    "attn.hook_z": "reads the heads' outputs before W_O (n_heads * d_head wide), which is not what "
    "attention adds to the residual stream; here attention SAEs read attn_out",
    "ln2.hook_normalized": "reads the input of an MLP; say `site='mlp'` if it is a transcoder that "
    "was saved as an SAE",
    "hook_resid_mid": "reads the residual stream between attention and MLP, which has no site here",
    "mlp.hook_out": "reads the MLP's output before any post-norm; say `site='mlp_out'` if the "
    "model has no post-norm",
}


def split_hook(name: str) -> tuple[int, str]:
    """Layer and place of a hook.

    Raises:
        ValueError: if it is not the name of a hook in a block.

    Example:
        >>> split_hook("blocks.3.ln2.hook_normalized")
        (3, 'ln2.hook_normalized')
    """
    found = re.fullmatch(r"blocks\.(\d{1,4})\.([\w.]+)", name)
    if found is None:
        raise ValueError(
            f"hook {name!r} is not of the form blocks.LAYER.PLACE; give `site` and `layer` if you "
            "know what it reads"
        )
    return int(found[1]), found[2]


def sae_site(place: str) -> str:
    """The site of an SAE at a place in a block.

    Raises:
        ValueError: if an SAE cannot sit there, with the reason.
    """
    site = place.removeprefix("hook_")
    if site in DICTIONARY_SITES:
        return site
    reason = _NO_SAE.get(place, "is none of the activations that an SAE can sit at here")
    raise ValueError(f"an SAE at {place!r} {reason}; want one of {DICTIONARY_SITES}")


def transcoder_convention(reads: str, writes: str) -> Convention:
    """What a transcoder between two places in a block expects and predicts.

    Raises:
        ValueError: if it is no transcoder of an MLP.
    """
    if reads not in READS or writes not in WRITES:
        raise ValueError(
            f"a transcoder from {reads!r} to {writes!r}; want one that reads {sorted(READS)} and "
            f"writes {sorted(WRITES)}"
        )
    return NATIVE.model_copy(update={"norm": READS[reads], "output": WRITES[writes]})
