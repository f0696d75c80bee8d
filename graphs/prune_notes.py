"""What every pruning algorithm writes into its result, so that the loss is never forgotten."""

from graphs.circuit_graph import CircuitGraph
from graphs.influence import unexplained_share

__all__ = ["note_pruning"]


def note_pruning(before: CircuitGraph, after: CircuitGraph, by: str) -> CircuitGraph:
    """Note on `after` how it was pruned, from what size, and how much was unexplained before.

    Args:
        before: the graph given to the algorithm; what it says of an earlier pruning is kept.
        after: what the algorithm kept.
        by: the algorithm and its options.

    Returns:
        `after` with the notes `pruned_by`, `pruned_from` and `unexplained_before` (a percentage).
    """
    earlier = before.metadata.notes
    size = f"{before.n_nodes:,} nodes and {before.n_edges:,} edges"
    return after.with_notes(
        pruned_by=f"{earlier['pruned_by']}, then {by}" if "pruned_by" in earlier else by,
        pruned_from=earlier.get("pruned_from", size),
        unexplained_before=earlier.get("unexplained_before", f"{unexplained_share(before):.1%}"),
    )
