"""Every feature of every layer in one pass, against one feature at a time: tokens per second.

    python -m benchmarks.feature_scan [--quick] [--model M --dictionaries FOLDER] [--tokens N]

A feature store is made of all dictionaries on text sampled from the model, and the time split into
model, encoding, collecting (statistics, contexts, lists), saving and partners (co-activation, once
at the end; it does not grow with the text beyond what is held). Then the way of transcoder_circuits
(`feature_dashboards.get_feature_scores`): for one feature, the model up to its layer and the whole
dictionary, decoder included, run over the text, and one column is kept; measured on a few features
of the first, middle and last layer and multiplied by the number of features. `--quick` takes less
text and features. The last line is one JSON object. Seconds are processor seconds, which other
programs on the machine disturb least: those of the clock on an idle one, for a single thread.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits import SplicedModel, load_dictionaries, load_model
from circuits.feature_store import CorpusSettings, FeatureStore
from circuits.feature_store.scan import Clock, scan
from circuits.memory import keep_freed_memory
from circuits.precision import fast_float32
from circuits.spliced import Placement
from circuits.training.buffer import activations
from circuits.training.text import bos_token, read_rows

CONTEXT, BATCH_ROWS = 128, 16


def one_feature(
    spliced: SplicedModel, placement: Placement, feature: int, rows: Tensor, *, decode: bool
) -> Tensor:
    """Activations of one feature over the text, as the reference computes them."""
    columns, bos = [], bos_token(spliced.model)
    for batch in rows.split(BATCH_ROWS):
        values = activations(spliced.model, batch, [placement.read], bos=bos, batch_rows=BATCH_ROWS)
        x = values[placement.read]
        a = placement.dictionary.encode(x)
        if decode:
            placement.dictionary.decode(a, x)
        columns.append(a[:, feature].half())
    return torch.cat(columns)


def reference(spliced: SplicedModel, rows: Tensor, n_features: int) -> dict[str, float]:
    """Seconds a feature, the mean over layers, with and without the decoder."""
    placements = list(spliced.placements.values())
    chosen = [placements[0], placements[len(placements) // 2], placements[-1]]
    seconds = {}
    with torch.no_grad(), fast_float32(spliced.model.device):
        one_feature(spliced, chosen[-1], 0, rows[:BATCH_ROWS], decode=True)  # warm up
        for name, decode in (("whole", True), ("encoder_only", False)):
            start = time.process_time()
            for number in range(n_features):
                placement = chosen[number % len(chosen)]
                one_feature(spliced, placement, number, rows, decode=decode)
            seconds[name] = (time.process_time() - start) / n_features
    return seconds


def read_back(store: FeatureStore, n: int = 100) -> float:
    """Milliseconds a feature, and its contexts, take to read."""
    name = store.names[len(store.names) // 2]
    start = time.perf_counter()
    for index in range(n):
        store.feature(name, index * store.n_features(name) // n)
    return (time.perf_counter() - start) / n * 1e3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways on the same text."""
    model = load_model(options.model)
    spliced = SplicedModel(model, load_dictionaries(options.dictionaries))
    n_tokens = options.tokens or (8192 if options.quick else 131_072)
    rows = read_rows(model, "sample", context=CONTEXT, n_tokens=n_tokens)
    clock: Clock = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = CorpusSettings(n_tokens=n_tokens, context=CONTEXT)
        start = time.perf_counter()
        scan(spliced, corpus, Path(folder), rows=rows, clock=clock)
        wall = time.perf_counter() - start
        start = time.perf_counter()
        store = FeatureStore.open(folder)
        open_ms = (time.perf_counter() - start) * 1e3
        feature_ms = read_back(store)
        n_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    n_reference = 3 if options.quick else 6
    some = rows[: BATCH_ROWS * (1 if options.quick else 8)]
    per_feature = {
        name: seconds * len(rows) / len(some)
        for name, seconds in reference(spliced, some, n_reference).items()
    }
    n_features = sum(store.n_features(name) for name in store.names)
    in_pass = sum(clock[part] for part in ("model", "encode", "collect"))
    whole = sum(clock.values())
    return {
        "model": model.name.rpartition("/")[2],
        "dictionaries": len(store.names),
        "n_features": n_features,
        "tokens": rows.numel(),
        "threads": torch.get_num_threads(),
        "tokens_per_s": rows.numel() / in_pass,
        "tokens_per_s_with_partners_and_saving": rows.numel() / whole,
        "seconds": clock,
        "seconds_by_the_clock": wall,
        "store_mb": n_bytes / 1e6,
        "open_ms": open_ms,
        "read_feature_ms": feature_ms,
        "reference_s_per_feature": per_feature["whole"],
        "reference_s_per_feature_encoder_only": per_feature["encoder_only"],
        "reference_s_all_features": per_feature["whole"] * n_features,
        "times_faster": per_feature["whole"] * n_features / whole,
    }


def rounded(value: Any) -> Any:
    """Floats to four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="less text, fewer features")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dictionaries", default="tiny", help="`tiny` or a folder")
    parser.add_argument("--tokens", type=int, help="tokens of text")
    keep_freed_memory()
    found = rounded(measure(parser.parse_args()))
    for name, value in found.items():
        print(f"{name:40} {value}")
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
