"""Links whose end is an id that two nodes share: which of the two is meant.

circuit-tracer up to 0.5.0 calls the error of layer l at position p `0_l_p`, and a feature l of
layer 0 there alike. An error is fed by nothing and feeds later layers only; and its writer lists
the links of a target in the order of the nodes. Where that leaves both, the file does not say.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from attribution.nodes import Node

__all__ = ["link_ends"]


def link_ends(
    links: Sequence[tuple[str, str]],
    called: Mapping[str, Sequence[int]],
    nodes: Sequence[Node],
    origin: str,
) -> list[tuple[int, int]]:
    """Target and source row of every link.

    Args:
        links: source and target id of each, in the order of the file.
        called: id -> rows of the nodes of that name.
        nodes: in the order of the file.
        origin: the file's name, for error messages.

    Raises:
        ValueError: if an end is no node, or could be either of two.
    """
    targets = [_target(link, called, nodes, origin) for link in links]
    of_target: dict[int, list[int]] = defaultdict(list)
    for place, target in enumerate(targets):
        of_target[target].append(place)
    sources = [
        _candidates(link, called, nodes[target], nodes, origin)
        for link, target in zip(links, targets, strict=True)
    ]
    for places in of_target.values():
        listed = [sources[place] for place in places]
        for place, rows in zip(places, _in_order(listed), strict=True):
            if len(rows) > 1:
                source, target = links[place]
                raise ValueError(
                    f"{origin}: the link {source} -> {target} could come from "
                    f"{' or '.join(nodes[row].id for row in rows)}, which share an id; write the "
                    "file again with ids of their own"
                )
            sources[place] = rows
    return [(target, rows[0]) for target, rows in zip(targets, sources, strict=True)]


def _target(
    link: tuple[str, str],
    called: Mapping[str, Sequence[int]],
    nodes: Sequence[Node],
    origin: str,
) -> int:
    rows = _rows(link, link[1], called, origin)
    fed = [row for row in rows if nodes[row].kind != "error"]
    return fed[0] if len(rows) > 1 and len(fed) == 1 else rows[0]


def _candidates(
    link: tuple[str, str],
    called: Mapping[str, Sequence[int]],
    target: Node,
    nodes: Sequence[Node],
    origin: str,
) -> list[int]:
    rows = _rows(link, link[0], called, origin)
    before = [row for row in rows if nodes[row].layer < target.layer]
    return before if len(rows) > 1 and before else rows


def _rows(
    link: tuple[str, str], end: str, called: Mapping[str, Sequence[int]], origin: str
) -> list[int]:
    if end not in called:
        raise ValueError(
            f"{origin}: the link {link[0]} -> {link[1]} has an end that is no node: {end!r}; add "
            "the node or leave out the link"
        )
    return list(called[end])


def _in_order(sources: Sequence[Sequence[int]]) -> list[list[int]]:
    """The candidates that are left if the links of one target follow the order of the nodes.

    Where those that are sure do not, the order says nothing.
    """
    sure = [rows[0] for rows in sources if len(rows) == 1]
    if len(sure) == len(sources) or any(a >= b for a, b in pairwise(sure)):
        return [list(rows) for rows in sources]
    low, least = -1, []
    for rows in sources:
        low = next((row for row in sorted(rows) if row > low), low)
        least.append(low)
    high, most = len(sources) + max(max(rows) for rows in sources), []
    for rows in reversed(sources):
        high = next((row for row in sorted(rows, reverse=True) if row < high), high)
        most.append(high)
    bounds = zip(sources, least, reversed(most), strict=True)
    return [[row for row in rows if low <= row <= high] or list(rows) for rows, low, high in bounds]
