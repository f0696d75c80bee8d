"""`attribute`: every edge of the frozen model at one prompt, exactly (design, 2.3 and 2.4)."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import torch
from jaxtyping import Int
from torch import Tensor

from attribution.best_first import arriving_influence
from attribution.columns import index_columns
from attribution.descent import Descent
from attribution.edges import EdgeBlock, Edges
from attribution.frozen_prompt import FrozenPrompt
from attribution.nodes import Node, NodeTable
from attribution.rows import Rows, sweeps
from attribution.targets import Readout, Target, TopLogits
from attribution.trace import Trace
from circuits.patching import NodeValues
from circuits.sites import Site
from circuits.spliced import FrozenState, HeldMode, SplicedModel
from circuits.subject import SubjectModel

__all__ = ["attribute", "attribute_batch", "attribute_sources"]

Prompt = str | Int[Tensor, " _"]
Progress = Callable[[int, int], None]


def attribute(
    spliced: SplicedModel,
    prompt: Prompt,
    target: Target | Sequence[Target] | None = None,
    *,
    mode: HeldMode = "exact",
    feature_rows: bool = True,
    max_feature_rows: int | None = None,
    memory: int = 64 * 2**20,
    progress: Progress | None = None,
) -> Trace:
    """All edges into `target` and into every active feature.

    `E[t, s] = a_s <d preact_t / d r at s's place, d_s>` with attention patterns, norm denominators
    and unreplaced MLPs held at this prompt; edges pass through attention and the residual stream,
    never through another feature. Every row sums to its target's value.

    Args:
        spliced: the model with its dictionaries.
        prompt: text, or token ids.
        target: what to explain; None explains the likeliest next tokens.
        mode: `exact` holds the model as it is; `replace` holds it as it runs on reconstructions,
            where errors are zero (except at BOS, and at first positions that a dictionary's
            convention leaves out, where none was trained).
        feature_rows: whether active features get rows too; without, only `target` is explained.
        max_feature_rows: at most so many features get rows, best first: those that carry most
            influence on the outputs. `Trace.left_out` bounds what runs through the others.
        memory: bytes for the gradients of the targets swept together (edges come on top).
        progress: called with (rows done, rows in all).

    Raises:
        ValueError: if the prompt is empty or too long, a target does not exist, or there is
            nothing to explain.
    """
    model = spliced.model
    tokens = _tokens(model, prompt)
    with torch.no_grad():
        state = spliced.state(tokens[None], mode)
        run = _Run(spliced, state, target, memory, progress)
        return run.trace(mode, max_feature_rows if feature_rows else 0)


def attribute_sources(
    spliced: SplicedModel,
    clean: FrozenState,
    other: NodeValues,
    target: Target | Sequence[Target] | None = None,
    *,
    memory: int = 64 * 2**20,
) -> Trace:
    """The edges of one prompt's frozen model with other values of its tokens, errors and held MLPs.

    Attention, norm denominators and features are those of `clean`; what tokens, errors and held
    MLPs write is taken from `other`. So a row sums to what its target would be if these were
    exchanged and every feature held; `target_values` stay those of `clean`.

    Args:
        spliced: the model with its dictionaries.
        clean: one prompt, held as the model is.
        other: for as many positions.
        target: what to explain, as in `attribute`.
        memory: as in `attribute`.

    Raises:
        ValueError: if there is not one prompt, or the lengths differ.
    """
    first, embed = Site("resid_pre", 0), Site("embed")
    if len(clean.tokens) != 1 or other.embed.shape != clean.values[embed].shape:
        raise ValueError(
            f"want one prompt and values for its positions, got {len(clean.tokens)} prompts of "
            f"{clean.n_pos} tokens and embeddings of shape {tuple(other.embed.shape)}"
        )
    positions = clean.read(first) - clean.values[embed]
    values = clean.values | other.sublayers
    values |= {embed: other.embed, first: other.embed + positions}
    mixed = replace(clean, values=values, errors=other.errors)
    with torch.no_grad():
        return _Run(spliced, mixed, target, memory, None).trace("exact", None)


def attribute_batch(
    spliced: SplicedModel,
    prompts: Sequence[Prompt],
    target: Target | Sequence[Target] | None = None,
    *,
    mode: HeldMode = "exact",
    feature_rows: bool = True,
    max_feature_rows: int | None = None,
    memory: int = 64 * 2**20,
    batch_size: int = 16,
) -> Iterator[Trace]:
    """`attribute` for many prompts: one trace each, in their order, made as they are asked for.

    Neighbours of equal length share a forward pass of at most `batch_size` prompts. The other
    arguments are those of `attribute`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    model, features = spliced.model, max_feature_rows if feature_rows else 0
    for _, group in groupby((_tokens(model, prompt) for prompt in prompts), key=len):
        while batch := list(islice(group, batch_size)):
            with torch.no_grad():
                held = spliced.state(torch.stack(batch), mode)
            for i in range(len(batch)):
                with torch.no_grad():
                    run = _Run(spliced, held.select(i), target, memory, None)
                    trace = run.trace(mode, features)
                yield trace


def _tokens(model: SubjectModel, prompt: Prompt) -> Int[Tensor, " _"]:
    return model.tokenize(prompt) if isinstance(prompt, str) else model.check_tokens(prompt)


class _Run:
    """One prompt's attribution: what is held, the layout of the sources, the outputs.

    While it runs every feature has a place among the targets, after the outputs, in the order of
    the columns; features that get no row are left out at the end.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        state: FrozenState,
        target: Target | Sequence[Target] | None,
        memory: int,
        progress: Progress | None,
    ) -> None:
        self.spliced, self.state, self.memory, self.progress = spliced, state, memory, progress
        self.columns = index_columns(spliced, state)
        wanted = [TopLogits()] if target is None else target
        wanted = list(wanted) if isinstance(wanted, Sequence) else [wanted]
        self.outputs = _named_apart([r for t in wanted for r in t.readouts(spliced, state)])
        self.prompt = FrozenPrompt(spliced, state, self.columns, memory // 2)
        self.feature_columns = self.columns.feature_columns(spliced.model.device)
        n_rows = len(self.outputs) + len(self.feature_columns)
        self.values = state.logits.new_zeros(n_rows, dtype=self.prompt.dtype)
        self._done = 0

    def trace(self, mode: HeldMode, max_feature_rows: int | None) -> Trace:
        model, n_features = self.spliced.model, len(self.feature_columns)
        if max_feature_rows is not None and max_feature_rows < 0:
            raise ValueError(f"max_feature_rows must not be negative, got {max_feature_rows}")
        if max_feature_rows is None or max_feature_rows >= n_features:
            rows, left_out = torch.arange(n_features, device=model.device), 0.0
            blocks = self._explain(self.outputs, rows, len(self.values))
        else:
            rows, blocks, left_out = self._best_first(max_feature_rows)
        n_outputs, nodes = len(self.outputs), self.columns.nodes
        kept = torch.cat([torch.arange(n_outputs, device=model.device), rows + n_outputs])
        if not len(kept):
            raise ValueError("nothing to explain: there is no target and no feature gets a row")
        place = torch.zeros_like(self.values, dtype=torch.long)
        place[kept] = torch.arange(len(kept), device=model.device)
        outputs = [
            _output_node(readout, value, model.n_layers)
            for readout, value in zip(self.outputs, self.values.tolist(), strict=False)
        ]
        features = [nodes[i] for i in self.feature_columns[rows].tolist()]
        tokens = self.state.tokens[0]
        return Trace(
            targets=NodeTable([*outputs, *features]),
            sources=NodeTable(nodes),
            blocks=Edges(
                (len(kept), len(nodes)),
                tuple(replace(block, targets=place[block.targets]) for block in blocks),
            ),
            target_values=self.values[kept],
            tokens=tokens,
            token_strings=model.token_strings(tokens),
            model_name=model.name,
            n_layers=model.n_layers,
            outputs=tuple(self.outputs),
            mode=mode,
            left_out=left_out,
        )

    def _best_first(self, n_rows: int) -> tuple[Tensor, list[EdgeBlock], float]:
        """Rows for the features that most influence arrives at, a round at a time."""
        weights = self.values.new_tensor([readout.weight for readout in self.outputs])
        weights = weights / weights.sum()
        total = len(self.outputs) + n_rows
        blocks = self._explain(self.outputs, self.feature_columns[:0], total)
        known = torch.zeros_like(self.feature_columns, dtype=torch.bool)
        while True:
            arriving = arriving_influence(
                blocks, weights, self.feature_columns, len(self.columns.nodes)
            )
            waiting = arriving[self.feature_columns].masked_fill(known, 0.0)
            room = n_rows - int(known.sum())
            if room == 0 or not waiting.any():
                return known.nonzero()[:, 0], blocks, float(waiting.sum())
            size = min(room, max(128, n_rows // 8), int(waiting.count_nonzero()))
            best = waiting.topk(size).indices
            known[best] = True
            blocks += self._explain([], best, total)

    def _explain(
        self, outputs: Sequence[Readout], features: Int[Tensor, " row"], total: int
    ) -> list[EdgeBlock]:
        """Sweep some rows; their targets are places among all."""
        feature_row = features.new_full((len(self.columns.nodes),), -1)
        feature_row[self.feature_columns[features]] = features + len(self.outputs)
        rows, blocks = Rows(outputs, feature_row), []
        n_pos, memory = self.state.n_pos, self.memory // 2
        for pos, groups in sweeps(self.spliced, self.columns, rows, n_pos, memory):
            blocks += Descent(self.prompt, groups, pos).run()
            for group in groups:
                read = self.state.read(group.site)[0, pos].to(self.values)
                self.values[group.rows] = group.vectors.to(read) @ read + group.constants.to(read)
                self._done += len(group.rows)
            if self.progress is not None:
                self.progress(self._done, total)
        return blocks


def _named_apart(readouts: list[Readout]) -> list[Readout]:
    """The same readouts; a name that came before gets a number, since names make node ids."""
    seen: Counter[str] = Counter()
    renamed = []
    for readout in readouts:
        seen[readout.name] += 1
        n = seen[readout.name]
        renamed.append(readout if n == 1 else replace(readout, name=f"{readout.name} #{n}"))
    return renamed


def _output_node(readout: Readout, value: float, n_layers: int) -> Node:
    return Node(kind="output", layer=n_layers, site=readout.name, pos=readout.pos, activation=value)
