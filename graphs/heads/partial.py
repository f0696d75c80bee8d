"""Circuits that differ in the edges into one reader, run from that reader on.

Everything upstream of the reader, and whatever its owner does not reach, keeps its values. Only
parts that the owner reaches and that reach the output are computed; those that are read at the last
position alone are computed there alone, the others from the first position where prompts differ.
Readers with the same edges see the same stream, which is added up once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.heads.edges import SIDES
from graphs.heads.reach import downstream, live_and_wide
from graphs.heads.running import EdgeRunner

__all__ = ["Visit"]

Seen = Callable[[Tensor, Tensor], Tensor]
"""Streams [reader, circuit * batch, pos, d_model], from what the changed parts computed so far add
[part, circuit, batch, pos, d_model] at every position and at the last one."""


@dataclass(frozen=True, eq=False)
class _Side:
    """One side (queries, keys or values) of some heads of a layer.

    `still` is what each head has there if no changed part is seen; `moved` are the rows of those
    that see one, `readers` their places in the block, `seen` the streams they see, and `which` of
    these each of them does.
    """

    still: Float[Tensor, "head batch pos d_head"]
    moved: list[int]
    readers: list[int]
    seen: Seen
    which: list[int]


@dataclass(frozen=True, eq=False)
class _Step:
    """Some heads of a layer with their three sides, or its MLP with what it sees."""

    layer: int
    writers: list[int]
    heads: list[int]
    sides: list[_Side]
    mlp: Seen | None = None


@dataclass(frozen=True, eq=False)
class Visit:
    """Candidates for the edges into `reader`, the rest of the circuit being `keep`.

    Args:
        runner: the prompts.
        keep: the circuit; the row of the visited reader is not looked at.
        reader: the one whose edges vary.
        added: what each writer adds over its corrupted output in the circuit. Right at least for
            writers that reach the output, at the positions where they are read.
    """

    runner: EdgeRunner
    keep: Bool[Tensor, "reader writer"]
    reader: int
    added: Float[Tensor, "writer batch pos d_model"] = field(repr=False)

    @cached_property
    def _live_and_wide(self) -> tuple[Bool[Tensor, " writer"], Bool[Tensor, " writer"]]:
        return live_and_wide(self.runner.edges, self.keep)

    @property
    def matters(self) -> bool:
        """Whether what reads here reaches the output."""
        return self.reader == self.runner.edges.output or bool(self.changed)

    @cached_property
    def changed(self) -> list[int]:
        """The owner of the reader and all it reaches, as far as that reaches the output.

        In the order of computation: of each layer its wide heads, the others, the MLP.
        """
        edges, (live, wide) = self.runner.edges, self._live_and_wide
        reached = downstream(edges, self.keep, edges.owner(self.reader)) & live

        def step(writer: int) -> tuple[int, bool, bool]:
            layer, at = divmod(writer - 1, edges.n_heads + 1)
            return layer, at == edges.n_heads, not wide[writer]

        return sorted(reached.nonzero()[:, 0].tolist(), key=step)

    def logits(
        self, rows: Bool[Tensor, "circuit writer"]
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """Last-position logits with each of `rows` as the edges into the reader."""
        with torch.no_grad():
            if self.reader == self.runner.edges.output:
                seen = self._candidates(rows, 1)
            else:
                seen = self._output(*self._run(rows))
            return self.runner.parts.unembed(seen[0, :, -1]).unflatten(0, (len(rows), -1))

    def updated(self, row: Bool[Tensor, " writer"]) -> Float[Tensor, "writer batch pos d_model"]:
        """`added` in the circuit that has `row` as the edges into the reader; reuses its memory."""
        if self.reader != self.runner.edges.output:
            new, last = self._run(row[None])
            wide = self._live_and_wide[1][self.changed]
            for at, writer in enumerate(self.changed):
                if wide[at]:
                    self.added[writer, :, -self._n_everywhere :] = new[at, 0]
                else:
                    self.added[writer, :, -1:] = last[at, 0]
        return self.added

    def _run(self, rows: Bool[Tensor, "circuit writer"]) -> tuple[Tensor, Tensor]:
        """What every changed part adds, everywhere (zeros if not read there), and last."""
        shape = (len(self.changed), len(rows), len(self.added[0]))
        new = self.added.new_empty(*shape, self._n_everywhere, self.added.shape[-1])
        last = self.added.new_empty(*shape, 1, self.added.shape[-1])
        new[~self._live_and_wide[1][self.changed]] = 0
        with torch.no_grad():
            for step in (self._owner_step(rows), *self._steps):
                at = self.changed.index(step.writers[0])
                written = self._written(step, new[:at], last[:at], len(rows))
                written = written.unflatten(1, (len(rows), -1))
                n_pos, until = written.shape[3], at + len(written)
                usual = self.runner.corrupted[step.writers][:, None, :, -n_pos:]
                last[at:until] = written[..., -1:, :] - usual[..., -1:, :]
                if n_pos == new.shape[3]:
                    torch.sub(written, usual, out=new[at:until])
        return new, last

    def _written(
        self, step: _Step, new: Tensor, last: Tensor, n_circuits: int
    ) -> Float[Tensor, "part row pos d_model"]:
        block = self.runner.parts.blocks[step.layer]
        if step.mlp is not None:
            return block.mlp(step.mlp(new, last)[0])[None]
        values = []
        for side in step.sides:
            value = side.still.repeat(1, n_circuits, 1, 1)
            if side.moved:
                x = block.normalise(side.seen(new, last))[side.which]
                value[side.moved, :, -x.shape[2] :] = block.read(x, side.readers)
            values.append(value)
        return block.write(block.attend(*values), step.heads)

    def _candidates(self, rows: Bool[Tensor, "circuit writer"], n_pos: int) -> Tensor:
        """What the visited reader sees: [1, circuit * batch, pos, d_model]."""
        before = self.runner.edges.n_before(self.reader)
        added = self.added[:before, :, -n_pos:]
        mix = torch.tensordot(rows[:, :before].to(added), added, 1)
        return (mix + self.runner.stream(self.reader)[:, -n_pos:]).flatten(0, 1)[None]

    def _owner_step(self, rows: Bool[Tensor, "circuit writer"]) -> _Step:
        step, edges = self._owner, self.runner.edges
        if step.mlp is not None:
            seen = self._candidates(rows, self._n_pos(self.changed[0]))
            return replace(step, mlp=lambda new, last: seen)
        at = self.reader % (3 * edges.n_heads + 1)
        number, side = at // edges.n_heads, step.sides[at // edges.n_heads]
        seen = self._candidates(rows, min(side.still.shape[2], self._n_everywhere))
        side = replace(side, moved=[0], readers=[at], seen=lambda new, last: seen, which=[0])
        return replace(step, sides=[*step.sides[:number], side, *step.sides[number + 1 :]])

    @cached_property
    def _owner(self) -> _Step:
        return self._step(self.changed[:1])

    @cached_property
    def _steps(self) -> list[_Step]:
        """What follows the owner, a run of `changed` each."""
        edges, wide, groups = self.runner.edges, self._live_and_wide[1], []
        for layer in range(edges.n_layers):
            first, mlp = edges.head(layer, 0), edges.mlp(layer)
            heads = [writer for writer in self.changed[1:] if first <= writer < mlp]
            groups += [[w for w in heads if wide[w]], [w for w in heads if not wide[w]]]
            groups.append([mlp] if mlp in self.changed[1:] else [])
        return [self._step(group) for group in groups if group]

    def _n_pos(self, writer: int) -> int:
        """At how many positions a part is computed: those that can change, or the last."""
        return self._n_everywhere if self._live_and_wide[1][writer] else 1

    @property
    def _n_everywhere(self) -> int:
        return self.runner.n_differing

    def _step(self, writers: list[int]) -> _Step:
        edges, n_pos = self.runner.edges, self._n_pos(writers[0])
        layer, first = divmod(writers[0] - 1, edges.n_heads + 1)
        if first == edges.n_heads:
            reader = torch.tensor([edges.mlp_reader(layer)])
            rows = self.keep[reader]
            return _Step(layer, writers, [], [], self._seen(self._base(rows, reader, n_pos), rows))
        heads = [writer - edges.head(layer, 0) for writer in writers]
        sides = []
        for number, side in enumerate(SIDES):
            readers = torch.tensor([edges.head_reader(layer, head, side) for head in heads])
            places = [number * edges.n_heads + head for head in heads]
            sides.append(self._side(layer, readers, places, n_pos if side == "q" else None))
        return _Step(layer, writers, heads, sides)

    def _side(self, layer: int, readers: Tensor, places: list[int], n_pos: int | None) -> _Side:
        """One side of some heads, read at the last `n_pos` positions, or at all (None)."""
        block, n_all = self.runner.parts.blocks[layer], self.added.shape[2]
        rows, which = self.keep[readers].unique(dim=0, return_inverse=True)
        base = self._base(rows, readers, n_pos or n_all)
        still = block.read(block.normalise(base)[which], places)
        moved = self.keep[readers][:, self.changed].any(1).nonzero()[:, 0].tolist()
        seen = self._seen(base[:, :, -(n_pos or self._n_everywhere) :], rows)
        which = which[moved].tolist() if len(rows) > 1 else [0]
        return _Side(still, moved, [places[i] for i in moved], seen, which)

    @cached_property
    def _output(self) -> Seen:
        reader = torch.tensor([self.runner.edges.output])
        rows = self.keep[reader]
        return self._seen(self._base(rows, reader, 1), rows)

    def _base(
        self, rows: Bool[Tensor, "stream writer"], readers: Tensor, n_pos: int
    ) -> Float[Tensor, "stream batch pos d_model"]:
        """What readers of one layer with these edges see beside the changed parts."""
        before = self.runner.edges.n_before(int(readers[0]))
        mix = rows.to(self.added)
        mix[:, self.changed] = 0
        added = torch.tensordot(mix[:, :before], self.added[:before, :, -n_pos:], 1)
        return added.add_(self.runner.stream(int(readers[0]))[:, -n_pos:])

    def _seen(
        self, base: Float[Tensor, "stream batch pos d_model"], rows: Bool[Tensor, "stream writer"]
    ) -> Seen:
        """What readers with these edges see: `base` and what changed parts before them add."""
        mix = rows[:, self.changed].to(self.added)
        everywhere = base.shape[2] == self._n_everywhere

        def seen(new: Tensor, last: Tensor) -> Tensor:
            parts = new if everywhere else last
            added = torch.tensordot(mix[:, : len(parts)], parts, 1)
            return added.add_(base[:, None]).flatten(1, 2)

        return seen
