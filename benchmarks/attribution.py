"""The attribution engine: CPU-seconds a row, share of the FLOP limit, memory, and a peer.

    python -m benchmarks.attribution [--quick] [--scaling] [--peer PYTHON]

GPT-2's shape with random weights and random transcoders, one thread, each setting in a process of
its own. `--peer` is the Python of an environment with circuit-tracer 0.5.0: it runs on the same
weights and prompt, and its edges are compared with ours. CPU-seconds are of the whole `attribute`:
forward pass, rows for every active feature and the likeliest tokens, node tables. The limit is a
1,536 x 1,536 product in the same process, at whichever of MKL and oneDNN is faster. The last line
is one JSON object; `cpu_s_per_1000_rows` is that of the first setting.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from attribution import Trace, attribute
from benchmarks.processes import run_json
from circuits import Site, SplicedModel, Transcoder, load_model
from circuits.precision import fast_float32

SETTINGS = {
    "F 3,072, L0 20, 16 tokens": {"n_features": 3072, "l0": 20, "n_tokens": 16},
    "F 24,576, L0 40, 32 tokens": {"n_features": 24576, "l0": 40, "n_tokens": 32},
    "F 3,072, L0 20, 64 tokens": {"n_features": 3072, "l0": 20, "n_tokens": 64},
}
FIRST = next(iter(SETTINGS))
SCALING = {
    "twice the layers": {"n_features": 3072, "l0": 20, "n_tokens": 16, "n_layers": 24},
    "4 times the layers": {"n_features": 3072, "l0": 20, "n_tokens": 16, "n_layers": 48},
    "4 times the features": {"n_features": 12288, "l0": 20, "n_tokens": 16},
    "twice the rows": {"n_features": 3072, "l0": 40, "n_tokens": 16},
    "4 times the rows": {"n_features": 3072, "l0": 80, "n_tokens": 16},
    "twice the tokens": {"n_features": 3072, "l0": 20, "n_tokens": 32},
    "4 times the tokens": {"n_features": 3072, "l0": 20, "n_tokens": 64},
}
SHAPE = {"n_layers": 12, "d_model": 768, "n_heads": 12, "d_vocab": 50257, "n_ctx": 128}


def prepare(folder: Path, n_features: int, l0: int, n_tokens: int, **shape: int) -> None:
    """Write a random model, transcoders whose thresholds give the asked-for L0, and a prompt."""
    import transformers

    sizes = SHAPE | shape
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=sizes["n_layers"])
    hf_model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    weights = {k.removeprefix("transformer."): v.clone() for k, v in hf_model.state_dict().items()}
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors")
    config.save_pretrained(folder)
    last = sizes["d_vocab"] - 1  # the end token comes first, as circuit-tracer wants it
    tokens = torch.tensor([last, *torch.randint(0, last, (n_tokens - 1,)).tolist()])
    model = load_model(hf_model)
    inputs = SplicedModel(model, {}).state(tokens[None]).values
    tensors = {}
    for layer in range(sizes["n_layers"]):
        W_enc, W_dec = (torch.randn(n_features, 768).div_(768**0.5) for _ in range(2))
        b_enc, b_dec = 0.02 * torch.randn(n_features), 0.02 * torch.randn(768)
        z = inputs[Site("mlp_in", layer)][0, 1:] @ W_enc.T + b_enc
        threshold = z.flatten().topk(l0 * (n_tokens - 1) + 1).values[-2:].mean()  # between two
        record = {"W_enc": W_enc.T.contiguous(), "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
        record["threshold"] = threshold.expand(n_features).contiguous()
        tensors |= {f"{layer}.{name}": tensor for name, tensor in record.items()}
    save_file(tensors, folder / "transcoders.safetensors")
    setting = sizes | {"tokens": tokens.tolist()}
    (folder / "setting.json").write_text(json.dumps(setting, sort_keys=True))


def load(folder: Path) -> tuple[SplicedModel, torch.Tensor]:
    """The model with its transcoders, and the prompt."""
    import transformers

    setting = json.loads((folder / "setting.json").read_text())
    config = transformers.GPT2Config.from_pretrained(folder, attn_implementation="eager")
    hf_model = transformers.GPT2LMHeadModel(config)
    hf_model.transformer.load_state_dict(load_file(folder / "model.safetensors"))
    file = load_file(folder / "transcoders.safetensors")
    tensors = {name: tensor.clone() for name, tensor in file.items()}  # not pages of the file
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    dictionaries = {
        layer: Transcoder(**{n: tensors[f"{layer}.{n}"] for n in names}, activation="jumprelu")
        for layer in range(setting["n_layers"])
    }
    return SplicedModel(load_model(hf_model), dictionaries), torch.tensor(setting["tokens"])


def product_gflops() -> float:
    """GFLOP a CPU-second of a square product: the limit of this machine at this moment."""
    a = torch.randn(1536, 1536)

    def rate() -> float:
        best = float("inf")
        for _ in range(4):
            start = time.process_time()
            a @ a
            best = min(best, time.process_time() - start)
        return 2 * len(a) ** 3 / best / 1e9

    with fast_float32(torch.device("cpu")):
        fast = rate()
    return max(fast, rate())


def resident_mib(*, reset_peak: bool = False) -> tuple[float, float]:
    """Memory in use now, and at most since the last reset (Linux)."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def in_place_flop(added: Any, a: Any, b: Any, **_: Any) -> int:
    """Operations of `addmm_`, which the counter does not know: two a multiply-add."""
    return 2 * a[0] * a[1] * b[1]


def measure(folder: Path, repeats: int, keep: bool) -> dict[str, Any]:
    """Costs of one setting, in this process; its edges go to a file if `keep`."""
    torch.set_num_threads(1)
    spliced, tokens = load(folder)
    spliced.model.run(tokens[None])
    limits, seconds, peaks, trace = [product_gflops()], [], [], None
    for _ in range(repeats):
        trace = None
        before, _ = resident_mib(reset_peak=True)
        start = time.process_time()
        trace = attribute(spliced, tokens)
        seconds.append(time.process_time() - start)
        peaks.append(resident_mib()[1] - before)
        limits.append(product_gflops())
    assert trace is not None
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flop})
    with counter:
        attribute(spliced, tokens)
    gflop, cpu, n_rows = counter.get_total_flops() / 1e9, median(seconds), len(trace.targets)
    if keep:
        save_edges(trace, folder / "edges.safetensors")
    return {
        "rows": n_rows,
        "cpu_s": cpu,
        "cpu_s_per_1000_rows": 1000 * cpu / n_rows,
        "gflop": gflop,
        "limit_gflop_per_cpu_s": median(limits),
        "share_of_limit": gflop / cpu / median(limits),
        "peak_added_mib": peaks[0],  # of the first call, as of the peer
        "edges_mib": trace.blocks.n_stored * 4 / 2**20,
        "conservation_error": trace.conservation_error(),
    }


def save_edges(trace: Trace, path: Path) -> None:
    """The edges with the coordinates of their nodes: layer, position, feature."""

    def places(nodes: Any, kind: str) -> tuple[list[int], list[list[int]]]:
        rows = nodes.where(kind=kind)
        return rows, [[nodes[i].layer, nodes[i].pos, nodes[i].feature] for i in rows]

    rows, row_places = places(trace.targets, "feature")
    tensors = {"row_features": row_places, "rows": rows}
    outputs = [node.site for node in trace.targets if node.kind == "output"]
    tensors["logits"] = [int(name.rsplit("(", 1)[1][:-1]) for name in outputs]
    for kind in ("feature", "error", "token"):
        tensors[f"{kind}_columns"], tensors[f"{kind}_places"] = places(trace.sources, kind)
    save_file({k: torch.tensor(v) for k, v in tensors.items()} | {"edges": trace.edges}, path)


def compare(folder: Path) -> dict[str, Any]:
    """Our edges against the peer's, wherever both define one.

    It has no biases, no `W_pos`, and neither features nor errors at position 0.
    """
    ours, peer = (
        load_file(folder / "edges.safetensors"),
        load_file(folder / "peer_edges.safetensors"),
    )
    adjacency, n_pos = peer["adjacency"], len(ours["token_columns"])
    place = {tuple(p): i for i, p in enumerate(peer["features"].tolist())}
    n_features = len(place)
    n_layers = (len(adjacency) - n_features - n_pos - len(peer["logits"])) // n_pos

    def column(kind: str, layer: int, pos: int, feature: int) -> int | None:
        if kind == "feature":
            return place.get((layer, pos, feature))
        if kind == "token":
            return n_features + n_layers * n_pos + pos
        return n_features + layer * n_pos + pos if pos else None

    columns = [
        (mine, theirs)
        for kind in ("feature", "error", "token")
        for mine, where in zip(
            ours[f"{kind}_columns"].tolist(), ours[f"{kind}_places"].tolist(), strict=True
        )
        if (theirs := column(kind, *where)) is not None
    ]
    logit_row = {token: i for i, token in enumerate(peer["logits"].tolist())}
    first_logit = n_features + n_layers * n_pos + n_pos
    rows = [
        (i, first_logit + logit_row[token])
        for i, token in enumerate(ours["logits"].tolist())
        if token in logit_row
    ] + [
        (mine, place[tuple(where)])
        for mine, where in zip(ours["rows"].tolist(), ours["row_features"].tolist(), strict=True)
        if tuple(where) in place
    ]
    my_rows, their_rows = torch.tensor(rows).T
    my_columns, their_columns = torch.tensor(columns).T
    mine = ours["edges"][my_rows][:, my_columns]
    theirs = adjacency[their_rows][:, their_columns]
    return {
        "rows": len(rows),
        "columns": len(columns),
        "rows_of_the_peer": n_features + len(logit_row),
        "largest_difference_over_largest_edge": float(
            (mine - theirs).abs().max() / theirs.abs().max()
        ),
    }


def one_setting(
    name: str, setting: dict[str, int], repeats: int, peer: str | None
) -> dict[str, Any]:
    """Measure one setting, and the peer on the same files."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        prepare(folder, **setting)
        same = peer is not None and name == FIRST
        worker = [sys.executable, "-m", "benchmarks.attribution", "--worker", path]
        result = run_json([*worker, "--repeats", str(repeats), *(["--keep"] if same else [])])
        if peer is not None:
            script = str(Path(__file__).parent / "peers" / "circuit_tracer_edges.py")
            # All rows of the first setting; a thousand of the larger ones, which take minutes.
            some = [] if same else ["1000"]
            sizes = ("8", "32", "512") if same else ("8", "32")
            runs = [run_json([peer, script, path, size, *some]) for size in sizes]
            best = min(runs, key=lambda run: run["cpu_s_per_1000_rows"])
            result["circuit_tracer"] = runs
            result["times_less_cpu"] = best["cpu_s_per_1000_rows"] / result["cpu_s_per_1000_rows"]
            result["share_of_its_memory"] = result["peak_added_mib"] / min(
                run["peak_added_mib"] for run in runs
            )
            if same:
                result["same_edges"] = compare(folder)
    return result


def show(name: str, result: dict[str, Any]) -> None:
    """One setting, one line; and one for each run of the peer."""
    print(
        f"{name:28} {result['rows']:6,} rows  {result['cpu_s_per_1000_rows']:6.2f} CPU-s per 1,000"
        f"  {result['share_of_limit']:.2f} of the limit  +{result['peak_added_mib']:.0f} MiB "
        f"(edges {result['edges_mib']:.0f})  rows add up to {result['conservation_error']:.0e}",
        flush=True,
    )
    for run in result.get("circuit_tracer", []):
        print(
            f"  circuit-tracer, batch {run['batch_size']:<5} {run['rows']:6,} rows  "
            f"{run['cpu_s_per_1000_rows']:6.2f} CPU-s per 1,000  +{run['peak_added_mib']:.0f} MiB"
        )
    if "times_less_cpu" in result:
        print(f"  {result['times_less_cpu']:.1f} times less CPU than its best batch")
    if "same_edges" in result:
        print(f"  {result['same_edges']}", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first setting, once, no peer")
    parser.add_argument("--scaling", action="store_true", help="how cost grows with each size")
    parser.add_argument("--peer", help="Python of an environment with circuit-tracer 0.5.0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(measure(options.worker, options.repeats, options.keep)))
        return
    settings = {FIRST: SETTINGS[FIRST]} if options.quick else SETTINGS
    if options.scaling:
        settings = {FIRST: SETTINGS[FIRST]} | SCALING
    results = {}
    for name, setting in settings.items():
        peer = None if options.quick or options.scaling else options.peer
        results[name] = one_setting(name, setting, 1 if options.quick else options.repeats, peer)
        show(name, results[name])
    first = results[FIRST]
    keys = ("cpu_s_per_1000_rows", "share_of_limit", "peak_added_mib", "times_less_cpu")
    last_line = {key: first[key] for key in keys if key in first} | {"settings": results}
    print(json.dumps(last_line, sort_keys=True))


if __name__ == "__main__":
    main()
