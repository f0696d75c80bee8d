"""Graphs of 100,000 nodes and 5 million edges: CPU-seconds and memory of every method, one prompt.

    python -m benchmarks.pruning_scale [--quick] [--nodes N --edges E] [--seed S]

A synthetic graph in the shape of a real one (`tests.graphs.large_graphs`), made once; then every
method in a process of its own, forked from there. Its memory is the peak resident set over what the
process began with, which is the graph and its frozen form, and holds the result. One JSON object in
the last line: seconds and MB per method, sizes, seed, and the machine. Linux only.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from graphs import CircuitGraph, average_graphs, prune
from graphs.acdc_edges import walk_order
from tests.graphs.large_graphs import large_frozen, large_graph, random_paths

FULL, QUICK = (100_000, 5_000_000), (10_000, 200_000)
THRESHOLDS = {FULL: (0.01, 1e-4, 1e-5), QUICK: (0.01, 1e-4)}
_PAGE = resource.getpagesize()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller graph, under 45 seconds")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--edges", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if asked.quick else FULL
    n_nodes, n_edges = asked.nodes or size[0], asked.edges or size[1]
    start = _resident()
    graph = large_graph(n_nodes, n_edges, seed=asked.seed)
    graph_mb = (_resident() - start) / 1e6
    print(f"{graph}: {graph_mb:.0f} MB")
    methods = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in _work(graph, Path(folder), asked.seed, THRESHOLDS[size]):
            methods[name] = row = _measured(work)
            told = f"{row['n_nodes']:,} nodes, {row['n_edges']:,} edges left"
            print(f"{name}: {row['seconds']:.2f} CPU-s, {row['peak_mb']:.0f} MB; {told}")
    record = {
        "n_nodes": n_nodes,
        "n_edges": n_edges,
        "n_prompts": 1,
        "seed": asked.seed,
        "graph_mb": round(graph_mb),
        "peak_mb": max(row["peak_mb"] for row in methods.values()),
        "methods": methods,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
    }
    print(json.dumps(record))


def _work(
    graph: CircuitGraph, folder: Path, seed: int, thresholds: tuple[float, ...]
) -> Iterator[tuple[str, Callable[[], CircuitGraph]]]:
    """What is measured, by name; what it needs beside the graph is made before it is yielded."""
    generator = torch.Generator().manual_seed(seed)
    half = graph.is_kind("output") | (torch.rand(graph.n_nodes, generator=generator) < 0.5)
    yield "select", lambda: graph.select(half)
    yield "influence", lambda: prune(graph, method="influence")
    effects = torch.randn(graph.n_nodes, generator=generator).mul(2).exp()
    yield "attribution", lambda: prune(graph, method="attribution", effects=effects, fraction=0.9)
    paths = random_paths(graph, 2000, seed=seed)
    yield "paths", lambda: prune(graph, method="paths", paths=paths, k=1000)
    file = folder / "graph.json"
    yield "save", lambda: _saved(graph, file)
    yield "load", lambda: CircuitGraph.load(file)
    frozen = large_frozen(graph, seed=seed)
    yield "walk_order", lambda: _ordered(graph, walk_order(frozen))
    for threshold in thresholds:
        yield (
            f"acdc-edges {threshold:g}",
            lambda tau=threshold: prune(graph, method="acdc-edges", frozen=frozen, threshold=tau),
        )
    other = large_graph(graph.n_nodes, graph.n_edges, seed=seed + 1)
    yield "average of two", lambda: average_graphs([graph, other])


def _saved(graph: CircuitGraph, file: Path) -> CircuitGraph:
    graph.save(file)
    return graph


def _ordered(graph: CircuitGraph, order: torch.Tensor) -> CircuitGraph:
    assert len(order) == graph.n_edges
    return graph


def _measured(work: Callable[[], CircuitGraph]) -> dict[str, Any]:
    """Seconds and memory of `work` in a fork of this process, and the size of what it returns.

    Raises:
        RuntimeError: if it fails.
    """
    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()

    def child() -> None:
        before, start = _resident(), time.process_time()
        result = work()
        seconds = time.process_time() - start
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told = {"seconds": round(seconds, 2), "peak_mb": round((peak - before) / 1e6, 1)}
        answer.put(told | {"n_nodes": result.n_nodes, "n_edges": result.n_edges})

    gc.collect()
    process = fork.Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a method failed with exit code {process.exitcode}; see above")
    return answer.get()


def _resident() -> int:
    """Bytes of this process in memory."""
    return _PAGE * int(Path("/proc/self/statm").read_text().split()[1])


if __name__ == "__main__":
    main()
