"""What every source writes into the residual stream, place by place and position by position.

A feature writes its activation times its decoder direction; whatever lies between a place and the
residual stream (a norm after the MLP) is held and applied here. Input-dependent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.columns import Columns, position_vectors
from attribution.frozen import norm_scale, working_dtype
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel
from circuits.subject import Norm

__all__ = ["Written", "written_by_dictionary", "written_by_held_mlp", "written_by_inputs"]


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
    dictionary, active = spliced.placements[write].dictionary, columns.features[write]
    dtype = working_dtype(spliced.model.dtype)
    n = active.ends[n_pos]
    vectors = dictionary.W_dec[active.features[:n]].to(dtype)
    vectors *= active.activations[:n, None]
    errors = state.errors[write][0, :n_pos].to(dtype)
    constant = dictionary.b_dec.to(dtype).expand(n_pos, -1)
    bias = str(write)
    if write.kind == "mlp_raw_out":
        bias = f"mlp{write.layer}"
        norm = spliced.model.norm("ln2_post", write.layer)
        if norm is not None:
            norm = norm.to(dtype)
            scale = norm_scale(state, "ln2_post", write.layer, dtype)[:n_pos]
            counts = torch.tensor(active.ends[: n_pos + 1], device=vectors.device).diff()
            vectors = norm.linear(vectors, scale.repeat_interleave(counts, 0))
            errors = norm.linear(errors, scale)
            constant = norm.linear(constant, scale) + norm.bias
    per_position = [torch.cat([vectors[active.at(p)], errors[p : p + 1]]) for p in range(n_pos)]
    of_feature = torch.arange(n, device=vectors.device) + active.first_column
    of_error = torch.arange(n_pos, device=vectors.device) + columns.blocks["error", write]
    order = [torch.cat([of_feature[active.at(p)], of_error[p : p + 1]]) for p in range(n_pos)]
    return Written(per_position, torch.cat(order), constant, bias)


def written_by_held_mlp(
    spliced: SplicedModel, state: FrozenState, columns: Columns, site: Site, n_pos: int
) -> Written:
    """The output of an MLP that no transcoder replaces, held."""
    model, layer = spliced.model, site.layer
    dtype = working_dtype(model.dtype)
    values = state.values[site][0, :n_pos].to(dtype)
    norm: Norm | None = model.norm("ln2_post", layer)
    constant, bias = torch.zeros_like(values), None
    if norm is not None:
        norm = norm.to(dtype)
        values = norm.linear(values, norm_scale(state, "ln2_post", layer, dtype)[:n_pos])
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
