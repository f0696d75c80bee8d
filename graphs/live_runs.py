"""Runs of the spliced model in which features in use are held, each row in its own way.

A row is all clean prompts under one choice of what is kept: kept features, errors and tokens carry
given values, kept unreplaced MLPs are recomputed, everything else in use carries its value on the
other prompts. What the clean prompts do not use is live.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.nodes import NodeTable
from circuits.dictionaries import CrossLayerTranscoder
from circuits.sites import Site
from circuits.spliced import Placement
from circuits.subject import Edit
from graphs.scorer import CircuitRunner, Tally

__all__ = ["HeldRows", "LiveRuns"]


class _Arrived(Exception):
    """Ends a forward pass at the place that was wanted."""


@dataclass(frozen=True)
class HeldRows:
    """What is kept in each row, and what kept features carry.

    Args:
        reads: which nodes each row keeps.
        values: of features in each circuit on each prompt.
        circuit: whose values each row takes.
        start: a layer, and the stream that enters it in each row; None to run from the tokens.
    """

    reads: Bool[Tensor, "row node"]
    values: Float[Tensor, "circuit prompt node"]
    circuit: Int[Tensor, " row"]
    start: tuple[int, Float[Tensor, "row prompt pos d_model"]] | None = None

    def __len__(self) -> int:
        return len(self.reads)

    def part(self, rows: slice) -> "HeldRows":
        """Some of the rows."""
        start = None if self.start is None else (self.start[0], self.start[1][rows])
        return HeldRows(self.reads[rows], self.values, self.circuit[rows], start)


@dataclass(frozen=True)
class _Place:
    """The nodes of one kind at one place: their rows in the node table, positions and features."""

    rows: Int[Tensor, " node"]
    pos: Int[Tensor, " node"]
    feature: Int[Tensor, " node"]


@dataclass(frozen=True, eq=False)
class LiveRuns:
    """Runs rows, some at a time, each as far as it is wanted.

    Args:
        runner: holds the prompts and the values that removed nodes carry.
        nodes: every node in use on them (`LiveEdges.nodes`).
        max_rows: prompts in one forward pass, one row of them at least.
    """

    runner: CircuitRunner = field(repr=False)
    nodes: NodeTable = field(repr=False)
    max_rows: int = 256
    tally: Tally = field(default_factory=Tally)
    """What has been run so far, runs that stopped on the way included."""

    @cached_property
    def can_start(self) -> bool:
        """Whether a run may begin at a layer: no feature below it writes above."""
        placed = self.runner.spliced.placements.values()
        return not any(isinstance(p.dictionary, CrossLayerTranscoder) for p in placed)

    def logits(self, rows: HeldRows) -> Float[Tensor, "row prompt d_vocab"]:
        """Last-position logits."""

        def run(part: HeldRows) -> Tensor:
            edits = self._edits(part) | {Site("unembed_in"): lambda x: x[:, -1:]}
            return self._run(part, edits)[:, -1]

        return self._in_parts(rows, run)

    def features(
        self, write: Site, rows: HeldRows, row: Int[Tensor, " target"], node: Int[Tensor, " target"]
    ) -> Float[Tensor, "target prompt"]:
        """Activations of features of the dictionary placed at `write`, each in one of the rows.

        Args:
            write: where the dictionary is placed.
            rows: to be run.
            row: of each feature.
            node: the features, as rows of the node table.
        """
        placement = self.runner.spliced.placements[write]
        own = self._places["feature", placement.site, write.layer]
        at = torch.searchsorted(own.rows, node)
        x = self.arriving(placement.read, rows)
        n_pos = self.runner.clean.n_pos
        place, which = (row * n_pos + own.pos[at]).unique(return_inverse=True)
        seen = x[place // n_pos, :, place % n_pos]
        return placement.dictionary.encode(seen)[which, :, own.feature[at]]

    def arriving(self, site: Site, rows: HeldRows) -> Float[Tensor, "row prompt pos d_model"]:
        """What arrives at a site; nothing above it is run."""

        def run(part: HeldRows) -> Tensor:
            found: list[Tensor] = []

            def stop(x: Tensor) -> Tensor:
                found.append(x)
                raise _Arrived

            with suppress(_Arrived):
                self._run(part, self._edits(part) | {site: stop}, site.layer + 1)
            return found[0]

        return self._in_parts(rows, run)

    def _in_parts(self, rows: HeldRows, run: Callable[[HeldRows], Tensor]) -> Tensor:
        """What `run` gives on every row, for as many at a time as may be."""
        n_prompts = len(self.runner.clean.tokens)
        size = max(1, self.max_rows // n_prompts)
        starts = range(0, len(rows), size)
        with torch.no_grad():
            parts = [run(rows.part(slice(at, at + size))) for at in starts]
        return torch.cat(parts).unflatten(0, (len(rows), n_prompts))

    def _run(
        self, rows: HeldRows, edits: dict[Site, Edit], n_blocks: int | None = None
    ) -> Float[Tensor, "batch read_pos d_vocab"]:
        """Run rows, as prompts of one batch, and count them; `n_blocks` if they stop there."""
        model, tokens = self.runner.spliced.model, self.runner.clean.tokens
        first = 0 if rows.start is None else rows.start[0]
        n_rows = len(rows) * len(tokens)
        self.tally.calls += 1
        self.tally.rows += n_rows
        self.tally.blocks += n_rows * ((n_blocks or model.n_layers) - first)
        self.tally.whole_blocks += n_rows * model.n_layers
        start = None if rows.start is None else (first, rows.start[1].flatten(0, 1))
        logits, _ = model.run(tokens.repeat(len(rows), 1), edits=edits, start=start)
        return logits

    def _edits(self, rows: HeldRows) -> dict[Site, Edit]:
        """What holds the nodes of rows that are prompts of one batch."""
        spliced, clean, other = self.runner.spliced, self.runner.clean, self.runner.other
        first = -1 if rows.start is None else rows.start[0]
        inputs: dict[Site, Tensor] = {}
        used: dict[Site, Tensor] = {}

        def remember(read: Site) -> Edit:
            return lambda x: inputs.setdefault(read, x)

        def splice(write: Site, placement: Placement) -> Edit:
            error = self._chosen(rows, "error", write, clean.errors[write], other.errors[write])
            hold = self._hold(rows, write, placement)

            def edit(y: Tensor) -> Tensor:
                x = y if placement.read == write else inputs[placement.read]
                used[write] = hold(placement.dictionary.encode(x))
                return spliced.reconstruct(write, used, x) + error()

            return edit

        def replace_sublayer(site: Site) -> Edit:
            def edit(y: Tensor) -> Tensor:
                live = y.unflatten(0, (len(rows), -1))
                return self._chosen(rows, "sublayer", site, live, other.sublayers[site])()

            return edit

        edits: dict[Site, Edit] = {}
        if rows.start is None:
            embed = Site("embed")
            tokens = self._chosen(rows, "token", embed, clean.values[embed], other.embed)
            edits[embed] = lambda _: tokens()
        for write, placement in spliced.placements.items():
            if write.layer >= first:
                if placement.read != write:
                    edits[placement.read] = remember(placement.read)
                edits[write] = splice(write, placement)
        sublayers = (site for site in other.sublayers if site.layer >= first)
        return edits | {site: replace_sublayer(site) for site in sublayers}

    def _chosen(
        self, rows: HeldRows, kind: str, site: Site, kept: Tensor, removed: Tensor
    ) -> Callable[[], Float[Tensor, "batch pos d_model"]]:
        """Vectors at each position: where its node is kept the one, elsewhere the other."""
        placed = self.runner.spliced.placements.get(site)
        name = {"token": "embed", "sublayer": "mlp"}.get(kind) or (placed.site if placed else "")
        layer = -1 if kind == "token" else site.layer
        place = self._places[kind, name, layer]

        def choose() -> Tensor:
            mask = torch.zeros(len(rows), self.runner.clean.n_pos, dtype=torch.bool)
            mask[:, place.pos] = rows.reads[:, place.rows]
            return torch.where(mask[:, None, :, None], kept, removed).flatten(0, 1)

        return choose

    def _hold(self, rows: HeldRows, write: Site, placement: Placement) -> Edit:
        """Put the values of features in use into live activations."""
        clean, other = self.runner.clean.activations[write], self.runner.other.activations[write]
        place = self._places.get(("feature", placement.site, write.layer))
        if place is None:
            return lambda live: live
        pos, feature = place.pos, place.feature
        in_use, removed = clean[:, pos, feature] != 0, other[:, pos, feature]

        def edit(live: Tensor) -> Tensor:
            kept = rows.reads[:, None, place.rows]
            carried = torch.where(kept, rows.values[rows.circuit][..., place.rows], removed)
            mixed = live.unflatten(0, (len(rows), -1))
            now = mixed[:, :, pos, feature]
            mixed[:, :, pos, feature] = torch.where(in_use, carried, now)
            return mixed.flatten(0, 1)

        return edit

    @cached_property
    def _places(self) -> dict[tuple[str, str, int], _Place]:
        """The nodes by kind, site and layer."""
        rows: dict[tuple[str, str, int], list[int]] = {}
        for row, node in enumerate(self.nodes):
            rows.setdefault((node.kind, node.site, node.layer), []).append(row)
        return {key: self._place(found) for key, found in rows.items()}

    def _place(self, rows: Sequence[int]) -> _Place:
        nodes = [self.nodes[row] for row in rows]
        columns = (rows, [node.pos for node in nodes], [node.feature for node in nodes])
        return _Place(*(torch.tensor(column, dtype=torch.long) for column in columns))
