"""From the names of nodes to nodes, at one position or at all of them.

A node that stands for all positions has position -1, as biases have.
"""

import difflib
import re

from attribution.nodes import Node, NodeTable
from circuits.sites import DICTIONARY_SITES

__all__ = ["find_nodes", "parse_nodes"]

_SITE = "|".join(("mlp", *DICTIONARY_SITES))
_AT = r"(?:@(?P<pos>\d+))?"
_FEATURE = re.compile(rf"(?P<site>{_SITE})\.?(?P<layer>\d+)\.(?P<feature>\d+){_AT}")
_VECTOR = re.compile(rf"(?P<kind>error|sublayer)\.(?P<site>{_SITE})\.?(?P<layer>\d+){_AT}")
_TOKEN = re.compile(rf"token{_AT}")
_FORMS = (
    "mlp2.345@8 (a feature at a position), mlp.2.345 (it at all positions), error.mlp2@8, "
    "sublayer.mlp1@8 or token@8, with commas between the nodes of a group"
)


def parse_nodes(text: str) -> tuple[Node, ...]:
    """The nodes that `text` names: ids, or ids without their position, with commas between.

    Raises:
        ValueError: if a name is no name of a node that can be changed.

    Example:
        >>> [(node.id, node.pos) for node in parse_nodes("mlp2.345@8, mlp.1.7")]
        [('mlp2.345@8', 8), ('mlp1.7@-1', -1)]
    """
    return tuple(_parse_one(name.strip()) for name in text.split(","))


def find_nodes(table: NodeTable, text: str) -> tuple[Node, ...]:
    """The nodes of `table` that `text` names; a name without a position finds all positions.

    Raises:
        ValueError: if a name is malformed, or no node of the table has it.
    """
    found: list[Node] = []
    for wanted in parse_nodes(text):
        where = {"kind": wanted.kind, "layer": wanted.layer, "site": wanted.site}
        if wanted.kind == "feature":
            where["feature"] = wanted.feature
        if wanted.pos >= 0:
            where["pos"] = wanted.pos
        rows = table.where(**where)
        if not rows:
            raise ValueError(_not_in(table, wanted))
        found += [table[row] for row in rows]
    return tuple(found)


def _parse_one(name: str) -> Node:
    if found := _TOKEN.fullmatch(name):
        where = {"kind": "token", "layer": -1, "site": "embed"}
    elif found := _FEATURE.fullmatch(name) or _VECTOR.fullmatch(name):
        where = {"kind": "feature"} | found.groupdict()
    else:
        raise ValueError(f"no node that can be changed is called {name!r}; want {_FORMS}")
    return Node.model_validate(where | {"pos": -1 if found["pos"] is None else found["pos"]})


def _not_in(table: NodeTable, wanted: Node) -> str:
    name = wanted.id.removesuffix("@-1")
    near = difflib.get_close_matches(name, [node.id for node in table], n=5, cutoff=0.3)
    nearest = f"; the nearest are {', '.join(near)}" if near else ""
    return f"none of the graph's {len(table)} nodes is called {name!r}{nearest}"
