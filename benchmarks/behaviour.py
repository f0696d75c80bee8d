"""The table of behaviours: what a model does on IOI and greater-than, with intervals.

    python -m benchmarks.behaviour [--quick] [--model NAME] [--frames plain|story] [--n 100]

The last line is one JSON object: task -> record, as `measure_behaviour` gives it.
"""

import argparse
import json

from case_studies.tasks import GreaterThanTask, IoiTask, measure_behaviour
from circuits import load_model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 prompts a task")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--frames", default="plain", choices=("plain", "story"))
    parser.add_argument("--n", type=int, default=100, help="prompts a task")
    options = parser.parse_args()
    model, n = load_model(options.model), 20 if options.quick else options.n
    records = {}
    for task in (IoiTask(frames=options.frames), GreaterThanTask()):
        record = measure_behaviour(model, task, n, seed=0)
        records[task.name] = record.model_dump(mode="json")
        low, high = record.metric_interval
        print(
            f"{task.name:13} {record.metric_name} {record.metric:.3f} ({low:.3f} to {high:.3f}), "
            f"success {record.success_rate:.1%}, corrupted {record.corrupted_metric:.3f}"
        )
    print(json.dumps(records, sort_keys=True))


if __name__ == "__main__":
    main()
