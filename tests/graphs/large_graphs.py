"""Synthetic circuit graphs in the shape of real ones, of any size, drawn without a Python loop over
edges.

Layers of features at positions, with tokens, positions, errors, biases and ten outputs; sources
lie in lower layers and at no later position. In- and out-degrees and attributions are log-normal,
so a few nodes and edges carry most; a tenth of the edges runs to the outputs.
"""

import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.effects.paths import Path
from attribution.nodes import Node, NodeTable
from graphs.circuit_graph import CircuitGraph, GraphMetadata
from graphs.frozen_graph import FrozenGraph

__all__ = ["large_frozen", "large_graph", "random_paths"]

N_LAYERS, N_POS, N_OUTPUTS = 24, 32, 10
_OUTPUT_SHARE = 0.1
_CANCELLATION = 3.0
_FIRES_ABOVE = 0.1


def _large_nodes(n_nodes: int, *, seed: int = 0) -> NodeTable:
    """Tokens, positions, features (lower layers first), errors, biases, outputs.

    Raises:
        ValueError: if there is no room for a feature a layer.
    """
    places = [(layer, pos) for layer in range(N_LAYERS) for pos in range(N_POS)]
    n_features = n_nodes - 2 * N_POS - len(places) - N_LAYERS - N_OUTPUTS
    if n_features < N_LAYERS:
        raise ValueError(f"n_nodes must be at least {n_nodes - n_features + N_LAYERS}")
    choose = random.Random(seed)
    return NodeTable(
        [Node(kind="token", layer=-1, site="embed", pos=p, feature=p) for p in range(N_POS)]
        + [Node(kind="position", layer=-1, site="pos_embed", pos=p) for p in range(N_POS)]
        + [
            Node(
                kind="feature",
                layer=i * N_LAYERS // n_features,
                site="mlp",
                pos=choose.randrange(N_POS),
                feature=i,
                activation=choose.lognormvariate(0.0, 0.5),
            )
            for i in range(n_features)
        ]
        + [Node(kind="error", layer=layer, site="mlp", pos=pos) for layer, pos in places]
        + [Node(kind="bias", layer=layer, site="mlp", pos=-1) for layer in range(N_LAYERS)]
        + [
            Node(kind="output", layer=N_LAYERS, site=f"logit{i}", pos=N_POS - 1, activation=10.0)
            for i in range(N_OUTPUTS)
        ]
    )


def large_graph(n_nodes: int, n_edges: int, *, seed: int = 0) -> CircuitGraph:
    """A circuit graph of that size; edges in the order of (target, source), as `build_graph`'s."""
    nodes = _large_nodes(n_nodes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    target, source = _pairs(nodes, n_edges, generator)
    size = torch.randn(n_edges, generator=generator, dtype=torch.float64).mul(2).exp()
    sign = torch.randint(2, (n_edges,), generator=generator) * 2 - 1
    total = torch.zeros(n_nodes, dtype=torch.float64).index_add(0, target, size)
    activation = torch.tensor([node.activation for node in nodes], dtype=torch.float64)
    share = size / total[target]
    return CircuitGraph(
        nodes,
        target,
        source,
        (sign * share * _CANCELLATION * activation[target]).float(),
        GraphMetadata(
            model="synthetic",
            prompt="synthetic",
            tokens=tuple("synthetic"),
            n_layers=N_LAYERS,
            target="logits",
        ),
    )


def large_frozen(graph: CircuitGraph, *, seed: int = 0) -> FrozenGraph:
    """The same graph for one prompt that can be run; most features are off on its counterpart."""
    generator = torch.Generator().manual_seed(seed + 1)
    n_nodes = graph.n_nodes
    is_feature, is_output = graph.is_kind("feature"), graph.is_kind("output")
    fixed = graph.is_kind("position", "bias", "output")
    stays = torch.rand(n_nodes, generator=generator, dtype=torch.float64).sub(0.6).clamp_min(0) * 3
    other = torch.where(is_feature, stays, torch.randn(n_nodes, generator=generator).double())
    clean = graph.edge_attribution.double()
    patched = clean * torch.where(fixed, 1.0, other)[graph.edge_source]
    held = torch.tensor([node.activation for node in graph.nodes], dtype=torch.float64)
    total = torch.zeros(n_nodes, dtype=torch.float64).index_add(0, graph.edge_target, clean)
    threshold = torch.where(is_feature, _FIRES_ABOVE, torch.inf).double()
    return FrozenGraph(
        graph.nodes,
        graph.edge_target,
        graph.edge_source,
        clean[None],
        patched[None],
        torch.where(is_output, total, held)[None],
        torch.where(is_feature, held, 0.0)[None],
        threshold[None],
    )


def _pairs(
    nodes: NodeTable, n_edges: int, generator: torch.Generator
) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"]]:
    """Distinct (target, source) rows, sorted: drawn by weight, the impossible ones thrown away."""
    layer = torch.tensor([node.layer for node in nodes])
    pos = torch.tensor([node.pos for node in nodes])
    is_output = torch.tensor([node.kind == "output" for node in nodes])
    receives = is_output | torch.tensor([n.kind == "feature" and n.layer > 0 for n in nodes])
    weight = _heavy(len(nodes), generator) * receives
    weight[is_output] = _OUTPUT_SHARE / (1 - _OUTPUT_SHARE) * weight[~is_output].sum() / N_OUTPUTS
    by_layer = torch.sort(torch.where(is_output, N_LAYERS + 1, layer), stable=True)
    mass = _heavy(len(nodes), generator)[by_layer.indices].cumsum(0)
    below = torch.searchsorted(by_layer.values, layer)  # how many nodes lie in lower layers
    keys = torch.empty(0, dtype=torch.long)
    while len(keys) < n_edges:
        want = 3 * (n_edges - len(keys)) + 1000
        drawn = torch.rand(2, want, generator=generator, dtype=torch.float64)
        reach = weight.cumsum(0)
        target = torch.searchsorted(reach, drawn[0] * reach[-1])
        up_to = mass[below[target] - 1]
        source = by_layer.indices[torch.searchsorted(mass, drawn[1] * up_to)]
        found = (target * len(nodes) + source)[pos[source] <= pos[target]]
        keys = torch.cat([keys, found]).unique()
    keys = keys[torch.randperm(len(keys), generator=generator)[:n_edges].sort().values]
    return keys // len(nodes), keys % len(nodes)


def _heavy(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    return torch.randn(n, generator=generator, dtype=torch.float64).mul(1.0).exp()


def random_paths(graph: CircuitGraph, k: int, *, seed: int = 0) -> list[Path]:
    """Walks from the outputs back to a node without edges into it, of random value.

    Args:
        graph: with its edges sorted by target.
        k: how many.
        seed: of the walks.
    """
    choose = random.Random(seed)
    rows = torch.arange(graph.n_nodes + 1)
    starts = torch.searchsorted(graph.edge_target.contiguous(), rows).tolist()
    outputs = graph.nodes.where(kind="output")
    paths = []
    for _ in range(k):
        trail = [choose.choice(outputs)]
        while starts[trail[-1]] < starts[trail[-1] + 1]:
            edge = choose.randrange(starts[trail[-1]], starts[trail[-1] + 1])
            trail.append(int(graph.edge_source[edge]))
        paths.append(Path(tuple(graph.nodes[row] for row in reversed(trail)), choose.random()))
    return paths
