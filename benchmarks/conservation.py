"""The table of conservation errors by architecture: how far rows of edges are from adding up.

    python -m benchmarks.conservation [--quick] [--model NAME_OR_FOLDER --dictionaries FOLDER]

Random weights on every architecture, in both precisions, with transcoders, skip transcoders, SAEs
and mixtures of them; and `tiny`, or a model of your own, on one prompt. The last line is one JSON
object: architecture -> dtype -> largest relative error over all rows.
"""

import argparse
import json

import torch

from attribution import LogitDifference, TopLogits, attribute
from circuits import SplicedModel, load_dictionaries, load_model
from tests.models import ARCHITECTURES, MIXTURES, TOKENS, spliced

PROMPT = "The war lasted from the year 1732 to the year 17"


def random_architectures(names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Largest conservation error over the mixtures of dictionaries, by architecture and dtype."""
    table: dict[str, dict[str, float]] = {}
    for name in names:
        for dtype in (torch.float32, torch.float64):
            targets = [LogitDifference(3, 4), TopLogits()]
            errors = [
                attribute(spliced(name, mixture, dtype), TOKENS, targets).conservation_error()
                for mixture in MIXTURES
            ]
            table.setdefault(name, {})[str(dtype).removeprefix("torch.")] = max(errors)
    return table


def real_model(name: str, dictionaries: str) -> dict[str, float]:
    """Largest conservation error on one prompt of a trained model, in both precisions."""
    found = load_dictionaries(dictionaries)
    errors = {}
    for dtype in (torch.float32, torch.float64):
        model = SplicedModel(load_model(name, dtype=dtype), found)
        errors[str(dtype).removeprefix("torch.")] = attribute(model, PROMPT).conservation_error()
    return errors


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two architectures only")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dictionaries", default="tiny")
    options = parser.parse_args()
    table = random_architectures(ARCHITECTURES[:2] if options.quick else ARCHITECTURES)
    table[options.model] = real_model(options.model, options.dictionaries)
    for name, errors in table.items():
        print(f"{name:16} " + "  ".join(f"{k} {v:.1e}" for k, v in errors.items()))
    print(json.dumps(table, sort_keys=True))


if __name__ == "__main__":
    main()
