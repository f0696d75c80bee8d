"""One sweep of the frozen linear pass: targets at one position, carried down the residual stream.

Targets join where they read and leave where an SAE cuts the stream; what is written at each place
on the way is booked to its columns. Input-dependent.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.across_layers import CrossLayerEdges
from attribution.edges import EdgeBlock
from attribution.frozen import FrozenAttention, norm_scale
from attribution.frozen_prompt import FrozenPrompt
from attribution.rows import INSIDE, TargetGroup
from attribution.through_heads import (
    add_through_values,
    edges_at_values,
    gradient_at_values,
    spread_to_keys,
)
from attribution.written import (
    Written,
    written_across_layers,
    written_beside_features,
    written_by_dictionary,
    written_by_held_mlp,
    written_by_inputs,
)
from circuits.dictionaries import CrossLayerTranscoder
from circuits.sites import NormName, Site, SiteKind
from circuits.spliced import Placement

__all__ = ["Descent"]

_ROWS, _ROUND = 1024, 128
"""Rows of one product, enough for full speed, and what their number is rounded up to."""


class Descent:
    """One sweep.

    Closed form, no autograd: patterns and norm denominators are held, so every step is a matrix
    product. Only positions up to the targets' own are carried, and only layers below each target
    are crossed. Targets `[lo, hi)` are carried at all positions; those from `hi` on are still
    `fresh`: until its first attention layer a target's gradient is at its own position alone, and
    costs next to nothing. Those below `lo` are done.

    Args:
        prompt: what is held.
        groups: targets in the order of a backward pass; one that reads inside a block comes alone.
        pos: the position of all of them.
    """

    def __init__(self, prompt: FrozenPrompt, groups: Sequence[TargetGroup], pos: int) -> None:
        self.prompt, self.model, self.pos, self.n = prompt, prompt.model, pos, pos + 1
        self.waiting = list(groups)
        self.rows = torch.cat([group.rows for group in groups])
        d_model = self.model.d_model
        n_rows = len(self.rows) * self.n
        self.all_rows = prompt.buffer("gradient", n_rows + _ROUND, d_model)
        self.carried = self.all_rows[:n_rows].view(-1, self.n, d_model)
        self.fresh = self.carried.new_zeros(0, d_model)
        self.lo = self.hi = 0
        self.through_first: list[Float[Tensor, "target column"]] = []
        self.biases = self.carried.new_zeros(len(self.rows), len(prompt.bias_columns))
        constants = torch.cat([group.constants.to(self.biases) for group in groups])
        self.biases[:, prompt.bias_place["target"]] = constants
        self.blocks: list[EdgeBlock] = []
        self.across: CrossLayerEdges | None = None

    def run(self) -> list[EdgeBlock]:
        """All edges into the targets."""
        top, site = self.model.n_layers - 1, self.waiting[0].site
        if site.kind in INSIDE:
            top = site.layer - 1
            self._start_inside(self.waiting.pop(0))
        self._join("unembed_in", 0)
        for layer in range(top, -1, -1):
            self._cut(Site("resid_post", layer))
            self._join("resid_post", layer)
            self._block(layer)
        self._cut(Site("resid_pre", 0))
        self._join("resid_pre", 0)
        if self.active:
            self._book(self._written(written_by_inputs))
            if self.through_first:
                through_heads = torch.cat(self.through_first)
                self.blocks[-1].values[: len(through_heads)] += through_heads
        self.blocks.append(EdgeBlock(self.rows, self.prompt.bias_columns, self.biases))
        return self.blocks

    @property
    def active(self) -> bool:
        return self.hi + len(self.fresh) > self.lo

    # --- targets come and go ------------------------------------------------------------------

    def _join(self, kind: SiteKind, layer: int) -> None:
        """Take up the targets that read at this place."""
        while self.waiting and self.waiting[0].site == Site(kind, layer):
            vectors = self.waiting.pop(0).vectors.to(self.carried)
            start = self.hi + len(self.fresh)
            if kind == "unembed_in":
                vectors = self._before_norm("final", 0, "final", vectors, start)
            elif kind == "mlp_in":
                vectors = self._before_norm("ln2", layer, "target", vectors, start)
            self.fresh = torch.cat([self.fresh, vectors])

    def _start_inside(self, group: TargetGroup) -> None:
        """Targets that read a sublayer's output: through that sublayer, but not past it."""
        layer, self.fresh = group.site.layer, group.vectors.to(self.carried)
        if group.site.kind == "attn_out":
            self._through_heads(layer, passing=False)
            return
        through_skip = self._mlp(layer, replaced=False)
        if through_skip is None:
            self._finish()
            return
        self.fresh = through_skip[1]
        if not self.model.parallel:
            self._attention(layer)

    def _cut(self, site: Site) -> None:
        """An SAE that replaces the whole residual stream ends every target above it."""
        if site in self.prompt.spliced.placements and self.active:
            self._book(self._written(written_by_dictionary, site))
            self._finish()

    def _finish(self) -> None:
        if self.across is not None:
            for columns in self.across.open.values():
                self._book_features(self.across, columns)
        self.lo = self.hi = self.hi + len(self.fresh)
        self.fresh = self.fresh[:0]

    # --- down one block -----------------------------------------------------------------------

    def _block(self, layer: int) -> None:
        through_skip = self._mlp(layer) if self.active else None
        if self.model.parallel:
            before = self.hi
            if self.active:
                self._attention(layer)
            self._add(through_skip, before)
            self._join("mlp_in", layer)
        else:
            self._add(through_skip, self.hi)
            self._join("mlp_in", layer)
            self._join("resid_mid", layer)
            if self.active:
                self._attention(layer)

    def _mlp(self, layer: int, replaced: bool = True) -> tuple[Tensor, Tensor] | None:
        """Book what the MLP writes; the gradients before it, through a linear skip, if any.

        Args:
            layer: which.
            replaced: whether an SAE on the MLP's output, if any, lies on the way.
        """
        spliced, site = self.prompt.spliced, self.prompt.spliced.mlp_site(layer)
        sae = Site("mlp_out", layer)
        if replaced and sae in spliced.placements and sae != site:
            self._book(self._written(written_by_dictionary, sae))
            return None
        if site not in spliced.placements:
            self._book(self._written(written_by_held_mlp, site))
            return None
        dictionary = spliced.placements[site].dictionary
        if isinstance(dictionary, CrossLayerTranscoder):
            self._book_across_layers(site)
        else:
            self._book(self._written(written_by_dictionary, site))
        if dictionary.W_skip is None:
            return None
        placement, carried = spliced.placements[site], self.carried[self.lo : self.hi]
        before = self._before_skip(placement, carried, self.lo)
        return before, self._before_skip(placement, self.fresh, self.hi)

    def _before_skip(self, placement: Placement, g: Tensor, start: int) -> Tensor:
        """Carry gradients from the stream behind a skip transcoder to the stream that it reads."""
        layer, W_skip = placement.write.layer, placement.dictionary.W_skip
        assert W_skip is not None
        if placement.write.kind == "mlp_raw_out" and self.model.norm("ln2_post", layer) is not None:
            g = self._before_norm("ln2_post", layer, None, g, start)
        g = g @ W_skip.T.to(g)
        if placement.read.kind == "mlp_in":
            g = self._before_norm("ln2", layer, f"mlp{layer}", g, start)
        return g

    def _add(self, through_skip: tuple[Tensor, Tensor] | None, hi: int) -> None:
        """Add gradients that came through a skip when `[lo, hi)` were carried."""
        if through_skip is None:
            return
        carried, fresh = through_skip
        self.carried[self.lo : hi] += carried
        if self.hi > hi:  # fresh no more
            self.carried[hi : self.hi, self.pos] += fresh
        else:
            self.fresh = self.fresh + fresh

    def _attention(self, layer: int) -> None:
        if Site("attn_out", layer) in self.prompt.spliced.placements:
            self._book(self._written(written_by_dictionary, Site("attn_out", layer)))
        else:
            self._through_heads(layer, passing=True)

    def _through_heads(self, layer: int, passing: bool) -> None:
        """Carry every target past attention, if `passing`, and through its heads."""
        frozen = self.prompt.attention(layer)
        self._book_constant(f"attn{layer}", frozen.constant)
        if self.hi > self.lo:
            inputs = self._inputs_at_values(frozen) if layer == 0 and passing else None
            self._carry(frozen, inputs)
        end = self.hi + len(self.fresh)
        if end > self.hi:
            spread = spread_to_keys(self.fresh, frozen, self.pos)
            self.carried[self.hi : end] = einops.rearrange(spread, "pos t d -> t pos d")
            if passing:
                self.carried[self.hi : end, self.pos] += self.fresh
            self.hi, self.fresh = end, self.fresh[:0]

    def _carry(
        self, frozen: FrozenAttention, inputs: Float[Tensor, "kv_head pos d_head source"] | None
    ) -> None:
        """Add the gradients through all heads to those carried, some targets at a time.

        Where only `inputs` lie below, these are read at the values, which saves a product.
        """
        together = max(1, _ROWS // self.n)
        for start in range(self.lo, self.hi, together):
            t = min(together, self.hi - start)
            # Products of few different shapes: oneDNN keeps memory for each.
            n_rows = -(-t * self.n // _ROUND) * _ROUND
            g = self.all_rows[start * self.n :][:n_rows]
            at_v = gradient_at_values(frozen, g, t, self.n, self.prompt.buffer)
            if inputs is None:
                add_through_values(g, frozen, at_v, self.prompt.buffer)
            else:
                self.through_first.append(edges_at_values(at_v, inputs))

    def _inputs_at_values(
        self, frozen: FrozenAttention
    ) -> Float[Tensor, "kv_head pos d_head source"] | None:
        """Tokens and positions as the first layer's values, if no target or SAE lies below it."""
        if self.waiting or Site("resid_pre", 0) in self.prompt.spliced.placements:
            return None
        vectors = torch.stack(self._written(written_by_inputs).vectors)
        return einops.einsum(vectors, frozen.W_V, "pos s d, kv e d -> kv pos e s").contiguous()

    def _before_norm(
        self, name: NormName, layer: int, bias: str | None, g: Tensor, start: int
    ) -> Tensor:
        """Carry gradients of the targets from `start` on to before a norm, and book its bias.

        Args:
            name: the norm.
            layer: its layer.
            bias: where its bias is booked; None if that has been done.
            g: `[target, pos, d_model]`, or `[target, d_model]` at the sweep's own position.
            start: the first target's place.
        """
        norm = self.model.norm(name, layer)
        assert norm is not None
        norm, scale = norm.to(g.dtype), norm_scale(self.prompt.state, name, layer, g.dtype)
        if bias is not None:
            booked = g @ norm.bias
            booked = booked.sum(1) if g.ndim == 3 else booked
            self.biases[start : start + len(g), self.prompt.bias_place[bias]] += booked
        return norm.adjoint(g, scale[: self.n] if g.ndim == 3 else scale[self.pos])

    # --- what arrives where -------------------------------------------------------------------

    def _written(self, by: Callable[..., Written], *site: Site) -> Written:
        return by(self.prompt.spliced, self.prompt.state, self.prompt.columns, *site, self.n)

    def _book(self, written: Written) -> None:
        """Edges from all that one place writes."""
        ends = [0, *accumulate(len(vectors) for vectors in written.vectors)]
        if self.hi > self.lo:
            values = self.carried.new_empty(self.hi - self.lo, ends[-1])
            for p, vectors in enumerate(written.vectors):
                torch.mm(
                    self.carried[self.lo : self.hi, p],
                    vectors.T,
                    out=values[:, ends[p] : ends[p + 1]],
                )
            self.blocks.append(EdgeBlock(self.rows[self.lo : self.hi], written.columns, values))
        if len(self.fresh):
            rows = self.rows[self.hi : self.hi + len(self.fresh)]
            here = slice(ends[self.pos], ends[self.pos + 1])
            values = self.fresh @ written.vectors[self.pos].T
            self.blocks.append(EdgeBlock(rows, written.columns[here], values))
        if written.bias is not None:
            self._book_constant(written.bias, written.constant)

    def _book_across_layers(self, site: Site) -> None:
        """What cross-layer transcoders write at `site`, whose own features write no lower."""
        spliced, columns = self.prompt.spliced, self.prompt.columns
        self._book(self._written(written_beside_features, site))
        written = self._written(written_across_layers, site)
        if self.across is None:
            of = {writer: columns.features[writer].columns for writer, _ in spliced.writers(site)}
            self.across = CrossLayerEdges(written, of, len(self.rows), self.pos)
        self.across.add(written, self.carried[self.lo : self.hi], self.fresh, self.lo)
        self._book_features(self.across, self.across.open.pop(site))

    def _book_features(self, across: CrossLayerEdges, columns: range) -> None:
        """Edges from the features of one cross-layer transcoder into all targets on the way."""
        rows = self.rows[self.lo : self.hi + len(self.fresh)]
        self.blocks += across.blocks(columns, rows, self.lo, self.hi - self.lo)

    def _book_constant(self, key: str, constant: Float[Tensor, "pos d_model"]) -> None:
        """What is written whatever the features are goes to a bias column."""
        place, end = self.prompt.bias_place[key], self.hi + len(self.fresh)
        carried = self.carried[self.lo : self.hi].flatten(1)
        self.biases[self.lo : self.hi, place] += carried @ constant[: self.n].flatten()
        self.biases[self.hi : end, place] += self.fresh @ constant[self.pos]
