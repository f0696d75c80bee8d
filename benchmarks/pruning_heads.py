"""Circuits of heads: attribution over all edges, and exact ACDC per candidate edge.

    python -m benchmarks.pruning_heads [--quick] [--layers L] [--batch N] [--search THRESHOLD]

A model of GPT-2's shape with random weights (they cost what trained ones cost), prompts shaped like
the first IOI template: 15 tokens, clean and corrupted differing in three names. Attribution is EAP
over every edge, in processor seconds and in memory over the model (peak resident set). ACDC is
timed on readers at even steps through all edges: preparing a reader, shared by its edges, and one
candidate among several in a call. Once with every other edge kept, where most has to be computed
again, and once with one in twenty of those downstream, as late in a search; `--search` runs the
whole search instead. `--quick` takes fewer readers. The last line is one JSON object.

Peers on the same shape, batch 16, processor seconds: EAP 16.8 (EAP-IG) and 19.0 (auto-circuit),
ACDC 1.64 seconds by the clock and 1.78 processor seconds an edge (auto-circuit).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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

N_TOKENS, SLOTS = 15, (2, 4, 10)
PEERS = {
    "eap_cpu_s_eap_ig": 16.8,
    "eap_cpu_s_auto_circuit": 19.0,
    "acdc_s_per_edge": 1.64,
    "acdc_cpu_s_per_edge": 1.78,
}


def random_gpt2(n_layers: int) -> SubjectModel:
    """GPT-2 small, of fewer or as many layers, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=n_layers)
    config._attn_implementation = "eager"
    return SubjectModel.from_transformers(GPT2LMHeadModel(config), name="random gpt2")


def names_swapped(batch: int, d_vocab: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean and corrupted prompts, and the tokens of indirect object and subject."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randperm(d_vocab, generator=generator)
    filler, names = drawn[:N_TOKENS], drawn[N_TOKENS : N_TOKENS + 100]
    clean, corrupted = filler.repeat(batch, 1), filler.repeat(batch, 1)
    chosen = torch.stack([names[torch.randperm(100, generator=generator)[:5]] for _ in clean])
    clean[:, SLOTS] = chosen[:, [0, 1, 1]]
    corrupted[:, SLOTS] = chosen[:, 2:]
    return clean, corrupted, chosen[:, 0], chosen[:, 1]


def memory_mb(what: str) -> float:
    """Resident memory of this process: `VmRSS` is what it holds now, `VmHWM` its peak (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 2**10
    raise ValueError(f"no {what!r} in /proc/self/status; this benchmark wants Linux")


def least(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Processor seconds and seconds by the clock of the fastest repetition."""
    cpu, clock = [], []
    for _ in range(repeats):
        starts = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - starts[0])
        clock.append(time.perf_counter() - starts[1])
    return {"cpu_s": min(cpu), "s": min(clock)}


def spread_readers(edges: HeadEdges, n: int) -> list[int]:
    """Readers that hold the middle edges of `n` equal parts of all edges."""
    n_edges = edges.exists.sum(1).cumsum(0)
    at = (torch.arange(n) + 0.5) / n * edges.n_edges
    return torch.searchsorted(n_edges, at.long(), right=True).tolist()


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
        first = least(lambda visit=visit, rows=rows: visit.logits(rows[:1]), 1)
        alone = least(lambda visit=visit, rows=rows: visit.logits(rows[:1]), 1)
        several = least(
            lambda visit=visit, rows=rows: [score(logits) for logits in visit.logits(rows)], 2
        )
        prepare = {clock: max(first[clock] - alone[clock], 0.0) for clock in first}
        found.append(
            {
                clock: several[clock] / n_candidates + prepare[clock] / len(writers)
                for clock in first
            }
        )
    return {clock: sum(one[clock] for one in found) / len(found) for clock in found[0]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    model = random_gpt2(options.layers)
    clean, corrupted, correct, wrong = names_swapped(options.batch, model.d_vocab)
    metric = logit_difference(correct, wrong)
    edges = HeadEdges(model.n_layers, model.n_heads, model.parallel)
    with torch.no_grad():
        model.run(clean[:1])
    before = memory_mb("VmRSS")
    eap = least(
        lambda: edge_attribution(model, clean, corrupted, metric), 2 if options.quick else 4
    )
    found = {
        "n_edges": edges.n_edges,
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "eap_cpu_s": eap["cpu_s"],
        "eap_s": eap["s"],
        "eap_mb_over_model": memory_mb("VmHWM") - before,
        "peers": PEERS,
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
        peer = PEERS[f"acdc_{clock}_per_edge"]
        found[f"acdc_times_faster_{clock}"] = peer / found[f"acdc_{clock}_per_edge_all_kept"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer readers and repetitions")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16, help="prompts")
    parser.add_argument("--candidates", type=int, default=4, help="removals in a call")
    parser.add_argument("--search", type=float, help="threshold of a whole search, in nats")
    options = parser.parse_args()
    with fast_float32(torch.device("cpu")):
        found = measure(options)
    for name, value in found.items():
        print(f"{name:32} {value}")
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
