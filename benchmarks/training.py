"""The training step: CPU-seconds against the products it cannot avoid, and against peers.

    python -m benchmarks.training [--quick] [--crossover] [--quality]
                                  [--sae-lens PYTHON] [--dictionary-learning PYTHON CHECKOUT]

Synthetic activations of width 768 (24 of 4,096 directions a token, noise; a fixed two-layer map as
the MLP), batches of 4,096, one thread, each case in a process of its own. Between steps the same
process times the dense products of such a step: all five (encode, decode, two weight gradients,
gradient of the activations), and the encoder's alone. Every step clips its gradients, counts
firings and runs AuxK over 1 % dead features. Ratios are product / step, of the least CPU-seconds
of each: above 1 is faster than the products. `--sae-lens` (6.54.12) and `--dictionary-learning` are
Pythons of environments that have them; they train on the same batches from files. `--crossover`
finds the share of active entries above which dense products are faster, `--quality` what a bfloat16
encoder costs in fidelity on `tiny`. The last line is one JSON object; `ratio_to_dense_limit` is
that of the TopK transcoder with 6,144 features in float32 products of full precision.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.processes import run_json
from circuits.metrics import fvu
from circuits.training import entries
from circuits.training.config import DictionaryConfig
from circuits.training.learner import Learner

BATCH, WIDTH, K, N_BATCHES = 4096, 768, 32, 4
PRECISIONS = {"float32": "highest", "float32, oneDNN": "medium", "bfloat16 encode": "medium"}
CASES = [
    ("topk", "mlp"),
    ("jumprelu", "mlp"),
    ("topk", "resid_post"),
    ("jumprelu", "resid_post"),
    ("relu", "resid_post"),
    ("gated", "resid_post"),
    ("batchtopk", "resid_post"),
    ("matryoshka", "resid_post"),
]
PEER_CASES = ("topk", "jumprelu", "standard", "gated", "batchtopk", "matryoshka")


def synthetic(n_tokens: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs that are sparse non-negative mixtures of directions, and targets of a fixed map."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(4096, d, generator=generator), dim=1)
    chosen = torch.randint(4096, (n_tokens, 24), generator=generator)
    strength = torch.rand(n_tokens, 24, generator=generator) + 0.5
    x = F.embedding_bag(chosen, directions, per_sample_weights=strength, mode="sum")
    x = x + 0.05 * torch.randn(n_tokens, d, generator=generator)
    x = x * (d**0.5 / x.norm(dim=1).mean())
    W = torch.randn(d, d, generator=generator) / d**0.5
    return x, F.gelu(x @ W) @ W.T


def cpu_seconds(call: Any) -> float:
    """CPU-seconds of all threads of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


class Products:
    """The five dense products of a step, into buffers that are there already."""

    def __init__(self, n_features: int) -> None:
        self.x, self.y = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
        self.W_enc, self.W_dec = torch.randn(WIDTH, n_features), torch.randn(n_features, WIDTH)
        self.h, self.out = torch.randn(BATCH, n_features), torch.empty(BATCH, WIDTH)
        self.g_enc, self.g_dec = torch.empty(WIDTH, n_features), torch.empty(n_features, WIDTH)

    def encode(self) -> None:
        torch.mm(self.x, self.W_enc, out=self.h)

    def rest(self) -> None:
        torch.mm(self.h, self.W_dec, out=self.out)
        torch.mm(self.h.T, self.y, out=self.g_dec)
        torch.mm(self.y, self.W_dec.T, out=self.h)
        torch.mm(self.x.T, self.h, out=self.g_enc)


def make_learner(architecture: str, site: str, n_features: int, **settings: Any) -> Learner:
    """A learner with 1 % dead features, at about the L0 it is asked for."""
    x, y = synthetic(BATCH, WIDTH)
    config = DictionaryConfig(
        architecture=architecture,  # type: ignore[arg-type]
        n_features=n_features,
        k=K,
        batch_size=BATCH,
        n_tokens=BATCH * 1000,
        clip_norm=1.0,
        start_rate=1.0,
        **settings,
    )
    with torch.no_grad():
        learner = Learner.start(config, site, x, x if site != "mlp" else y, seed=0)
        dead = torch.randperm(n_features, generator=torch.Generator().manual_seed(0))
        dead = dead[: n_features // 100]
        state = learner.state()
        for name in ("b_enc", "b_gate"):
            if name in state:
                state[name][dead] -= 100
        state["silent"][dead] = config.dead_after_tokens
        return Learner.from_state(config, site, state)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Least CPU-seconds of a step and of the products, in this process."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(PRECISIONS[case["precision"]])
    dtype = "bfloat16" if case["precision"] == "bfloat16 encode" else "float32"
    n_features, site = case["n_features"], case["site"]
    learner = make_learner(case["architecture"], site, n_features, encode_dtype=dtype)
    x, y = synthetic(BATCH * N_BATCHES, WIDTH)
    targets = y if site == "mlp" else x
    products, steps, encodes, all_five, l0 = Products(n_features), [], [], [], 0.0
    with torch.no_grad():
        for number in range(2 + case["steps"]):
            batch = slice((number % N_BATCHES) * BATCH, (number % N_BATCHES + 1) * BATCH)
            start = time.process_time()
            l0 = learner.learn(x[batch], targets[batch], number).l0
            took = time.process_time() - start
            encode, rest = cpu_seconds(products.encode), cpu_seconds(products.rest)
            if number >= 2:
                steps.append(took)
                encodes.append(encode)
                all_five.append(encode + rest)
    step = min(steps)
    return {
        **case,
        "cpu_s_per_step": step,
        "tokens_per_cpu_s": BATCH / step,
        "ratio_to_dense_limit": min(all_five) / step,
        "ratio_to_encoder_limit": min(encodes) / step,
        "l0": l0,
        "dead": len(learner.dead),
    }


def crossover(n_features: int = 6144) -> dict[str, Any]:
    """CPU-seconds of a JumpReLU step by share of active entries, as a list and as a grid."""
    torch.set_num_threads(1)
    x, y = synthetic(BATCH, WIDTH)
    rows = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        for share in (1 / 48, 1 / 24, 1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4):
            row: dict[str, Any] = {"precision": precision, "share": share}
            for path, limit in (("list", 1.0), ("grid", 0.0)):
                entries.DENSE_SHARE["cpu"] = limit
                config = DictionaryConfig(
                    architecture="jumprelu",
                    n_features=n_features,
                    k=int(share * n_features),
                    start_rate=1.0,
                    batch_size=BATCH,
                )
                with torch.no_grad():
                    learner = Learner.start(config, "mlp", x, y, seed=0)
                    row[path] = min(
                        cpu_seconds(lambda i=i, learner=learner: learner.learn(x, y, i))
                        for i in range(3)
                    )
            rows.append(row)
            print(f"  {precision:8} share {share:.3f}  {row}", flush=True)
    return {"crossover": rows}


def quality(seeds: int = 3) -> dict[str, Any]:
    """FVU of TopK transcoders on `tiny`, encoder products in float32 against bfloat16."""
    from circuits import load_model
    from circuits.precision import fast_float32
    from circuits.sites import Site
    from circuits.training.buffer import activations
    from circuits.training.text import bos_token, read_rows

    model = load_model("tiny")
    bos = bos_token(model)
    rows = read_rows(model, "sample", context=64, n_tokens=220_000, seed=0)
    sites = [Site("mlp_in", 1), Site("mlp_raw_out", 1)]
    values = activations(model, rows, sites, bos=bos, batch_rows=64)
    x, y = (values[site].float() for site in sites)
    n_train = len(x) - 20_000
    found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(seeds):
        for dtype, fvus in found.items():
            config = DictionaryConfig(
                n_features=1024,
                k=16,
                n_tokens=1_000_000,
                encode_dtype=dtype,
                seed=seed,  # type: ignore[arg-type]
            )
            with torch.no_grad(), fast_float32(model.device):
                learner = Learner.start(config, "mlp", x[:n_train], y[:n_train], seed=seed)
                generator = torch.Generator().manual_seed(seed)
                for step in range(config.n_steps):
                    index = torch.randint(n_train, (config.batch_size,), generator=generator)
                    learner.learn(x[index], y[index], step)
                dictionary = learner.dictionary()
                fvus.append(fvu(y[n_train:], dictionary(x[n_train:])))
    differences = [b - a for a, b in zip(found["float32"], found["bfloat16"], strict=True)]
    return {
        "quality": {
            "model": "tiny",
            "fvu": found,
            "mean_difference": mean(differences),
            "standard_deviation_over_seeds": stdev(found["float32"]),
        }
    }


def peer_case(python: list[str], case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One peer's trainer on the same batches, from a file."""
    script = str(Path(__file__).parent / "peers" / python[0])
    command = [*python[1:2], script, str(folder), case["architecture"], str(case["n_features"])]
    result = run_json([*command, str(case["steps"]), *python[2:]])
    return {**case, **result}


def show(name: str, result: dict[str, Any]) -> None:
    """One case, one line."""
    print(
        f"{name:48} {result['cpu_s_per_step']:7.3f} CPU-s a step"
        f"  {result['ratio_to_dense_limit']:5.2f} of dense"
        f"  {result['ratio_to_encoder_limit']:5.2f} of encoder"
        + (f"  L0 {result['l0']:.0f}" if "l0" in result else ""),
        flush=True,
    )


def our_cases(*, quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each of our cases; other precisions and sizes for transcoders alone."""
    for n_features in (6144, 24576):
        for precision in PRECISIONS:
            for architecture, site in CASES:
                first = (n_features, precision) == (6144, "float32")
                if site != "mlp" and not first:
                    continue
                kind = "transcoder" if site == "mlp" else "SAE"
                name = f"{architecture} {kind}, F {n_features:,}, {precision}"
                yield (
                    name,
                    {
                        "architecture": architecture,
                        "site": site,
                        "n_features": n_features,
                        "precision": precision,
                        "steps": 6 if n_features == 6144 and not quick else 3,
                    },
                )
                if quick:
                    return


def run_cases(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every case in a process of its own, and the peers on the same batches."""
    results = {}
    for name, case in our_cases(quick=options.quick):
        command = [sys.executable, "-m", "benchmarks.training", "--worker", json.dumps(case)]
        results[name] = run_json(command)
        show(name, results[name])
    with tempfile.TemporaryDirectory() as path:
        save_file({"x": synthetic(BATCH * N_BATCHES, WIDTH)[0]}, Path(path) / "batches.safetensors")
        for peer, script, python in (
            ("sae-lens", "sae_lens_step.py", options.sae_lens),
            ("dictionary_learning", "dictionary_learning_step.py", options.dictionary_learning),
        ):
            for architecture in PEER_CASES if python and not options.quick else ():
                case = {"architecture": architecture, "n_features": 6144, "steps": 3}
                name = f"{peer} {architecture} SAE, F 6,144, float32"
                results[name] = peer_case([script, *python], case, Path(path))
                show(name, results[name])
    return results


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the TopK transcoder, no peer")
    parser.add_argument("--crossover", action="store_true", help="where dense products win")
    parser.add_argument("--quality", action="store_true", help="what bfloat16 costs in fidelity")
    parser.add_argument("--sae-lens", nargs=1, help="Python of an environment with sae-lens")
    parser.add_argument(
        "--dictionary-learning", nargs=2, metavar=("PYTHON", "CHECKOUT"), help="the same for that"
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(measure(options.worker)))
    elif options.crossover:
        print(json.dumps(crossover(), sort_keys=True))
    elif options.quality:
        print(json.dumps(quality(), sort_keys=True))
    else:
        results = run_cases(options)
        first = results["topk transcoder, F 6,144, float32"]
        keys = ("ratio_to_dense_limit", "ratio_to_encoder_limit", "cpu_s_per_step")
        print(json.dumps({key: first[key] for key in keys} | {"cases": results}, sort_keys=True))


if __name__ == "__main__":
    main()
