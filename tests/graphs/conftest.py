"""Small graphs written by hand, and random layered ones, for every test of `graphs`."""

from collections.abc import Callable, Mapping

import pytest
import torch

from attribution.nodes import Node, NodeTable
from graphs import CircuitGraph, GraphMetadata

TOKENS = ("<|bos|>", " The", " year", "\n")
N_LAYERS = 3
OUTPUT_LAYER = N_LAYERS


def spell(name: str) -> Node:
    """A node from a short name: t1 p1 (inputs at 1), f0.5 e0 s0 b0 (layer 0), o.logit."""
    kind, rest = name[0], name[1:]
    match kind:
        case "t":
            return Node(kind="token", layer=-1, site="embed", pos=int(rest), feature=7)
        case "p":
            return Node(kind="position", layer=-1, site="pos_embed", pos=int(rest))
        case "f":
            layer, feature = rest.split(".")
            return Node(
                kind="feature",
                layer=int(layer),
                site="mlp",
                pos=1,
                feature=int(feature),
                activation=1.5,
            )
        case "e":
            return Node(kind="error", layer=int(rest), site="mlp", pos=1)
        case "s":
            return Node(kind="sublayer", layer=int(rest), site="mlp", pos=1)
        case "b":
            return Node(kind="bias", layer=int(rest), site="mlp", pos=-1)
        case "o":
            site = rest.removeprefix(".")
            return Node(kind="output", layer=OUTPUT_LAYER, site=site, pos=3, activation=2.0)
    raise KeyError(name)


def build(
    names: str, edges: Mapping[tuple[str, str], float], dtype: torch.dtype = torch.float32
) -> CircuitGraph:
    """A graph from names in order and {(source, target): attribution}."""
    order = names.split()
    pairs = [(order.index(target), order.index(source)) for source, target in edges]
    rows = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return CircuitGraph(
        nodes=NodeTable([spell(name) for name in order]),
        edge_target=rows[:, 0],
        edge_source=rows[:, 1],
        edge_attribution=torch.tensor(list(edges.values()), dtype=dtype),
        metadata=GraphMetadata(
            model="toy", prompt="".join(TOKENS), tokens=TOKENS, n_layers=N_LAYERS, target="logit"
        ),
    )


def build_random(seed: int, n_features: int = 12, density: float = 0.5) -> CircuitGraph:
    """A random layered graph with every kind of node, two outputs, and both signs."""
    generator = torch.Generator().manual_seed(seed)
    features = [f"f{i * N_LAYERS // n_features}.{i}" for i in range(n_features)]
    order = ["t0", "t1", "p0", "b0", *features, "e0", "e1", "s2", "o.a", "o.b"]
    layer = {name: spell(name).layer for name in order}
    targets = [name for name in order if name[0] in "fo"]
    sources = [name for name in order if name[0] != "o"]
    edges = {}
    for target in targets:
        for source in sources:
            before = layer[source] < layer[target] or (source[0] == "b" and target[0] == "o")
            if before and float(torch.rand((), generator=generator)) < density:
                edges[source, target] = float(torch.randn((), generator=generator))
    return build(" ".join(order), edges)


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., CircuitGraph]:
    return build


@pytest.fixture(scope="session")
def random_graph() -> Callable[..., CircuitGraph]:
    return build_random


@pytest.fixture
def chain() -> CircuitGraph:
    """Token and error feed a feature, which feeds the output beside a second token."""
    return build(
        "t0 t1 e0 f1.3 o.logit",
        {
            ("t0", "f1.3"): 3.0,
            ("e0", "f1.3"): -1.0,
            ("f1.3", "o.logit"): 1.5,
            ("t1", "o.logit"): 0.5,
        },
    )
