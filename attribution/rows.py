"""Which rows are swept together: targets at one position, from the last computed to the first.

Input-dependent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from attribution.columns import Columns
from attribution.frozen import working_dtype
from attribution.targets import READABLE, Readout
from circuits.sites import Site
from circuits.spliced import SplicedModel

__all__ = ["INSIDE", "Rows", "TargetGroup", "sweeps"]

INSIDE = ("attn_out", "mlp_out")
"""Targets that read inside a block, before the residual stream: each site takes its own sweep."""


@dataclass(frozen=True)
class TargetGroup:
    """Targets that read the same place at the same position.

    Attributes:
        site: where they read.
        rows: their rows in the trace.
        vectors: what they read there.
        constants: what is added to that.
    """

    site: Site
    rows: Int[Tensor, " n_targets"]
    vectors: Float[Tensor, "n_targets d_model"]
    constants: Float[Tensor, " n_targets"]


@dataclass(frozen=True)
class Rows:
    """Targets to be explained: outputs, and active features by their columns.

    Attributes:
        outputs: asked-for readouts; row `i` is `outputs[i]`.
        feature_row: the row of each column's feature; -1 where it has none (yet).
    """

    outputs: Sequence[Readout]
    feature_row: Int[Tensor, " source"]


def sweeps(
    spliced: SplicedModel, columns: Columns, rows: Rows, n_pos: int, memory: int
) -> Iterator[tuple[int, list[TargetGroup]]]:
    """Positions with groups of targets to sweep together, few enough for the memory.

    Args:
        spliced: the spliced model.
        columns: the layout of the sources.
        rows: what to explain.
        n_pos: length of the prompt.
        memory: bytes for the gradients of one sweep.
    """
    model = spliced.model
    per_position = model.d_model * working_dtype(model.dtype).itemsize
    for pos in range(n_pos):
        groups = [g for g in _groups(spliced, columns, rows, pos) if len(g.rows)]
        groups.sort(key=lambda group: _moment(group.site), reverse=True)
        room = max(1, memory // (per_position * (pos + 1)))
        yield from ((pos, together) for together in _fill(groups, room))


def _moment(site: Site) -> tuple[int, int]:
    """Sorts the places that targets read, from the first computed to the last."""
    if site.kind == "unembed_in":
        return (1 << 30, 0)
    return (site.layer, READABLE.index(site.kind))


def _groups(spliced: SplicedModel, columns: Columns, rows: Rows, pos: int) -> Iterator[TargetGroup]:
    for i, readout in enumerate(rows.outputs):
        if readout.pos == pos:
            row, vector = rows.feature_row.new_tensor([i]), readout.vector[None]
            constant = vector.new_tensor([readout.constant])
            yield TargetGroup(readout.site, row, vector, constant)
    for write, active in columns.features.items():
        here = active.at(pos)
        found = rows.feature_row[active.first_column :][here]
        wanted = found >= 0
        placement, features = spliced.placements[write], active.features[here][wanted]
        vectors = placement.dictionary.W_enc[:, features].T
        constants = placement.dictionary.b_enc[features]
        yield TargetGroup(placement.read, found[wanted], vectors, constants)


def _fill(groups: Sequence[TargetGroup], room: int) -> Iterator[list[TargetGroup]]:
    """Sweeps of at most `room` targets; those that read inside a block go alone."""
    inside = [group for group in groups if group.site.kind in INSIDE]
    together: list[TargetGroup] = []
    free = room
    for group in (g for g in groups if g.site.kind not in INSIDE):
        start = 0
        while start < len(group.rows):
            end = min(len(group.rows), start + free)
            together.append(_part(group, start, end))
            free -= end - start
            start = end
            if not free:
                yield together
                together, free = [], room
    if together:
        yield together
    for group in inside:
        for start in range(0, len(group.rows), room):
            yield [_part(group, start, start + room)]


def _part(group: TargetGroup, start: int, end: int) -> TargetGroup:
    part = slice(start, end)
    return TargetGroup(group.site, group.rows[part], group.vectors[part], group.constants[part])
