"""Circuits of heads: attribution over all edges, and exact ACDC per candidate edge.

    python -m benchmarks.pruning_heads [--quick] [--layers L] [--batch N] [--search THRESHOLD]
                                       [--peers PYTHON [--eap-ig CHECKOUT]]

A model of GPT-2's shape with random weights (they cost what trained ones cost), prompts shaped like
the first IOI template: 15 tokens, clean and corrupted differing in three names. Attribution is EAP
over every edge, in processor seconds and in memory over the model (peak resident set). ACDC is
timed on readers at even steps through all edges: preparing a reader, shared by its edges, and one
candidate among several in a call. Once with every other edge kept, where most has to be computed
again, and once with one in twenty of those downstream, as late in a search; `--search` runs the
whole search instead. `--quick` takes fewer readers.

`--peers` is the Python of an environment with AutoCircuit 1.0.1 (transformer-lens 2.18, numpy
1.26), `--eap-ig` a checkout of EAP-IG: they run on the same weights, prompts and edges, and their
scores and kept edges are compared with ours (`peers_heads`). The last line is one JSON object.
"""

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.costs import costs
from benchmarks.peers_heads import beside_peers, names_swapped, random_gpt2, spread_readers
from circuits import SubjectModel
from circuits.precision import fast_float32
from graphs.heads import (
    EdgeRunner,
    HeadEdges,
    acdc_heads,
    edge_attribution,
    logit_difference,
    mean_kl,
)
from graphs.heads.partial import Visit

NOTED = {
    "eap_cpu_s_eap_ig": 16.8,
    "eap_cpu_s_auto_circuit": 19.0,
    "acdc_s_per_edge": 1.64,
    "acdc_cpu_s_per_edge": 1.78,
}
"""What peers took on this shape, batch 16, in an earlier run."""


def thinned(edges: HeadEdges, reader: int, share: float) -> Tensor:
    """All edges up to a reader, and a share of those downstream, drawn at random."""
    drawn = torch.rand(edges.exists.shape, generator=torch.Generator().manual_seed(2)) < share
    keep = edges.exists & drawn
    keep[: reader + 1] = edges.exists[: reader + 1]
    owner = edges.owner(reader)
    keep[edges.output, min(owner, edges.n_writers - 1)] = True
    return keep


def per_edge(
    runner: EdgeRunner, readers: list[int], share: float, n_candidates: int
) -> dict[str, float]:
    """Seconds an edge, the mean over readers, preparing a reader shared by all its edges."""
    score, found = mean_kl(runner.full_logits), []
    for reader in readers:
        keep = thinned(runner.edges, reader, share)
        added = runner.run(keep[None])[:, 0]
        writers = keep[reader].nonzero()[:, 0]
        rows = keep[reader].repeat(n_candidates, 1)
        for row, writer in zip(rows, writers.flip(0), strict=False):
            row[writer] = False
        visit = Visit(runner, keep, reader, added)
        first, _ = costs(lambda visit=visit, rows=rows: visit.logits(rows[:1]), 1)
        alone, _ = costs(lambda visit=visit, rows=rows: visit.logits(rows[:1]), 1)
        several, _ = costs(
            lambda visit=visit, rows=rows: [score(logits) for logits in visit.logits(rows)], 2
        )
        prepare = {clock: max(first[clock] - alone[clock], 0.0) for clock in ("cpu_s", "s")}
        found.append(
            {
                clock: several[clock] / n_candidates + prepare[clock] / len(writers)
                for clock in ("cpu_s", "s")
            }
        )
    return {clock: sum(one[clock] for one in found) / len(found) for clock in found[0]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    hf_model = random_gpt2(n_layer=options.layers)
    model = SubjectModel.from_transformers(hf_model, name="random gpt2")
    clean, corrupted, correct, wrong = names_swapped(options.batch, model.d_vocab)
    metric = logit_difference(correct, wrong)
    edges = HeadEdges(model.n_layers, model.n_heads, model.parallel)
    with torch.no_grad():
        model.run(clean[:1])
    eap, _ = costs(
        lambda: edge_attribution(model, clean, corrupted, metric), 2 if options.quick else 4
    )
    found = {
        "n_edges": edges.n_edges,
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "eap_cpu_s": eap["cpu_s"],
        "eap_s": eap["s"],
        "eap_mb_over_model": eap["added_mib"],
        "peers": NOTED,
    }
    runner = EdgeRunner.on_prompts(model, clean, corrupted)
    if options.search:
        score = mean_kl(runner.full_logits)
        start = time.perf_counter()
        kept = acdc_heads(model, clean, corrupted, score, threshold=options.search)
        found["search_s"] = time.perf_counter() - start
        found["search_s_per_edge"] = found["search_s"] / edges.n_edges
        found["search_kept"] = int(kept.sum())
    readers = spread_readers(edges, 4 if options.quick else 12)
    for name, share in (("all_kept", 1.0), ("one_in_20_kept", 0.05)):
        each = per_edge(runner, readers, share, options.candidates)
        found |= {f"acdc_{clock}_per_edge_{name}": seconds for clock, seconds in each.items()}
    for clock in ("cpu_s", "s"):
        peer = NOTED[f"acdc_{clock}_per_edge"]
        found[f"acdc_times_faster_{clock}"] = peer / found[f"acdc_{clock}_per_edge_all_kept"]
    return found


def show(found: dict[str, Any]) -> None:
    """One line a tool and shape, and whether the answers are the same."""
    for shape, tools in found.items():
        for tool, record in tools.items():
            print(f"{shape:6} {tool:20}", end="")
            print(f" EAP {record['eap']['cpu_s']:.2f} CPU-s +{record['eap']['added_mib']:.0f} MiB")
            for threshold, each in record.get("acdc", {}).items():
                print(f"{'':27} ACDC at {threshold}: {each['cpu_s']:.4f} CPU-s an edge")
            for name, value in record.get("against_ours", {}).items():
                print(f"{'':27} {name}: {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer readers and repetitions")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16, help="prompts")
    parser.add_argument("--candidates", type=int, default=4, help="removals in a call")
    parser.add_argument("--search", type=float, help="threshold of a whole search, in nats")
    parser.add_argument("--peers", help="Python of an environment with AutoCircuit 1.0.1")
    parser.add_argument("--eap-ig", help="checkout of EAP-IG, to run under --peers as well")
    options = parser.parse_args()
    if options.eap_ig and not options.peers:
        parser.error("--eap-ig needs --peers, the Python to run it under")
    with fast_float32(torch.device("cpu")):
        found = measure(options)
    for name, value in found.items():
        print(f"{name:34} {value}")
    if options.peers:
        found["beside_peers"] = beside_peers(options.peers, options.eap_ig)
        show(found["beside_peers"])
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
