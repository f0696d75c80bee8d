"""Large graphs: their shape, and that no method's memory grows with the square of the nodes."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from attribution import Path as NodePath
from graphs import CircuitGraph, average_graphs
from graphs.edge_rows import edge_rows
from graphs.prune_paths import prune_paths
from tests.graphs.large_graphs import large_frozen, large_graph, random_paths

ROOT = Path(__file__).parents[2]


def test_the_graph_has_the_size_and_shape_it_says() -> None:
    graph = large_graph(3000, 30_000, seed=1)
    assert (graph.n_nodes, graph.n_edges) == (3000, 30_000)
    layer = torch.tensor([node.layer for node in graph.nodes])
    pos = torch.tensor([node.pos for node in graph.nodes])
    assert (layer[graph.edge_source] < layer[graph.edge_target]).all()
    assert (pos[graph.edge_source] <= pos[graph.edge_target]).all()
    degree = graph.edge_target.bincount(minlength=3000)[graph.is_kind("feature")].sort().values
    assert degree[-len(degree) // 10 :].sum() > 0.25 * degree.sum()
    again, other = large_graph(3000, 30_000, seed=1), large_graph(3000, 30_000, seed=2)
    assert torch.equal(graph.edge_attribution, again.edge_attribution)
    assert not torch.equal(graph.edge_attribution, other.edge_attribution)
    frozen = large_frozen(graph)
    outputs, _ = frozen.run(torch.ones(1, 30_000, dtype=torch.bool))
    assert torch.equal(outputs[0], frozen.value[:, frozen.outputs])
    with pytest.raises(ValueError, match="n_nodes must be at least 890"):
        large_graph(889, 10)


def test_edges_are_found_in_any_order() -> None:
    keys = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) * 3
    wanted = torch.tensor([0, 1, 2997, 2999, 3, 3, -1])
    found = edge_rows(keys, wanted)
    assert (found >= 0).tolist() == [True, False, True, False, True, True, False]
    assert keys[found[found >= 0]].tolist() == [0, 2997, 3, 3]
    assert edge_rows(keys[:0], wanted).tolist() == [-1] * 7


def test_paths_are_found_whatever_the_order_of_the_edges() -> None:
    graph = large_graph(1000, 3000)
    paths = random_paths(graph, 20)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    shuffled = CircuitGraph(
        graph.nodes,
        graph.edge_target[order],
        graph.edge_source[order],
        graph.edge_attribution[order],
        graph.metadata,
    )
    kept = prune_paths(shuffled, paths=paths, k=15)
    best = sorted(paths, key=lambda path: -abs(path.value))[:15]
    steps = {(a.id, b.id) for path in best for a, b in pairwise(path.nodes)}
    assert set(kept.digraph.edges) == steps
    turned = [NodePath(paths[0].nodes[::-1], 1.0)]
    with pytest.raises(ValueError, match=f"no edge {paths[0].nodes[-1].id} -> "):
        prune_paths(shuffled, paths=turned, k=1)


def test_the_mean_of_many_is_the_sum_in_their_order() -> None:
    graphs = [large_graph(1000, 3000, seed=0).select(_some(seed)) for seed in range(4)]
    mean = average_graphs(graphs).digraph
    for source, target in list(mean.edges)[::7]:
        parts = [
            g.digraph.edges[source, target]["attribution"]
            if g.digraph.has_edge(source, target)
            else 0.0
            for g in graphs
        ]
        wanted = torch.tensor(sum(parts) / 4, dtype=torch.float32)
        assert mean.edges[source, target]["attribution"] == float(wanted)


def _some(seed: int) -> torch.Tensor:
    kept = torch.rand(1000, generator=torch.Generator().manual_seed(seed)) < 0.8
    kept[-10:] = True  # the outputs
    return kept


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_goes_with_the_edges() -> None:
    """At most 60 MB and 400 bytes an edge; an adjacency matrix would take 256 MB."""
    command = [sys.executable, "-m", "benchmarks.pruning_scale", "--quick"]
    size = ["--nodes", "8000", "--edges", "40000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + size, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["n_nodes"], record["n_edges"], record["seed"]) == (8000, 40_000, 0)
    assert {"influence", "attribution", "paths", "save", "load"} < set(record["methods"])
    for name, row in record["methods"].items():
        assert row["peak_mb"] < 60 + 400 * 40_000 / 1e6, name
        assert row["seconds"] < 30, name
    assert record["methods"]["load"]["n_edges"] == 40_000
    assert record["methods"]["acdc-edges 0.01"]["n_edges"] < 40_000
