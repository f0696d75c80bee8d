"""Where dictionaries sit: names such as `mlp.2`, and the sites they read and write.

A key names what is trained as one: a dictionary by its own name, or a cross-layer transcoder by its
first and last layer, `cross_layer.0-5`.
"""

from collections.abc import Sequence

from circuits.sites import Site
from circuits.training.config import TrainingConfig

__all__ = ["CROSS_LAYER", "dictionary_names", "dictionary_sites", "keys_of", "kind_of"]

CROSS_LAYER = "cross_layer"


def kind_of(key: str) -> str:
    """The kind of site in a name: `mlp` of `mlp.2`."""
    return key.rpartition(".")[0]


def dictionary_names(key: str) -> list[str]:
    """Names of the dictionaries that are trained as `key`, from the lowest layer.

    Example:
        >>> dictionary_names("cross_layer.0-2"), dictionary_names("resid_post.1")
        (['mlp.0', 'mlp.1', 'mlp.2'], ['resid_post.1'])
    """
    if kind_of(key) != CROSS_LAYER:
        return [key]
    first, last = map(int, key.rpartition(".")[2].split("-"))
    return [f"mlp.{layer}" for layer in range(first, last + 1)]


def dictionary_sites(key: str) -> tuple[Site, Site]:
    """Where the dictionary called `key` (`mlp.2`, `resid_post.0`) reads and writes."""
    site, _, layer = key.rpartition(".")
    if site == "mlp":
        return Site("mlp_in", int(layer)), Site("mlp_raw_out", int(layer))
    return Site(site, int(layer)), Site(site, int(layer))  # type: ignore[arg-type]


def keys_of(config: TrainingConfig, model: str, n_layers: int) -> list[str]:
    """Keys of what a run trains.

    Args:
        model: name of the model, for messages.
        n_layers: its blocks.

    Raises:
        ValueError: if the model has no such layer.
    """
    layers: Sequence[int] = range(n_layers) if config.layers is None else config.layers
    outside = [layer for layer in layers if not 0 <= layer < n_layers]
    if outside:
        raise ValueError(
            f"{model!r} has layers 0 to {n_layers - 1}, got {outside} among the layers"
        )
    if config.cross_layer:
        return [f"{CROSS_LAYER}.{min(layers)}-{max(layers)}"]
    return list(dict.fromkeys(f"{site}.{layer}" for site in config.sites for layer in layers))
