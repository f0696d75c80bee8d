"""Integer keys that rank places, and the best k of each slot when more arrive.

A key holds what it ranks by in its upper half and the place in its lower half, the earlier the
larger, so that all keys of a slot differ and the order of arrival decides nothing.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["EMPTY", "MAX_PLACES", "best", "keys_by_hash", "keys_by_value", "mixed", "place_of"]

EMPTY = -1
MAX_PLACES = 2**32
_LOWER = MAX_PLACES - 1
# Constants of splitmix64 (Steele et al. 2014) as signed 64-bit integers.
_GAMMA, _FIRST, _SECOND = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def keys_by_value(values: Float[Tensor, " n"], places: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Keys that rank by a positive float32, then by place, earlier first.

    Bits of positive floats are ordered as the floats are.
    """
    bits = values.float().view(torch.int32).to(torch.int64)
    return (bits << 32) | (_LOWER - places)


def keys_by_hash(owners: Int[Tensor, " n"], places: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Keys in a random order of places that is another for every owner, and always the same."""
    return (mixed((owners << 32) ^ places) << 32) | (_LOWER - places)


def mixed(x: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """31 well-mixed bits of each 64-bit integer (splitmix64)."""
    x = x + _GAMMA
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return _shifted(x ^ _shifted(x, 31), 33)


def _shifted(x: Int[Tensor, " n"], bits: int) -> Int[Tensor, " n"]:
    """Shift to the right with zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def place_of(keys: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The places in keys, -1 in empty ones.

    Example:
        >>> place_of(keys_by_value(torch.tensor([2.5]), torch.tensor([7])))
        tensor([7])
    """
    return torch.where(keys == EMPTY, -1, _LOWER - (keys & _LOWER))


def best(
    kept: Int[Tensor, "slot k"], slots: Int[Tensor, " n"], keys: Int[Tensor, " n"]
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Which keys that arrive are among the k largest of their slot, and what they replace.

    Args:
        kept: keys so far, in any order within a slot, `EMPTY` where there are fewer.
        slots: the slot of each key that arrives; in any order.
        keys: all different within a slot.

    Returns:
        Slot and entry of what is replaced, and the number of the key that comes there.

    Example:
        >>> kept = torch.tensor([[4, 9], [7, EMPTY], [5, 3]])
        >>> best(kept, torch.tensor([0, 1, 0]), torch.tensor([6, 8, 2]))
        (tensor([0, 1]), tensor([0, 1]), tensor([0, 1]))
    """
    k = kept.shape[1]
    touched, local = slots.unique(return_inverse=True)
    n_old = len(touched) * k
    all_keys = torch.cat([kept[touched].flatten(), keys])
    all_slots = torch.cat([torch.arange(len(touched)).repeat_interleave(k), local])
    order = all_keys.argsort(descending=True)
    order = order[all_slots[order].argsort(stable=True)]
    counts = all_slots.bincount(minlength=len(touched))
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    # Slot after slot, as many old ones leave as new ones come.
    leave = order[(rank >= k) & (order < n_old)]
    come = order[(rank < k) & (order >= n_old)] - n_old
    return touched[leave // k], leave % k, come
