"""How other programs spell what a node is: one number for layer and feature, a layer's name.

Input-invariant: names alone.
"""

from math import isqrt

__all__ = ["cantor_pair", "cantor_unpair"]


def cantor_pair(x: int, y: int) -> int:
    """One number for two: `(x + y)(x + y + 1) / 2 + y`, Cantor's pairing.

    Args:
        x: the layer; not negative.
        y: the feature's index in its dictionary; not negative.

    Example:
        >>> cantor_pair(2, 345), cantor_unpair(60723)
        (60723, (2, 345))
    """
    if x < 0 or y < 0:
        raise ValueError(f"a pair of numbers that are not negative is wanted, got {x} and {y}")
    return (x + y) * (x + y + 1) // 2 + y


def cantor_unpair(number: int) -> tuple[int, int]:
    """The two numbers that `cantor_pair` made one of; exact for numbers of any size."""
    if number < 0:
        raise ValueError(f"a number that is not negative is wanted, got {number}")
    diagonal = (isqrt(8 * number + 1) - 1) // 2
    y = number - diagonal * (diagonal + 1) // 2
    return diagonal - y, y
