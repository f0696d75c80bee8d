"""`attribute`: every edge of the frozen model at one prompt, exactly (design, 2.3 and 2.4)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.columns import Columns, index_columns
from attribution.nodes import Node, NodeTable
from attribution.sweep import Sweep
from attribution.targets import Readout, Target, TopLogits
from attribution.trace import Trace
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel

__all__ = ["attribute"]


def attribute(
    spliced: SplicedModel,
    prompt: str | Int[Tensor, " pos"],
    target: Target | Sequence[Target] | None = None,
    *,
    feature_rows: bool = True,
    chunk_bytes: int = 64 * 2**20,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """All edges into `target` and into every active feature.

    `E[t, s] = a_s <d preact_t / d r at s's place, d_s>` with attention patterns, norm denominators
    and unreplaced MLPs held at this prompt; edges pass through attention and the residual stream,
    never through another feature. Every row sums to its target's value.

    Args:
        spliced: the model with its dictionaries.
        prompt: text, or token ids.
        target: what to explain; None explains the likeliest next tokens.
        feature_rows: whether active features get rows too; without, only `target` is explained.
        chunk_bytes: memory for the gradients of the targets swept together, in bytes.
        progress: called with (rows done, rows in all).

    Raises:
        ValueError: if the prompt is empty or too long, a target does not exist, or there is
            nothing to explain.
    """
    model = spliced.model
    tokens = model.tokenize(prompt) if isinstance(prompt, str) else model.check_tokens(prompt)
    with torch.no_grad():
        state = spliced.state(tokens[None])
        columns = index_columns(spliced, state)
        wanted = [TopLogits()] if target is None else target
        wanted = list(wanted) if isinstance(wanted, Sequence) else [wanted]
        readouts = _named_apart([r for t in wanted for r in t.readouts(spliced, state)])
        nodes = [_output_node(r, state, model.n_layers) for r in readouts]
        if feature_rows:
            readouts += _feature_readouts(spliced, columns)
            nodes += [n for n in columns.nodes if n.kind == "feature"]
        if not readouts:
            raise ValueError("nothing to explain: no target was given and no feature is active")
        edges = _rows(spliced, state, columns, readouts, chunk_bytes, progress)
        values = torch.stack([_value(r, state) for r in readouts])
    return Trace(
        targets=NodeTable(nodes),
        sources=NodeTable(columns.nodes),
        edges=edges,
        target_values=values,
        tokens=tokens,
        token_strings=model.token_strings(tokens),
        model_name=model.name,
        n_layers=model.n_layers,
    )


def _value(readout: Readout, state: FrozenState) -> Float[Tensor, ""]:
    return state.values[readout.site][0, readout.pos] @ readout.vector + readout.constant


def _named_apart(readouts: list[Readout]) -> list[Readout]:
    """The same readouts; a name that came before gets a number, since names make node ids."""
    seen: Counter[str] = Counter()
    renamed = []
    for readout in readouts:
        seen[readout.name] += 1
        n = seen[readout.name]
        renamed.append(readout if n == 1 else replace(readout, name=f"{readout.name} #{n}"))
    return renamed


def _output_node(readout: Readout, state: FrozenState, n_layers: int) -> Node:
    value = float(_value(readout, state))
    return Node(kind="output", layer=n_layers, site=readout.name, pos=readout.pos, activation=value)


def _feature_readouts(spliced: SplicedModel, columns: Columns) -> list[Readout]:
    """Active features as targets, in the order of their columns (lower layers first)."""
    readouts = []
    for write, active in columns.features.items():
        placement = spliced.placements[write]
        dictionary = placement.dictionary
        for pos, features in enumerate(active.features):
            vectors = dictionary.W_enc.T[features]
            constants = dictionary.b_enc[features].tolist()
            readouts += [
                Readout(f"{write}.{feature}", placement.read, pos, vector, constant)
                for feature, vector, constant in zip(
                    features.tolist(), vectors, constants, strict=True
                )
            ]
    return readouts


def _rows(
    spliced: SplicedModel,
    state: FrozenState,
    columns: Columns,
    readouts: list[Readout],
    chunk_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> Float[Tensor, "target source"]:
    """Sweep the readouts place by place, in chunks of similar last position."""
    sweep = Sweep(spliced, state, columns)
    edges = state.logits.new_zeros(len(readouts), len(columns.nodes))
    groups: dict[Site, list[int]] = defaultdict(list)
    for i, readout in enumerate(readouts):
        groups[readout.site].append(i)
    model, done = spliced.model, 0
    # Heads widen the gradient at the values; a few tensors of that size live at once.
    row_bytes = 6 * state.n_pos * model.d_model * edges.element_size()
    size = max(1, chunk_bytes // row_bytes)
    for start, members in groups.items():
        members.sort(key=lambda i: readouts[i].pos)
        for at in range(0, len(members), size):
            chunk = members[at : at + size]
            edges[chunk] = _sweep_chunk(sweep, edges, start, [readouts[i] for i in chunk])
            done += len(chunk)
            if progress is not None:
                progress(done, len(readouts))
    edges[:, columns.biases["target"]] += edges.new_tensor([r.constant for r in readouts])
    return edges


def _sweep_chunk(
    sweep: Sweep, edges: Tensor, start: Site, readouts: list[Readout]
) -> Float[Tensor, "chunk source"]:
    rows = edges.new_zeros(len(readouts), edges.shape[1])
    n_pos = readouts[-1].pos + 1
    g = edges.new_zeros(len(readouts), n_pos, readouts[0].vector.shape[0])
    positions = torch.tensor([r.pos for r in readouts])
    g[torch.arange(len(readouts)), positions] = torch.stack([r.vector for r in readouts]).to(g)
    sweep.fill(rows, start, g)
    return rows
