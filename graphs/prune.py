"""One door to every pruning algorithm: `prune(graph, method=...)`."""

from collections.abc import Callable, Mapping

from graphs.circuit_graph import CircuitGraph
from graphs.prune_acdc import prune_acdc
from graphs.prune_acdc_edges import prune_acdc_edges
from graphs.prune_acdc_live_edges import prune_acdc_live_edges
from graphs.prune_attribution import prune_attribution
from graphs.prune_influence import prune_influence
from graphs.prune_paths import prune_paths

__all__ = ["METHODS", "prune"]

METHODS: Mapping[str, Callable[..., CircuitGraph]] = {
    "acdc": prune_acdc,
    "acdc-edges": prune_acdc_edges,
    "acdc-edges-live": prune_acdc_live_edges,
    "attribution": prune_attribution,
    "influence": prune_influence,
    "paths": prune_paths,
}
"""Every method: a graph and keyword options in, a smaller graph out. One algorithm per file."""


def prune(graph: CircuitGraph, method: str = "influence", **options: object) -> CircuitGraph:
    """Prune `graph` with the named method.

    Args:
        graph: any circuit graph; it is untouched.
        method: a key of `METHODS`.
        options: keyword arguments of that method, such as `node_threshold`.

    Raises:
        ValueError: if there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {method!r}; choose one")
    return METHODS[method](graph, **options)
