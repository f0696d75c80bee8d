"""The columns of an attribution matrix: every source of the frozen model.

Input-dependent: which features are active is a matter of the prompt.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.nodes import Node
from circuits.sites import Site
from circuits.spliced import FrozenState, Placement, SplicedModel

__all__ = ["ActiveFeatures", "Columns", "bias_key", "index_columns", "position_vectors"]


@dataclass(frozen=True)
class ActiveFeatures:
    """The active features of one dictionary at one prompt, position by position.

    Attributes:
        features: their indices in the dictionary.
        activations: their activations.
        ends: how many of them are at positions before `p`, for `p` from 0 to the prompt's length.
        first_column: the column of the first; the others follow.
    """

    features: Int[Tensor, " active"]
    activations: Float[Tensor, " active"]
    ends: tuple[int, ...]
    first_column: int

    @property
    def columns(self) -> range:
        """The columns of all of them."""
        return range(self.first_column, self.first_column + len(self.features))

    def at(self, pos: int) -> slice:
        """The active features at one position."""
        return slice(self.ends[pos], self.ends[pos + 1])


@dataclass
class Columns:
    """Where each source's column is; per-position blocks (tokens, errors, ...) start at one."""

    nodes: list[Node] = field(default_factory=list)
    features: dict[Site, ActiveFeatures] = field(default_factory=dict)
    blocks: dict[tuple[str, Site], int] = field(default_factory=dict)
    biases: dict[str, int] = field(default_factory=dict)

    def feature_columns(self, device: torch.device) -> Int[Tensor, " feature"]:
        """The columns of all features, which follow one another in the order of computation."""
        active = list(self.features.values())
        first = active[0].first_column if active else 0
        n_features = sum(len(a.features) for a in active)
        return torch.arange(first, first + n_features, device=device)


def index_columns(spliced: SplicedModel, state: FrozenState) -> Columns:
    """Lay out the columns: tokens, positions, features, errors, held MLPs, biases."""
    model, columns = spliced.model, Columns()
    _add_inputs(columns, state)
    placements = _in_order(spliced)
    for placement in placements:
        _add_features(columns, placement, state.activations[placement.write][0])
    for placement in placements:
        _add_block(columns, "error", placement.write, placement.site, state.n_pos)
    for site in spliced.held_mlps():
        _add_block(columns, "sublayer", site, "mlp", state.n_pos)
    for layer in range(model.n_layers):
        _add_bias(columns, f"attn{layer}", "attn", layer)
        _add_bias(columns, f"mlp{layer}", "mlp", layer)
    for placement in placements:
        if placement.site != "mlp":
            _add_bias(columns, bias_key(placement), placement.site, placement.write.layer)
    _add_bias(columns, "final", "final", model.n_layers)
    _add_bias(columns, "target", "target", -1)
    return columns


def bias_key(placement: Placement) -> str:
    """Where constants of a dictionary are booked; transcoders stand for MLPs, and so theirs do."""
    return f"{placement.site}{placement.write.layer}"


def _in_order(spliced: SplicedModel) -> list[Placement]:
    order = ("resid_pre", "attn_out", "mlp_raw_out", "mlp_out", "resid_post")
    placements = spliced.placements.values()
    return sorted(placements, key=lambda p: (p.write.layer, order.index(p.write.kind)))


def _add_inputs(columns: Columns, state: FrozenState) -> None:
    embed = Site("embed")
    columns.blocks["token", embed] = len(columns.nodes)
    for pos, token in enumerate(state.tokens[0].tolist()):
        columns.nodes.append(
            Node(kind="token", layer=-1, site="embed", pos=pos, feature=token, activation=1.0)
        )
    if position_vectors(state).any():
        columns.blocks["position", embed] = len(columns.nodes)
        for pos in range(state.n_pos):
            columns.nodes.append(
                Node(kind="position", layer=-1, site="embed", pos=pos, activation=1.0)
            )


def position_vectors(state: FrozenState) -> Float[Tensor, "pos d_model"]:
    """What enters the residual stream besides the token embedding (zero with rotary positions)."""
    return (state.read(Site("resid_pre", 0)) - state.values[Site("embed")])[0]


def _add_features(
    columns: Columns, placement: Placement, activations: Float[Tensor, "pos feature"]
) -> None:
    positions, features = activations.nonzero(as_tuple=True)
    values = activations[positions, features]
    counts = torch.bincount(positions, minlength=len(activations)).cumsum(0)
    columns.features[placement.write] = ActiveFeatures(
        features, values, (0, *counts.tolist()), len(columns.nodes)
    )
    layer, site = placement.write.layer, placement.site
    columns.nodes.extend(
        Node(kind="feature", layer=layer, site=site, pos=pos, feature=feature, activation=value)
        for pos, feature, value in zip(
            positions.tolist(), features.tolist(), values.tolist(), strict=True
        )
    )


def _add_block(columns: Columns, kind: str, site: Site, name: str, n_pos: int) -> None:
    columns.blocks[kind, site] = len(columns.nodes)
    columns.nodes.extend(
        Node(kind=kind, layer=site.layer, site=name, pos=pos)  # type: ignore[arg-type]
        for pos in range(n_pos)
    )


def _add_bias(columns: Columns, key: str, site: str, layer: int) -> None:
    columns.biases[key] = len(columns.nodes)
    columns.nodes.append(Node(kind="bias", layer=layer, site=site, pos=-1))
