"""The strongest of all virtual weights between two GPT-2-sized dictionaries: time and memory.

    python -m benchmarks.virtual_weights [--quick]

Random weights in the shape of GPT-2 small (d_model 768, two layers) and two transcoders of 24,576
features (8,192 with --quick): the 1,000 strongest pairs, direct and through one head, and the ten
strongest sources of every target. The last line is one JSON object: seconds, seconds of the bare
matrix products of the same sizes, and peak memory beyond what the models held, in MB.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable

import torch
import transformers

from attribution.invariant.strongest import top_sources, top_virtual_weights
from circuits import SplicedModel, SubjectModel, Transcoder

D_MODEL, D_HEAD = 768, 64


def random_pair(n_features: int) -> SplicedModel:
    """A random two-layer GPT-2 with transcoders in both layers."""
    config = transformers.GPT2Config(vocab_size=100, n_layer=2)
    config._attn_implementation = "eager"
    model = SubjectModel.from_transformers(transformers.GPT2LMHeadModel(config))
    generator = torch.Generator().manual_seed(0)

    def transcoder() -> Transcoder:
        return Transcoder(
            torch.randn(D_MODEL, n_features, generator=generator),
            torch.randn(n_features, D_MODEL, generator=generator),
            torch.zeros(n_features),
            torch.zeros(D_MODEL),
        )

    return SplicedModel(model, {0: transcoder(), 1: transcoder()})


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bare_products(n_features: int, d_read: int, n_rows: int) -> float:
    """Seconds of the matrix products alone, in the same chunks, their results dropped."""
    left, right = torch.randn(n_rows, d_read), torch.randn(n_features, d_read)
    return timed(lambda: [left @ right.T for _ in range(n_features // n_rows)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8,192 features")
    n_features = 8192 if parser.parse_args().quick else 24576
    torch.manual_seed(0)
    spliced = random_pair(n_features)
    top_sources(spliced, "mlp.1", "mlp.0", 10, target_features=[0])  # warm up
    before = peak_mb()
    measured: dict[str, float] = {
        "n_features": n_features,
        "threads": torch.get_num_threads(),
        "block_mb": 4 * n_features**2 / 2**20,
    }
    calls: dict[str, Callable[[], object]] = {
        "direct": lambda: top_virtual_weights(spliced, "mlp.1", "mlp.0", 1000),
        "head": lambda: top_virtual_weights(spliced, "mlp.1", "mlp.0", 1000, head=(1, 3)),
        "sources": lambda: top_sources(spliced, "mlp.1", "mlp.0", 10),
    }
    for name, call in calls.items():
        measured[f"{name}_s"] = timed(call)
        measured[f"peak_mb_after_{name}"] = peak_mb() - before
    for name, d_read in (("direct", D_MODEL), ("head", D_HEAD)):
        measured[f"bare_{name}_s"] = bare_products(n_features, d_read, 64)
    for name, value in measured.items():
        print(f"{name:24} {value:10.2f}")
    print(json.dumps({name: round(value, 3) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
