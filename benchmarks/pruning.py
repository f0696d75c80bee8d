"""Feature-edge ACDC in graph space: seconds, and that the answer is the sequential algorithm's.

    python -m benchmarks.pruning [--quick]

A random graph of 10,000 edges (900 features in 6 layers, 8 prompts) at thresholds from none kept to
nearly all kept: CPU-seconds each, the slowest as `seconds_10k_edges` in the last line, one JSON
object. On smaller random graphs the answer is compared with the definition, which runs the whole
graph for every edge; without --quick on more of them, with the time that both take.
"""

import argparse
import json
import time

import torch

from graphs.acdc_edges import acdc_edges, output_gap
from tests.graphs.frozen_graphs import one_at_a_time, random_graph

THRESHOLDS = (0.001, 0.01, 0.1, 0.5, 2.0)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 45 seconds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rows = [_timed(threshold) for threshold in THRESHOLDS]
    for row in rows:
        print("threshold {threshold:g}: {n_kept:,} edges kept, {seconds:.2f} CPU-s".format(**row))
    same, seconds, plain = _compared(3 if quick else 20)
    print(f"the definition's answer on {same} graphs: {seconds:.2f} CPU-s here, {plain:.2f} there")
    record = {
        "seconds_10k_edges": max(row["seconds"] for row in rows),
        "thresholds": rows,
        "graphs_equal_to_definition": same,
        "times_faster_than_definition": plain / seconds,
    }
    print(json.dumps(record))


def _timed(threshold: float) -> dict[str, float]:
    graph = random_graph(6, 150, 10_000, n_prompts=8)
    score = output_gap(graph.value[:, graph.outputs])
    start = time.process_time()
    kept = acdc_edges(graph, score=score, threshold=threshold)
    seconds = time.process_time() - start
    return {"threshold": threshold, "n_kept": int(kept.sum()), "seconds": seconds}


def _compared(n_graphs: int) -> tuple[int, float, float]:
    """How many graphs have the definition's answer (all, or it stops), and both times."""
    ours = plain = 0.0
    for seed in range(n_graphs):
        graph = random_graph(4, 20, 600, n_prompts=4, seed=seed)
        score = output_gap(graph.value[:, graph.outputs])
        start = time.process_time()
        found = acdc_edges(graph, score=score, threshold=0.1)
        middle = time.process_time()
        wanted = one_at_a_time(graph, score, 0.1)
        ours, plain = ours + middle - start, plain + time.process_time() - middle
        if not torch.equal(found, wanted):
            raise SystemExit(f"seed {seed}: the answer differs from the definition's")
    return n_graphs, ours, plain


if __name__ == "__main__":
    main()
