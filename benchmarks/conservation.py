"""The tables of what should add up and how far it is from doing so, by architecture.

    python -m benchmarks.conservation [--quick] [--model NAME_OR_FOLDER --dictionaries FOLDER]

Random weights on every architecture, in both precisions, with transcoders, skip transcoders, SAEs
and mixtures of them; and `tiny`, or a model of your own, on one prompt. Relative errors, the
largest of all: `rows` of edges against their targets' values, `factors` of sampled paths (named
ones, multiplied) against what the paths carry plus the remainder against the edge, and attention
`scores` against the sums of their pairs of sources. The last line is one JSON object:
architecture -> dtype -> errors.
"""

import argparse
import json

import torch
from jaxtyping import Int
from torch import Tensor

from attribution import LogitDifference, Target, TopLogits, Trace, attribute, split_by_path
from attribution.qk.held import hold_attention
from attribution.qk.scores import score_at
from circuits import SplicedModel, load_dictionaries, load_model
from tests.models import ARCHITECTURES, MIXTURES, TOKENS, spliced

PROMPTS = {
    "tiny": "The war lasted from the year 1732 to the year 17",
    "other": "Tom and Sue went to the park. Tom gave a ball to",
}


def factor_error(model: SplicedModel, trace: Trace, n_targets: int = 4) -> float:
    """The strongest edges of some targets: paths from their named factors, plus the remainder."""
    worst = 0.0
    for row in torch.linspace(0, len(trace.targets) - 1, n_targets).long().tolist():
        split = split_by_path(model, trace, trace.targets[row].id)
        strongest = split.edges.abs().topk(min(20, len(split.edges)))
        for column in strongest.indices.tolist():
            edge = split.edge(trace.sources[column].id)
            total = sum(path.input_dependent * path.virtual_weight for path in edge.paths)
            gap = abs(total + edge.remainder - edge.edge)
            size = max([abs(edge.edge), *(abs(path.value) for path in edge.paths)])
            worst = max(worst, gap / max(size, 1e-30))
    return worst


def score_error(model: SplicedModel, prompt: str | Int[Tensor, " pos"]) -> float:
    """Scores of every head, from the last position to every other."""
    worst = 0.0
    for layer in range(model.model.n_layers):
        held = hold_attention(model, prompt, layer)
        for head in range(model.model.n_heads):
            for key in held.visible[head, -1].nonzero()[:, 0].tolist():
                worst = max(worst, score_at(held, head, key=key).conservation_error())
    return worst


def errors(
    model: SplicedModel, prompt: str | Int[Tensor, " pos"], targets: list[Target]
) -> dict[str, float]:
    """All three errors of one model on one prompt."""
    trace = attribute(model, prompt, targets)
    return {
        "rows": trace.conservation_error(),
        "factors": factor_error(model, trace),
        "scores": score_error(model, prompt),
    }


def random_architectures(names: tuple[str, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """The largest errors over the mixtures of dictionaries, by architecture and dtype."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        for dtype in (torch.float32, torch.float64):
            targets: list[Target] = [LogitDifference(3, 4), TopLogits()]
            found = [errors(spliced(name, m, dtype), TOKENS, targets) for m in MIXTURES]
            worst = {kind: max(e[kind] for e in found) for kind in found[0]}
            table.setdefault(name, {})[str(dtype).removeprefix("torch.")] = worst
    return table


def real_model(name: str, dictionaries: str) -> dict[str, dict[str, float]]:
    """The errors on one prompt of a trained model, in both precisions."""
    loaded = load_dictionaries(dictionaries)
    prompt = PROMPTS.get(name, PROMPTS["other"])
    found = {}
    for dtype in (torch.float32, torch.float64):
        model = SplicedModel(load_model(name, dtype=dtype), loaded)
        found[str(dtype).removeprefix("torch.")] = errors(model, prompt, [TopLogits()])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two architectures only")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dictionaries", default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = random_architectures(ARCHITECTURES[:2] if options.quick else ARCHITECTURES)
    table[options.model] = real_model(options.model, options.dictionaries)
    for name, by_dtype in table.items():
        for dtype, found in by_dtype.items():
            line = "  ".join(f"{kind} {error:.1e}" for kind, error in found.items())
            print(f"{name:24} {dtype:8} {line}")
    print(json.dumps(table, sort_keys=True))


if __name__ == "__main__":
    main()
