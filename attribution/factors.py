"""Every edge as a sum over paths, and every path as input-dependent x input-invariant.

Design 2.5: direct, through each single head, and one exact remainder (through several heads, or a
linear skip). A path's share of an edge is

    activation * attention / product of norm denominators * virtual weight

and the virtual weight is input-invariant where the source's vector is: for features (a cross-layer
one has the sum of what it writes on that path), tokens and learned positions. What errors and held
MLPs write is input-dependent, and so is their weight.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.invariant.routes import Head
from attribution.nodes import Node, NodeTable
from attribution.path_walk import Walk, held_scales
from attribution.targets import Readout
from attribution.trace import Trace
from circuits.spliced import FrozenState, SplicedModel

__all__ = ["EdgeFactors", "PathFactors", "PathSplit", "factorise", "split_by_path"]


@dataclass(frozen=True)
class PathFactors:
    """One path of an edge.

    Attributes:
        head: (layer, head) on the way; None for the direct path.
        activation: of the source; 1 for tokens, positions, errors and held MLPs.
        attention: the pattern from the target's position to the source's; 1 for the direct path.
        scales: norm denominators on the way, by norm, layer and position.
        virtual_weight: `<what the target reads, what the source writes>`, norm gains folded in.
        invariant: whether the virtual weight is made of weights alone.
    """

    head: Head | None
    activation: float
    attention: float
    scales: Mapping[str, float]
    virtual_weight: float
    invariant: bool

    @property
    def input_dependent(self) -> float:
        """`activation * attention / product of denominators`."""
        return self.activation * self.attention / prod(self.scales.values())

    @property
    def value(self) -> float:
        """The path's share of the edge."""
        return self.input_dependent * self.virtual_weight


@dataclass(frozen=True)
class EdgeFactors:
    """An edge; its paths, strongest first; what goes through several heads or a linear skip."""

    target: Node
    source: Node
    edge: float
    paths: tuple[PathFactors, ...]
    remainder: float


@dataclass(frozen=True, eq=False)
class PathSplit:
    """All edges into one target, split over paths.

    Bias nodes stand for all positions at once and are not split: theirs is all remainder.

    Attributes:
        target: the target.
        sources: the columns.
        edges: the row of the trace.
        heads: of each path the head; None for the direct path.
        activations: of each source; 1 for tokens, positions, errors and held MLPs.
        attention: the pattern from the target's position to each source's; 1 or 0 for the direct
            path, which stays at its position.
        virtual_weights: `<what the target reads, what the source writes>` along each path; 0 where
            the path does not start.
        denominators: the product of the norm denominators on the way.
        scales: these denominators one by one: every norm of the model at every position.
        reads_through: the norm in front of the target, if any.
        before_post_norm: layers whose MLP, or what replaces it, writes before a post-norm.
    """

    target: Node
    sources: NodeTable
    edges: Float[Tensor, " source"]
    heads: tuple[Head | None, ...]
    activations: Float[Tensor, " source"]
    attention: Float[Tensor, "path source"]
    virtual_weights: Float[Tensor, "path source"]
    denominators: Float[Tensor, "path source"]
    scales: Mapping[str, Float[Tensor, " pos"]]
    reads_through: str | None
    before_post_norm: frozenset[int]

    @property
    def values(self) -> Float[Tensor, "path source"]:
        """Each path's share of each edge."""
        return self.activations * self.attention / self.denominators * self.virtual_weights

    @property
    def remainder(self) -> Float[Tensor, " source"]:
        """What goes through several heads or a linear skip."""
        return self.edges - self.values.sum(0)

    def edge(self, source: str) -> EdgeFactors:
        """The paths of the edge from one source, with every factor.

        Raises:
            KeyError: if no source has that id.
        """
        column = self.sources.row(source)
        node, values = self.sources[column], self.values[:, column]
        order = values.abs().argsort(descending=True, stable=True).tolist()
        paths = tuple(self._path(i, column) for i in order if values[i] != 0)
        return EdgeFactors(
            self.target, node, float(self.edges[column]), paths, float(self.remainder[column])
        )

    def _path(self, path: int, column: int) -> PathFactors:
        head, node = self.heads[path], self.sources[column]
        return PathFactors(
            head,
            float(self.activations[column]),
            float(self.attention[path, column]),
            self._scales_on(head, node),
            float(self.virtual_weights[path, column]),
            node.kind not in ("error", "sublayer"),
        )

    def _scales_on(self, head: Head | None, source: Node) -> dict[str, float]:
        """Denominators in front of the target, around the head, and behind the source."""
        norms = [] if self.reads_through is None else [(self.reads_through, self.target.pos)]
        if head is not None:
            norms += [(f"ln1_post.{head[0]}", self.target.pos), (f"ln1.{head[0]}", source.pos)]
        if source.site == "mlp" and source.layer in self.before_post_norm:
            norms.append((f"ln2_post.{source.layer}", source.pos))
        return {
            f"{name}@{pos}": float(self.scales[name][pos])
            for name, pos in norms
            if name in self.scales
        }


def factorise(
    spliced: SplicedModel, trace: Trace, edges: Iterable[tuple[str, str]]
) -> list[EdgeFactors]:
    """Edges as sums over paths of products of factors (design 2.5).

    Args:
        spliced: the model that the trace is of.
        trace: what `attribute` returned.
        edges: (target id, source id) of each edge.

    Raises:
        KeyError: if the trace has no such target or source.
        ValueError: if a post-norm follows a cross-layer transcoder.
    """
    wanted = list(edges)
    with torch.no_grad():
        state = spliced.state(trace.tokens[None], trace.mode)
        splits = {t: _split(spliced, trace, t, state) for t in dict.fromkeys(t for t, _ in wanted)}
    return [splits[target].edge(source) for target, source in wanted]


def split_by_path(spliced: SplicedModel, trace: Trace, target: str) -> PathSplit:
    """All edges into one target, split over the direct path and every single head.

    Args:
        spliced: the model that the trace is of.
        trace: what `attribute` returned.
        target: id of the target.

    Raises:
        KeyError: if the trace has no such target.
        ValueError: if a post-norm follows a cross-layer transcoder.
    """
    with torch.no_grad():
        state = spliced.state(trace.tokens[None], trace.mode)
        return _split(spliced, trace, target, state)


def _split(spliced: SplicedModel, trace: Trace, target: str, state: FrozenState) -> PathSplit:
    _check_one_denominator(spliced)
    row = trace.targets.row(target)
    readout = _readout(spliced, trace, row)
    walk = Walk(spliced, state, readout)
    walk.down()
    return PathSplit(
        trace.targets[row],
        trace.sources,
        trace.blocks.row(row),
        tuple(walk.heads),
        walk.activations,
        torch.stack(walk.attention),
        torch.stack(walk.virtual_weights),
        torch.stack(walk.denominators),
        held_scales(spliced.model, state),
        walk.reads_through,
        frozenset(
            layer
            for layer in range(spliced.model.n_layers)
            if spliced.mlp_site(layer).kind == "mlp_raw_out"
            and spliced.model.norm("ln2_post", layer) is not None
        ),
    )


def _check_one_denominator(spliced: SplicedModel) -> None:
    """Refuse features whose writes along one path pass different norm denominators."""
    for write, placement in spliced.placements.items():
        normed = write.kind == "mlp_raw_out" and spliced.model.norm("ln2_post", write.layer)
        if placement.dictionary.n_writes > 1 and normed:
            raise ValueError(
                f"{spliced.model.name!r} normalises what each MLP writes (a post-norm), with one "
                f"denominator a layer, so a path from a feature of the cross-layer transcoder "
                f"mlp.{write.layer} is no product of one virtual weight and one set of "
                "denominators; its edges are in the trace, whole"
            )


def _readout(spliced: SplicedModel, trace: Trace, row: int) -> Readout:
    """What a target of a trace reads, and where."""
    if row < len(trace.outputs):
        return trace.outputs[row]
    node = trace.targets[row]
    placement = spliced.placements[spliced.write_site(f"{node.site}.{node.layer}")]
    vector = placement.dictionary.W_enc[:, node.feature]
    return Readout(node.id, placement.read, node.pos, vector, 0.0)
