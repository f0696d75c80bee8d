"""What a caller may add to a page, checked: groups, and faithfulness at stops of the threshold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from attribution.nodes import NodeTable

__all__ = ["HasInterval", "check_known", "group_rows", "stop_records"]


@runtime_checkable
class HasInterval(Protocol):
    """A number with its interval, such as an `Estimate` of `graphs.proof`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def check_known(what: str, ids: Iterable[str], known: set[str]) -> None:
    """Refuse ids that no node has.

    Raises:
        ValueError: with the first few of them.
    """
    unknown = sorted(set(ids) - known)
    if unknown:
        raise ValueError(
            f"{what} must name nodes of the graph, got {unknown[:5]}; list its ids with "
            "[node.id for node in graph.nodes]"
        )


def group_rows(
    groups: Mapping[str, Sequence[str]], drawn: NodeTable, known: set[str]
) -> list[dict[str, object]]:
    """Name and drawn rows of every group, in the order given; one with none drawn is left out.

    Args:
        groups: name -> node ids.
        drawn: the nodes on the page.
        known: ids of all nodes of the graph, drawn or not.

    Raises:
        ValueError: if a node is in two groups, or no node of the graph.
    """
    owner: dict[str, str] = {}
    row_of = {node.id: row for row, node in enumerate(drawn)}
    found: list[dict[str, object]] = []
    for name, ids in groups.items():
        check_known(f"group {name!r}", ids, known)
        for node_id in ids:
            if owner.setdefault(node_id, name) != name:
                raise ValueError(
                    f"a node can be in one group only, got {node_id!r} in {owner[node_id]!r} and "
                    f"{name!r}; take it out of one"
                )
        rows = sorted({row_of[node_id] for node_id in ids if node_id in row_of})
        if rows:
            found.append({"name": name, "rows": rows})
    return found


def stop_records(faithfulness_at: Mapping[float, HasInterval]) -> list[dict[str, float]]:
    """Stops of the threshold with faithfulness and its interval, the smallest share first.

    Raises:
        ValueError: if there is none, or a threshold is no share in (0, 1].
    """
    if not faithfulness_at:
        raise ValueError("faithfulness_at must hold at least one stop; leave it out for a slider")
    wrong = [threshold for threshold in faithfulness_at if not 0 < threshold <= 1]
    if wrong:
        raise ValueError(
            f"stops must be shares of influence in (0, 1], got {wrong[0]}; a share of 80 % is 0.8"
        )
    return [
        {"share": float(share), "value": at.value, "low": at.low, "high": at.high}
        for share, at in sorted(faithfulness_at.items())
    ]
