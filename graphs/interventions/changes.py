"""What can be done to nodes: ablate, steer, swap. Descriptions only; nothing here runs a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from attribution.nodes import Node
from graphs.interventions.naming import parse_nodes

__all__ = ["Ablation", "Change", "Group", "Steering", "ablate", "as_group", "steer", "swap"]

Ablation = Literal["zero", "mean", "corrupted"]
"""What an ablated node carries: nothing, its mean over other prompts, its value on another one."""
Steering = Literal["add", "set", "multiply"]
Group = Node | str | Sequence[Node | str]
"""A node, a name (`parse_nodes`), or several: a supernode is the list of its nodes."""


@dataclass(frozen=True)
class Change:
    """One change of one group of nodes; `ablate`, `steer` and `swap` make them.

    Attributes:
        nodes: whose values change; position -1 stands for all positions.
        how: what happens to them.
        value: of steering, in the units of the activation (a factor, for `multiply`).
        partners: for `exchange`: whose values the nodes get, and which get theirs, one a node.
    """

    nodes: tuple[Node, ...]
    how: Ablation | Steering | Literal["exchange"]
    value: float = 0.0
    partners: tuple[Node, ...] = ()


def as_group(group: Group) -> tuple[Node, ...]:
    """The nodes of a group.

    Raises:
        ValueError: if it is empty, or a name names no node.

    Example:
        >>> [node.id for node in as_group(["token@1", "mlp0.3@2,mlp1.4@2"])]
        ['token@1', 'mlp0.3@2', 'mlp1.4@2']
    """
    parts = [group] if isinstance(group, Node | str) else list(group)
    if not parts:
        raise ValueError("a group needs at least one node, got none")
    found = (parse_nodes(part) if isinstance(part, str) else (part,) for part in parts)
    return tuple(node for nodes in found for node in nodes)


def ablate(group: Group, value: Ablation = "zero") -> Change:
    """Take a group's values away.

    Args:
        group: features, errors, unreplaced MLPs and tokens.
        value: what they carry then; `mean` and `corrupted` need other prompts (`intervene`).
    """
    return Change(as_group(group), value)


def steer(group: Group, how: Steering, value: float) -> Change:
    """Add to, set or multiply activations.

    Args:
        group: features; `multiply` takes errors, unreplaced MLPs and tokens too.
        how: what to do with each.
        value: in the units of the activation, or a factor.

    Raises:
        ValueError: if a vector should be set to a number, or a number added to it.
    """
    nodes = as_group(group)
    vectors = [node.id for node in nodes if node.kind != "feature"]
    if how != "multiply" and vectors:
        raise ValueError(
            f"{vectors[0]} is a vector and not one number, so it can be multiplied or ablated but "
            f"not steered by {how!r}; steer features"
        )
    return Change(nodes, how, value)


def swap(group: Group, partners: Group | None = None) -> Change:
    """Give nodes other values that the model itself made.

    Args:
        group: whose values change.
        partners: as many nodes: each pair trades the values it has on this prompt, whatever else
            changes. None takes each node's value on another prompt, as `ablate(group, "corrupted")`
            does.

    Raises:
        ValueError: if the numbers of nodes differ, or a pair is of two kinds or not alike in
            having one position or all.
    """
    nodes = as_group(group)
    if partners is None:
        return Change(nodes, "corrupted")
    others = as_group(partners)
    if len(others) != len(nodes):
        raise ValueError(
            f"want one partner a node, got {len(nodes)} nodes and {len(others)} partners"
        )
    for node, other in zip(nodes, others, strict=True):
        if node.kind != other.kind or (node.pos < 0) != (other.pos < 0):
            raise ValueError(
                f"{node.id} and {other.id} cannot trade values: want two nodes of one kind, both "
                "at one position or both at all (-1)"
            )
    return Change(nodes, "exchange", partners=others)
