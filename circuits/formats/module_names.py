"""Names of Hugging Face modules, as places of dictionaries."""

import re

__all__ = ["place_of_module"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(?P<layer>\d+)(?:\.(?P<part>.+))?$")
_EMBEDDINGS = ("embed_tokens", "embed_in")
_PARTS = {
    "mlp": "mlp_out",
    "feed_forward": "mlp_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "attention": "attn_out",
}


def place_of_module(name: str, reads: str) -> tuple[str, int] | None:
    """Where a dictionary sits that was trained on a module of a Hugging Face model.

    Args:
        name: such as `model.layers.3.mlp` or `transformer.h.3`.
        reads: `out` for an SAE on the module's output, `in` for one on its input, `both` for a
            transcoder from its input to its output.

    Returns:
        Site and layer, None for a place that no dictionary of ours can sit at: the inside of an
        MLP, its normalised input, or a transcoder of something that is no MLP.

    Example:
        >>> place_of_module("gpt_neox.layers.3.mlp", "both"), place_of_module("h.3", "out")
        (('mlp', 3), ('resid_post', 3))
    """
    if name.rpartition(".")[2] in _EMBEDDINGS and reads == "out":
        return "resid_pre", 0
    found = _BLOCK.search(name)
    if found is None:
        return None
    layer, part = int(found["layer"]), found["part"]
    if part is None:
        site = {"out": "resid_post", "in": "resid_pre"}.get(reads)
    elif reads == "out":
        site = _PARTS.get(part)
    else:
        site = "mlp" if reads == "both" and _PARTS.get(part) == "mlp_out" else None
    return None if site is None else (site, layer)
