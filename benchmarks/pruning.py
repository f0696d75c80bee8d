"""Feature-edge ACDC in graph space and live: seconds, model calls, and what the circuits do.

    python -m benchmarks.pruning [--quick] [--stories MODEL DICTIONARIES]

A random graph of 10,000 edges (900 features in 6 layers, 8 prompts) at thresholds from none kept to
nearly all kept: CPU-seconds each, the slowest as `seconds_10k_edges` in the last line, one JSON
object. On smaller random graphs the answer is compared with the definition, which runs the whole
graph for every edge; without --quick on more of them, with the time that both take.

On the tasks of `tiny` (greater-than and IOI; with --quick a smaller graph of the first), and with
--stories on IOI of a model of children's stories, both algorithms begin with the same edges, and
the live model judges both circuits on other prompts (`benchmarks.pruning_live`). The target is that
the circuit of graph space is at most 0.02 less faithful than the live one of its size.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.pruning_live import compare, prepare
from case_studies.tasks.greater_than import GreaterThanTask
from case_studies.tasks.ioi import IoiTask
from case_studies.tasks.task import Task
from circuits import SplicedModel, load_dictionaries, load_model
from graphs.acdc_edges import acdc_edges, output_gap
from tests.graphs.frozen_graphs import one_at_a_time, random_graph

_TOLD = (
    "{model} {task}, from {start_edges:,} edges: live {live_edges:,} edges, faithfulness "
    "{live_faithfulness:.3f}, {live_seconds:.1f} CPU-s, {live_model_calls:,} calls; graph space "
    "{graph_edges:,} edges, {graph_faithfulness:.3f}, {graph_seconds:.2f} CPU-s"
)
THRESHOLDS = (0.001, 0.01, 0.1, 0.5, 2.0)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 45 seconds")
    parser.add_argument("--stories", nargs=2, metavar=("MODEL", "DICTIONARIES"), help="folders")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    rows = [_timed(threshold) for threshold in THRESHOLDS]
    for row in rows:
        print("threshold {threshold:g}: {n_kept:,} edges kept, {seconds:.2f} CPU-s".format(**row))
    same, seconds, plain = _compared(3 if quick else 20)
    print(f"the definition's answer on {same} graphs: {seconds:.2f} CPU-s here, {plain:.2f} there")
    tasks = list(_tasks(quick, arguments.stories))
    record = {
        "seconds_10k_edges": max(row["seconds"] for row in rows),
        "thresholds": rows,
        "graphs_equal_to_definition": same,
        "times_faster_than_definition": plain / seconds,
        "tasks": tasks,
        "live_faithfulness_gap": max(
            t["live_faithfulness"] - t["graph_faithfulness"] for t in tasks
        ),
        "target_gap": 0.02,
    }
    print(json.dumps(record))


def _tasks(quick: bool, stories: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Both algorithms on every task, printed as they are done."""
    tiny = SplicedModel(load_model("tiny"), load_dictionaries("tiny"))
    wanted: list[tuple[str, SplicedModel, Task]] = [("tiny", tiny, GreaterThanTask())]
    if not quick:
        wanted.append(("tiny", tiny, IoiTask()))
    if stories:
        spliced = SplicedModel(load_model(stories[0]), load_dictionaries(stories[1]))
        wanted.append(("stories15m", spliced, IoiTask(frames="story")))
    for name, spliced, task in wanted:
        setting = prepare(
            spliced,
            task,
            n_choosing=4 if quick else 8,
            n_proof=16 if quick else 32,
            node_threshold=0.5 if quick else 0.8,
        )
        for row in compare(setting, (0.01,) if quick else (0.003, 0.0003)):
            found = {"model": name, "task": task.name, **row}
            print(_TOLD.format(**found))
            yield found


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
