"""Training runs killed at random moments, resumed, and compared byte by byte.

    python -m benchmarks.kills [--quick] [--kills 20] [--seed 0]

A small random model samples its text; dictionaries of two configurations train from one pass. One
run is left alone. Others are killed (SIGKILL) at moments drawn evenly over the time that run took,
up to three times each, and resumed to the end. Every file of every folder must then have the bytes
of the first run's. The last line is one JSON object; the exit code is 1 if any file differs.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import circuits.fidelity  # noqa: F401  (so that processes start with everything imported)
from circuits import SubjectModel, load_model
from circuits.training import TrainingConfig, train_many
from circuits.training.display import Progress

KILLS_A_RUN = 3
BASE = TrainingConfig(
    model="random",
    sites=("mlp", "resid_post"),
    n_features=64,
    k=4,
    n_tokens=64 * 100,
    batch_size=64,
    n_text_tokens=16 * 200,
    context=16,
    n_eval_rows=16,
    buffer_tokens=1000,
    activation_cache_gb=0.0,
    dead_after_tokens=2000,
    checkpoint_every=5,
)
CONFIGS = {
    "topk": BASE,
    "jumprelu": BASE.model_copy(update={"architecture": "jumprelu", "sites": ("mlp",)}),
}


def random_model() -> SubjectModel:
    """Two layers of width 32, the same in every process."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=100,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",  # type: ignore[call-arg]
    )
    return load_model(GPT2LMHeadModel(config))


def run(out: Path, stage: Any) -> None:
    """What one process does; `stage` is shared memory for what it is at."""
    torch.set_num_threads(1)

    def watch(news: Progress) -> None:
        stage.value = news.stage.encode()

    train_many(CONFIGS, random_model(), out=out, progress=watch)


def start(context: ForkContext, out: Path) -> tuple[ForkProcess, Any]:
    """A process that has its model and has begun to work."""
    stage: Any = context.Array("c", 80)
    process = context.Process(target=run, args=(out, stage))
    process.start()
    while not stage.value and process.is_alive():
        time.sleep(0.001)
    return process, stage


def finish(context: ForkContext, out: Path) -> float:
    """Let a run go to its end; the seconds it worked."""
    process, stage = start(context, out)
    begin = time.perf_counter()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"a run ended with code {process.exitcode} while {stage.value.decode()}")
    return time.perf_counter() - begin


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def measure(n_kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill and resume until there were `n_kills` kills."""
    context, rng = multiprocessing.get_context("fork"), random.Random(seed)
    seconds = finish(context, folder / "whole")
    wanted = contents(folder / "whole")
    stages: Counter[str] = Counter()
    differing: set[str] = set()
    n_runs = 0
    while stages.total() < n_kills:
        out = folder / f"run{n_runs}"
        n_runs += 1
        for _ in range(min(KILLS_A_RUN, n_kills - stages.total())):
            process, stage = start(context, out)
            process.join(rng.random() * seconds)
            alive = process.exitcode is None
            process.kill()
            process.join()
            if not alive:
                break
            stages[stage.value.decode()] += 1
        finish(context, out)
        found = contents(out)
        differing |= {name for name in {*wanted, *found} if wanted.get(name) != found.get(name)}
    return {
        "kills": stages.total(),
        "identical": not differing,
        "differing": sorted(differing),
        "runs": n_runs,
        "files": len(wanted),
        "killed_while": dict(stages),
        "seconds_of_a_whole_run": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(3 if arguments.quick else arguments.kills, arguments.seed, Path(folder))
    print(json.dumps(record))
    sys.exit(0 if record["identical"] else 1)


if __name__ == "__main__":
    main()
