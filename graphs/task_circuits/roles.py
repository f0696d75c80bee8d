"""Positions by role: what a token is for (subject, year start), not how many come before it.

Positions without a role fall into gaps named by the roles around them, so every position has
exactly one name, and a graph whose positions are names loses nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from attribution.nodes import Node, NodeTable
from graphs.circuit_graph import CircuitGraph

__all__ = ["collapse", "name_positions", "nodes_on", "order_columns"]


def name_positions(roles: Mapping[str, int], n_pos: int) -> tuple[str, ...]:
    """One name a position: its role, or the gap it lies in.

    Roles at the same position share a name, such as `s1=subject`, in alphabetical order.

    Args:
        roles: name -> position.
        n_pos: tokens of the prompt.

    Raises:
        ValueError: if there is no role, or one lies outside of the prompt.

    Example:
        >>> name_positions({"s1": 1, "end": 4}, 5)
        ('before s1', 's1', 'between s1 and end', 'between s1 and end', 'end')
    """
    outside = {role: pos for role, pos in roles.items() if not 0 <= pos < n_pos}
    if not roles or outside:
        raise ValueError(
            f"want at least one role, each at a position in [0, {n_pos}), got {dict(roles)}; "
            "give the roles of this prompt"
        )
    at: dict[int, list[str]] = defaultdict(list)
    for role, pos in roles.items():
        at[pos].append(role)
    named = {pos: "=".join(sorted(same)) for pos, same in sorted(at.items())}
    places = list(named)
    names = []
    for pos in range(n_pos):
        before = [named[place] for place in places if place < pos]
        after = [named[place] for place in places if place > pos]
        if pos in named:
            names.append(named[pos])
        elif before and after:
            names.append(f"between {before[-1]} and {after[0]}")
        else:
            names.append(f"before {after[0]}" if after else f"after {before[-1]}")
    return tuple(names)


def order_columns(prompts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Every name of any prompt once, from left to right.

    Names are ranked by where they lie on average, as a share of the prompt, over the prompts that
    have them; ties in order of first appearance.

    Example:
        >>> order_columns([("io", "s", "end"), ("s", "x", "io", "x", "end")])
        ('io', 's', 'x', 'end')
    """
    places: dict[str, list[float]] = defaultdict(list)
    for names in prompts:
        own: dict[str, list[int]] = defaultdict(list)
        for pos, name in enumerate(names):
            own[name].append(pos)
        for name, positions in own.items():
            places[name].append(sum(positions) / len(positions) / max(1, len(names) - 1))
    return tuple(sorted(places, key=lambda name: sum(places[name]) / len(places[name])))


def collapse(graph: CircuitGraph, names: Sequence[str], columns: Sequence[str]) -> CircuitGraph:
    """The graph of one prompt, or of aligned ones, with names as positions.

        edge[t, s] = sum over p named as t, q named as s of edge[t at p, s at q]

    So a row adds up to what the rows of its positions add up to, together. Where a feature is
    active at two positions of one name, its activation is their sum.

    Args:
        graph: its positions are tokens.
        names: one a token, from `name_positions`.
        columns: all names of the task, in the order that the result's positions have.

    Returns:
        A graph whose `metadata.tokens` are `columns`, with the note `positions = roles`. Tokens
        that differ within a name lose their vocabulary id. Nodes of all positions (biases) stay.

    Raises:
        ValueError: if there is not one name a token, or a name is not a column.
    """
    if len(names) != len(graph.metadata.tokens) or not set(names) <= set(columns):
        raise ValueError(
            f"want one name for each of the {len(graph.metadata.tokens)} tokens, each of "
            f"{list(columns)}; got {list(names)}"
        )
    column = {name: place for place, name in enumerate(columns)}
    moved = [_at(node, column[names[node.pos]]) if node.pos >= 0 else node for node in graph.nodes]
    same: dict[str, list[Node]] = defaultdict(list)
    for node in moved:
        same[node.id].append(node)
    nodes = NodeTable([_sum_of(records) for records in same.values()])
    row = torch.tensor([nodes.row(node.id) for node in moved])
    pairs = row[graph.edge_target] * len(nodes) + row[graph.edge_source]
    key, edge = pairs.unique(return_inverse=True)
    total = torch.zeros(len(key), dtype=torch.float64)
    total = total.index_add(0, edge, graph.edge_attribution.double())
    notes = {name: text for name, text in graph.metadata.notes.items() if name != "roles"}
    notes["positions"] = "roles"
    return CircuitGraph(
        nodes=nodes,
        edge_target=key // len(nodes),
        edge_source=key % len(nodes),
        edge_attribution=total.to(graph.edge_attribution.dtype),
        metadata=graph.metadata.model_copy(update={"tokens": tuple(columns), "notes": notes}),
    )


def nodes_on(
    nodes: Sequence[Node], columns: Sequence[str], names: Sequence[str]
) -> tuple[NodeTable, Int[Tensor, " node"]]:
    """From nodes by role back to the nodes of one prompt.

    A node of a gap is there at each of its positions; one whose role this prompt lacks is nowhere.

    Args:
        nodes: their positions are columns.
        columns: the names of the columns.
        names: the prompt's, one a position.

    Returns:
        The prompt's nodes (vocabulary ids and activations left out), and which of `nodes` each
        comes from.

    Raises:
        ValueError: if a node's position is no column.
    """
    wrong = [node.id for node in nodes if node.pos >= len(columns)]
    if wrong:
        raise ValueError(
            f"positions of nodes by role must be below the number of columns, {len(columns)}, got "
            f"{wrong[0]}; give the columns that the role graph was made with"
        )
    positions: dict[str, list[int]] = defaultdict(list)
    for pos, name in enumerate(names):
        positions[name].append(pos)
    found, origin = [], []
    for row, node in enumerate(nodes):
        places = positions[columns[node.pos]] if node.pos >= 0 else [node.pos]
        if node.kind == "output":
            places = places[-1:]
        found += [_bare(node, pos) for pos in places]
        origin += [row] * len(places)
    return NodeTable(found), torch.tensor(origin, dtype=torch.long)


def _at(node: Node, pos: int) -> Node:
    return node.model_copy(update={"pos": pos})


def _bare(node: Node, pos: int) -> Node:
    feature = node.feature if node.kind == "feature" else -1
    return node.model_copy(update={"pos": pos, "feature": feature, "activation": 0.0})


def _sum_of(records: list[Node]) -> Node:
    activation = sum(node.activation for node in records)
    feature = records[0].feature if len({node.feature for node in records}) == 1 else -1
    return records[0].model_copy(update={"activation": activation, "feature": feature})
