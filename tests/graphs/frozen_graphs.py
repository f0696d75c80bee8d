"""Random frozen graphs, and ACDC as it is defined: one removal, one run of the whole graph."""

import random

import torch
from jaxtyping import Bool
from torch import Tensor

from attribution.nodes import Node, NodeTable
from graphs.acdc_edges import OutputScore, edge_order
from graphs.frozen_graph import FrozenGraph


def random_graph(
    n_layers: int, per_layer: int, n_edges: int, *, n_prompts: int = 3, seed: int = 0
) -> FrozenGraph:
    """Layers of features over ten tokens, some patched to nothing, with one output."""
    generator, choose = torch.Generator().manual_seed(seed), random.Random(seed)
    tokens = [Node(kind="token", layer=-1, site="embed", pos=pos) for pos in range(10)]
    features = [
        Node(kind="feature", layer=layer, site="mlp", pos=choose.randrange(10), feature=i)
        for layer in range(n_layers)
        for i in range(per_layer)
    ]
    output = Node(kind="output", layer=n_layers, site="logit", pos=9)
    nodes = [*tokens, *features, output]
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < n_edges:
        source = choose.randrange(len(nodes) - 1)
        target = choose.choice([len(nodes) - 1, *[choose.randrange(10, len(nodes))] * 9])
        if nodes[source].layer < nodes[target].layer:
            pairs[target, source] = None
    target, source = torch.tensor(list(pairs)).T
    is_feature = torch.tensor([node.kind == "feature" for node in nodes])
    shape = (n_prompts, len(nodes))
    activation = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2
    activation *= is_feature
    clean = torch.randn(n_prompts, n_edges, generator=generator, dtype=torch.float64)
    clean = 0.3 * clean + torch.randn(n_edges, generator=generator, dtype=torch.float64)
    stays = torch.rand(shape, generator=generator) < 0.5
    other = torch.randn(n_prompts, n_edges, generator=generator, dtype=torch.float64)
    patched = torch.where(is_feature[source], clean * stays[:, source], other)
    total = torch.zeros(shape, dtype=torch.float64).index_add(1, target, clean)
    value = torch.where(is_feature, activation, total)
    threshold = 0.1 * is_feature.double().expand(shape)
    return FrozenGraph(
        NodeTable(nodes), target, source, clean, patched, value, activation, threshold
    )


def one_at_a_time(
    graph: FrozenGraph, score: OutputScore, threshold: float
) -> Bool[Tensor, " edge"]:
    """The definition: walk the edges, run the whole graph for each."""
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    current = float(score(graph.run(kept[None])[0])[0])
    for edge in edge_order(graph):
        tried = kept.clone()
        tried[edge] = False
        found = float(score(graph.run(tried[None])[0])[0])
        if found - current < threshold:
            kept, current = tried, found
    return kept
