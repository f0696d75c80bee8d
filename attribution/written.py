"""What every source writes into the residual stream, place by place and position by position.

A feature writes its activation times its decoder direction, a cross-layer one at several places;
whatever lies between a place and the residual stream (a norm after the MLP) is held and applied
here. Input-dependent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.columns import Columns, bias_key, position_vectors
from attribution.frozen import norm_scale, working_dtype
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel
from circuits.subject import Norm

__all__ = [
    "Written",
    "written_across_layers",
    "written_beside_features",
    "written_by_dictionary",
    "written_by_held_mlp",
    "written_by_inputs",
]


@dataclass(frozen=True)
class Written:
    """Vectors in the residual stream at the first positions of a prompt.

    Attributes:
        vectors: at each position, one row a source.
        columns: the columns of these rows, position by position.
        constant: what else is written there: biases.
        bias: the bias node the constant belongs to; None if there is no constant.
    """

    vectors: list[Float[Tensor, "_ d_model"]]
    columns: Int[Tensor, " _"]
    constant: Float[Tensor, "pos d_model"]
    bias: str | None


def written_by_dictionary(
    spliced: SplicedModel, state: FrozenState, columns: Columns, write: Site, n_pos: int
) -> Written:
    """Features, errors and decoder bias of the dictionary that writes at `write`."""
    own = _features(spliced, state, columns, write, write, n_pos)
    rest = written_beside_features(spliced, state, columns, write, n_pos)
    pairs = zip(own.vectors, rest.vectors, strict=True)
    active = columns.features[write]
    order = [torch.cat([own.columns[active.at(p)], rest.columns[p : p + 1]]) for p in range(n_pos)]
    vectors = [torch.cat(pair) for pair in pairs]
    return Written(vectors, torch.cat(order), rest.constant, rest.bias)


def written_across_layers(
    spliced: SplicedModel, state: FrozenState, columns: Columns, write: Site, n_pos: int
) -> Written:
    """What features of cross-layer transcoders, of this layer and of those below, write at `write`;
    at each position the lowest layer comes first.
    """
    parts = [
        _features(spliced, state, columns, writer, write, n_pos)
        for writer, _ in spliced.writers(write)
    ]
    vectors = [torch.cat(at_one) for at_one in zip(*(part.vectors for part in parts), strict=True)]
    order = [
        part.columns[columns.features[writer].at(p)]
        for p in range(n_pos)
        for part, (writer, _) in zip(parts, spliced.writers(write), strict=True)
    ]
    return Written(vectors, torch.cat(order), parts[0].constant, None)


def written_beside_features(
    spliced: SplicedModel, state: FrozenState, columns: Columns, write: Site, n_pos: int
) -> Written:
    """Errors and decoder bias at `write`."""
    dtype = working_dtype(spliced.model.dtype)
    errors = state.errors[write][0, :n_pos].to(dtype)
    placement, behind = spliced.placements[write], _norm_behind(spliced, state, write, n_pos)
    constant = placement.dictionary.b_dec.to(dtype).expand(n_pos, -1)
    if behind is not None:
        norm, scale = behind
        errors, constant = norm.linear(errors, scale), norm.linear(constant, scale) + norm.bias
    order = torch.arange(n_pos, device=errors.device) + columns.blocks["error", write]
    return Written(list(errors[:, None]), order, constant, bias_key(placement))


def _features(
    spliced: SplicedModel,
    state: FrozenState,
    columns: Columns,
    writer: Site,
    write: Site,
    n_pos: int,
) -> Written:
    """What the active features of the dictionary placed at `writer` write at `write`."""
    dictionary, active = spliced.placements[writer].dictionary, columns.features[writer]
    dtype = working_dtype(spliced.model.dtype)
    n = active.ends[n_pos]
    vectors = dictionary.decoder(write.layer - writer.layer)[active.features[:n]].to(dtype)
    vectors *= active.activations[:n, None]
    behind = _norm_behind(spliced, state, write, n_pos)
    if behind is not None:
        norm, scale = behind
        counts = torch.tensor(active.ends[: n_pos + 1], device=vectors.device).diff()
        vectors = norm.linear(vectors, scale.repeat_interleave(counts, 0))
    order = torch.arange(n, device=vectors.device) + active.first_column
    constant = vectors.new_zeros(1, 1).expand(n_pos, vectors.shape[1])
    return Written([vectors[active.at(p)] for p in range(n_pos)], order, constant, None)


def _norm_behind(
    spliced: SplicedModel, state: FrozenState, write: Site, n_pos: int
) -> tuple[Norm, Float[Tensor, "pos 1"]] | None:
    """The norm between an MLP's output and the residual stream, and its held denominators."""
    norm = spliced.model.norm("ln2_post", write.layer) if write.kind == "mlp_raw_out" else None
    if norm is None:
        return None
    dtype = working_dtype(spliced.model.dtype)
    return norm.to(dtype), norm_scale(state, "ln2_post", write.layer, dtype)[:n_pos]


def written_by_held_mlp(
    spliced: SplicedModel, state: FrozenState, columns: Columns, site: Site, n_pos: int
) -> Written:
    """The output of an MLP that no transcoder replaces, held."""
    model, layer = spliced.model, site.layer
    dtype = working_dtype(model.dtype)
    values = state.values[site][0, :n_pos].to(dtype)
    constant, bias = torch.zeros_like(values), None
    behind = _norm_behind(spliced, state, site, n_pos)
    if behind is not None:
        norm, scale = behind
        values = norm.linear(values, scale)
        constant, bias = norm.bias.expand(n_pos, -1), f"mlp{layer}"
    order = columns.blocks["sublayer", site] + torch.arange(n_pos, device=values.device)
    return Written(list(values[:, None]), order, constant, bias)


def written_by_inputs(
    spliced: SplicedModel, state: FrozenState, columns: Columns, n_pos: int
) -> Written:
    """Token embeddings and, where they are added to the residual stream, positions."""
    embed, dtype = Site("embed"), working_dtype(spliced.model.dtype)
    values = [state.values[embed][0, :n_pos].to(dtype)]
    starts = [columns.blocks["token", embed]]
    if ("position", embed) in columns.blocks:
        values.append(position_vectors(state)[:n_pos].to(dtype))
        starts.append(columns.blocks["position", embed])
    vectors = torch.stack(values, 1)
    order = torch.arange(n_pos)[:, None] + torch.tensor(starts)
    return Written(
        list(vectors), order.flatten().to(vectors.device), torch.zeros_like(values[0]), None
    )
