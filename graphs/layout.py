"""Where the nodes of a circuit figure go: tokens across, layers up, in pixels.

A column is a position (with one more, leftmost, for biases); a band is one site of one layer. The
nodes of one column and band share a cell: those with a text label take a line each, the others
fill a grid below, column by column. Columns and bands grow with their fullest cell, so nodes never
overlap.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from attribution.nodes import Node

__all__ = ["BIAS_COLUMN", "Band", "Layout", "Span", "place_nodes"]

BIAS_COLUMN = -1
_STEP = 21.0  # between neighbours in a cell
_LABEL_CHARACTER = 5.7  # width of a character of a node label
_PAD = 12.0  # between a cell and the edge of its column or band
_EMPTY_BAND = 20.0
_SITES = ("resid_pre", "attn", "resid_mid", "mlp", "resid_post")

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Span:
    """From `start` to `stop` along one axis."""

    start: float
    stop: float

    @property
    def middle(self) -> float:
        """Half way."""
        return (self.start + self.stop) / 2


@dataclass(frozen=True)
class Band:
    """One site of one layer; the site is empty for inputs, outputs and layers without nodes."""

    layer: int
    site: str


@dataclass(frozen=True)
class Layout:
    """Positions of all nodes, and the columns and bands they lie in (all in pixels)."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    columns: dict[int, Span]
    bands: dict[Band, Span]
    width: float
    height: float


def place_nodes(
    nodes: Sequence[Node],
    *,
    n_layers: int,
    column_widths: Sequence[float],
    labels: Mapping[int, str],
    order: Sequence[float],
    min_width: float,
    min_height: float,
) -> Layout:
    """Give every node its own place.

    Args:
        nodes: in any order.
        n_layers: inputs lie below layer 0, outputs above layer `n_layers - 1`.
        column_widths: least width of each position's column, for its token.
        labels: row of a node -> its text, drawn to its right.
        order: one number a node; higher comes first within a cell: on top with a label, on the left
            without. Ties fall to the earlier row.
        min_width: stretch the columns to at least this.
        min_height: stretch the bands to at least this.
    """
    cells = _cells(nodes, n_layers, order, len(column_widths))
    columns = _columns(cells, labels, column_widths, min_width)
    bands = _bands(cells, labels, columns, n_layers, min_height)
    x, y = [0.0] * len(nodes), [0.0] * len(nodes)
    for (column, band), rows in cells.items():
        places = _fill(rows, labels, columns[column])
        middle = bands[band].middle + _cell_height(rows, labels, columns[column]) / 2 - _STEP / 2
        for row, (right, down) in places.items():
            x[row], y[row] = right, middle - down
    width = max(span.stop for span in columns.values())
    height = max(span.stop for span in bands.values())
    return Layout(tuple(x), tuple(y), columns, bands, width, height)


def _cells(
    nodes: Sequence[Node], n_layers: int, order: Sequence[float], n_pos: int
) -> dict[tuple[int, Band], list[int]]:
    """Rows of the nodes in each (column, band), first to last."""
    own = {_own_band(node, n_layers) for node in nodes if node.kind != "bias"}
    cells: dict[tuple[int, Band], list[int]] = defaultdict(list)
    for row in sorted(range(len(nodes)), key=lambda row: (-order[row], row)):
        node = nodes[row]
        band = _own_band(node, n_layers)
        if node.kind == "bias" and band not in own:
            band = min((b for b in own if b.layer == band.layer), key=_band_key, default=band)
        column = node.pos
        if node.kind == "output" and column == BIAS_COLUMN:
            column = n_pos - 1
        cells[column, band].append(row)
    return cells


def _own_band(node: Node, n_layers: int) -> Band:
    inside = 0 <= node.layer < n_layers
    return Band(node.layer, node.site) if inside else Band(node.layer, "")


def _band_key(band: Band) -> tuple[int, int, str]:
    rank = next((i for i, site in enumerate(_SITES) if band.site.startswith(site)), len(_SITES))
    return band.layer, rank, band.site


def _columns(
    cells: Mapping[tuple[int, Band], list[int]],
    labels: Mapping[int, str],
    column_widths: Sequence[float],
    min_width: float,
) -> dict[int, Span]:
    widths = dict(enumerate(column_widths))
    if any(column == BIAS_COLUMN for column, _ in cells):
        widths = {BIAS_COLUMN: 3 * _STEP} | widths
    for (column, _), rows in cells.items():
        widths[column] = max(widths[column], _cell_width(rows, labels) + _PAD)
    slack = max(0.0, min_width - sum(widths.values())) / len(widths)
    return _stack({column: width + slack for column, width in widths.items()})


def _bands(
    cells: Mapping[tuple[int, Band], list[int]],
    labels: Mapping[int, str],
    columns: Mapping[int, Span],
    n_layers: int,
    min_height: float,
) -> dict[Band, Span]:
    used = {band for _, band in cells}
    empty = {Band(layer, "") for layer in {*range(-1, n_layers + 1)} - {b.layer for b in used}}
    heights = dict.fromkeys(sorted(used | empty, key=_band_key), _EMPTY_BAND)
    for (column, band), rows in cells.items():
        height = _cell_height(rows, labels, columns[column]) + _PAD
        heights[band] = max(heights[band], height)
    slack = max(0.0, min_height - sum(heights.values())) / len(heights)
    return _stack({band: height + slack for band, height in heights.items()})


def _stack(sizes: Mapping[_Key, float]) -> dict[_Key, Span]:
    """Lay spans end to end from 0, in the order given."""
    spans, start = {}, 0.0
    for key, size in sizes.items():
        spans[key] = Span(start, start + size)
        start += size
    return spans


def _split(rows: Sequence[int], labels: Mapping[int, str]) -> tuple[list[int], list[int]]:
    return [r for r in rows if r in labels], [r for r in rows if r not in labels]


def _cell_width(rows: Sequence[int], labels: Mapping[int, str]) -> float:
    """Least width: the longest label, or a grid somewhat wider than high."""
    labelled, rest = _split(rows, labels)
    text = max((_STEP + _LABEL_CHARACTER * len(labels[row]) for row in labelled), default=0.0)
    return max(text, _STEP * math.ceil(math.sqrt(1.6 * len(rest))))


def _n_across(column: Span, n_nodes: int) -> int:
    """How many unlabelled nodes lie side by side."""
    fits = int((column.stop - column.start - _PAD + 0.01) // _STEP)
    return max(1, min(fits, math.ceil(math.sqrt(3 * n_nodes))))


def _cell_height(rows: Sequence[int], labels: Mapping[int, str], column: Span) -> float:
    labelled, rest = _split(rows, labels)
    n_lines = math.ceil(len(rest) / _n_across(column, len(rest))) if rest else 0
    return _STEP * (len(labelled) + n_lines)


def _fill(
    rows: Sequence[int], labels: Mapping[int, str], column: Span
) -> dict[int, tuple[float, float]]:
    """Place of each row: x, and how far below the cell's first line."""
    labelled, rest = _split(rows, labels)
    text = max((_LABEL_CHARACTER * len(labels[row]) for row in labelled), default=0.0)
    places = {row: (column.middle - text / 2, i * _STEP) for i, row in enumerate(labelled)}
    if rest:
        n_lines = math.ceil(len(rest) / _n_across(column, len(rest)))
        n_columns = math.ceil(len(rest) / n_lines)
        for i, row in enumerate(rest):
            place, line = divmod(i, n_lines)
            right = column.middle + _STEP * (place - (n_columns - 1) / 2)
            places[row] = (right, (len(labelled) + line) * _STEP)
    return places
