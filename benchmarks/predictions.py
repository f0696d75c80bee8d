"""The table of predictions: what edges say an ablation does, and what it does.

    python -m benchmarks.predictions [--quick] [--model FOLDER --dictionaries FOLDER]

Features are ablated one at a time at one position, on IOI and greater-than prompts: features drawn
at random, and those with the most signed influence on the task's metric. Effects on that metric
are predicted along direct edges and over all paths, and observed with attention, norms and other
features held (`direct` is exact there), with features live, and in the real model. The last line
is one JSON object: model -> task -> record.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch

from attribution import Trace, attribute
from attribution.effects.agreement import measure_agreement
from attribution.effects.causal import CausalCheck, ablations, check_predictions, sample_ablations
from attribution.effects.influence import signed_influence
from case_studies.tasks import GreaterThanTask, IoiTask
from case_studies.tasks.ioi import FrameSet
from case_studies.tasks.task import Task, TaskPrompt
from circuits import Intervention, SplicedModel, load_dictionaries, load_model

SIDES = (("direct", "frozen"), ("direct", "real"), ("total", "live"), ("total", "real"))


def strongest_ablations(trace: Trace, n: int) -> list[Intervention]:
    """Of the features with the most signed influence on the first output."""
    features = trace.sources.where(kind="feature")
    influence = signed_influence(trace, targets=[0], sources=features)[0].abs()
    top = influence.topk(min(n, len(features))).indices.tolist()
    return ablations(trace, [features[i] for i in top])


def frozen_errors(checks: Sequence[CausalCheck]) -> dict[str, float]:
    """The largest gaps between direct predictions and the frozen model."""
    return {
        "max_frozen_error": max(check.max_frozen_error() for check in checks),
        "max_frozen_error_of_values": max(c.max_frozen_error_of_values() for c in checks),
    }


def agreements(checks: Sequence[CausalCheck]) -> dict[str, dict[str, float]]:
    """Effects on the first output, all prompts together."""
    found = {}
    for predicted, observed in SIDES:
        left, right = (
            torch.cat([getattr(c, s)[:, 0] for c in checks]) for s in (predicted, observed)
        )
        found[f"{predicted}_{observed}"] = asdict(measure_agreement(left, right))
    return found


def measure(
    name: str, dictionaries: str, task: Task, prompts: Sequence[TaskPrompt], n: int
) -> dict[str, object]:
    """One task: agreement in float32, errors in the frozen model in both precisions."""
    record: dict[str, object] = {"n_prompts": len(prompts), "n_ablations": n}
    for dtype in (torch.float32, torch.float64):
        spliced = SplicedModel(load_model(name, dtype=dtype), load_dictionaries(dictionaries))
        checks: dict[str, list[CausalCheck]] = {"random": [], "strongest": []}
        for prompt in prompts if dtype == torch.float32 else prompts[:1]:
            target = task.target(prompt)
            trace = attribute(spliced, prompt.clean_tokens, target)
            for kind, chosen in (
                ("random", sample_ablations(trace, n)),
                ("strongest", strongest_ablations(trace, n)),
            ):
                checks[kind].append(check_predictions(spliced, trace, chosen, target))
        precision = str(dtype).removeprefix("torch.")
        record[precision] = frozen_errors([*checks["random"], *checks["strongest"]])
        if dtype == torch.float32:
            record |= {kind: agreements(found) for kind, found in checks.items()}
    return record


def show(model: str, task: str, record: dict) -> None:
    """A few lines for the eye."""
    errors = ", ".join(
        f"{precision} {record[precision]['max_frozen_error']:.1e} of the effect, "
        f"{record[precision]['max_frozen_error_of_values']:.1e} of the value"
        for precision in ("float32", "float64")
    )
    print(f"{model} {task}: largest frozen error {errors}")
    for kind in ("random", "strongest"):
        for side, found in record[kind].items():
            print(
                f"  {kind:9} {side.replace('_', ' -> '):16} correlation {found['correlation']:+.3f}"
                f"  slope {found['slope']:+.3f}  same sign {found['same_sign']:.0%}  n {found['n']}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="What edges say an ablation does, and what it does."
    )
    parser.add_argument("--quick", action="store_true", help="2 prompts a task, 25 ablations each")
    parser.add_argument("--model", default="../shared/models/stories15m", help="beside tiny")
    parser.add_argument("--dictionaries", help="of --model; without, tiny alone is measured")
    parser.add_argument("--frames", default="story", choices=("plain", "story"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    n_prompts, n_ablations = (2, 25) if options.quick else (10, 100)
    subjects: list[tuple[str, str, FrameSet]] = [("tiny", "tiny", "plain")]
    if options.dictionaries is not None:
        subjects.append((options.model, options.dictionaries, options.frames))
    results: dict[str, object] = {}
    start = time.time()
    for name, dictionaries, frames in subjects:
        records = {}
        for task in (IoiTask(frames=frames), GreaterThanTask()):
            prompts = task.prompts(load_model(name), n_prompts, seed=options.seed)
            record = measure(name, dictionaries, task, prompts, n_ablations)
            show(name, task.name, record)
            records[task.name] = record
        results[name] = records
    results["seconds"] = round(time.time() - start, 1)
    print(json.dumps(results, sort_keys=True))


if __name__ == "__main__":
    main()
