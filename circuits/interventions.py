"""Feature interventions: ablate, set, scale or add, at chosen positions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from circuits.sites import Site

__all__ = ["Intervention", "intervene"]


@dataclass(frozen=True)
class Intervention:
    """Change one feature's activation, and with it all that the feature writes.

    Args:
        site: where the dictionary writes (see `SplicedModel.placements`), or its name (`mlp.2`).
        feature: index in the dictionary.
        kind: `ablate` (to 0), `set` (to `value`), `scale` (by `value`) or `add` (`value`).
        value: in the units of the activation; ignored by `ablate`.
        positions: token positions, or None for all.
    """

    site: Site | str
    feature: int
    kind: Literal["ablate", "set", "scale", "add"] = "ablate"
    value: float = 0.0
    positions: Sequence[int] | None = None


def intervene(
    a: Float[Tensor, "batch pos feature"], interventions: Iterable[Intervention]
) -> Float[Tensor, "batch pos feature"]:
    """Activations after `interventions`, in their order; `a` is untouched.

    Raises:
        ValueError: if a feature or position does not exist, or the kind is unknown.
    """
    a = a.clone()
    n_pos, n_features = a.shape[-2:]
    for change in interventions:
        positions = list(range(n_pos)) if change.positions is None else list(change.positions)
        if not 0 <= change.feature < n_features:
            raise ValueError(f"feature must be in [0, {n_features}), got {change.feature}")
        if any(not -n_pos <= p < n_pos for p in positions):
            raise ValueError(f"positions must be in [-{n_pos}, {n_pos}), got {positions}")
        a[:, positions, change.feature] = _changed(a[:, positions, change.feature], change)
    return a


def _changed(
    column: Float[Tensor, "batch pos"], change: Intervention
) -> Float[Tensor, "batch pos"]:
    match change.kind:
        case "ablate":
            return column.new_zeros(column.shape)
        case "set":
            return column.new_full(column.shape, change.value)
        case "scale":
            return column * change.value
        case "add":
            return column + change.value
        case _:
            raise ValueError(f"kind must be ablate, set, scale or add, got {change.kind!r}")
