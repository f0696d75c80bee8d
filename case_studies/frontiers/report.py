"""The report of frontiers in words: question, table, choices, limits, command."""

from case_studies.commands.display import markdown_table
from case_studies.frontiers.config import FrontierConfig
from case_studies.frontiers.run import CHOICES, FrontierResult, GroupFrontiers
from case_studies.tasks.task import Task
from graphs.frontier import Frontier
from graphs.frontier_shape import FrontierPoint, smallest_reaching

__all__ = ["COLUMNS", "finding", "report", "rows"]

COLUMNS = (
    *("family", "units", "knee: size", "knee: faithfulness (95 %)"),
    *("size for 80 %", "size for 90 %", "CPR", "CMD"),
)
_KINDS = {"features": "features", "neurons": "neurons", "heads": "heads and MLPs"}


def finding(result: FrontierResult, group: GroupFrontiers) -> str:
    """One sentence: the smallest circuits of each kind that keep 80 % of the behaviour."""
    found = []
    for kind, called in _KINDS.items():
        families = _of_kind(group, kind)
        reaching = [smallest_reaching(family.points, 0.8) for family in families]
        size = min((point.size for point in reaching if point is not None), default=None)
        told = "none" if size is None else f"{size:,}"
        found.append(f"{told} of {families[0].n_units:,} {called}")
    where = f", {group.group}" if len(result.groups) > 1 else ""
    return (
        f"{result.task} on {result.model.rstrip('/').split('/')[-1]}{where}: the smallest circuits "
        f"found that keep 80 % are {', '.join(found)}"
    )


def _of_kind(group: GroupFrontiers, kind: str) -> list[Frontier]:
    """The families of a kind that were chosen, random ones left out."""
    return [
        family
        for family in group.frontiers
        if family.family.startswith(f"{kind},") and family.intervals == "prompts"
    ]


def rows(group: GroupFrontiers) -> list[tuple[str, ...]]:
    """One row a family, in the order of `COLUMNS`."""
    return [
        (
            family.family,
            f"{family.n_units}",
            *_knee(family),
            *(_size(smallest_reaching(family.points, level)) for level in (0.8, 0.9)),
            f"{family.cpr:.3f}",
            f"{family.cmd:.3f}",
        )
        for family in group.frontiers
    ]


def _knee(family: Frontier) -> tuple[str, str]:
    """Size and faithfulness; random circuits, whose sizes are those of chosen ones, have none."""
    if family.intervals == "draws":
        return "", ""
    if family.knee is None:
        return "none", ""
    return f"{family.knee.size}", str(family.knee.faithfulness)


def _size(point: FrontierPoint | None) -> str:
    return "not reached" if point is None else f"{point.size}"


def _section(config: FrontierConfig, result: FrontierResult, group: GroupFrontiers) -> str:
    return f"""## {group.group}

For example: "{group.example}"

**Finding.** {finding(result, group)}.

Chosen on {group.n_discovery} prompts, measured on {config.n_proof} others of the same frame:
{result.metric_name} of the model {group.metric_model:.4g}, with every unit patched
{group.metric_empty:.4g}; the same two ends for every kind of units.

{markdown_table(COLUMNS, rows(group))}
"""


def report(config: FrontierConfig, result: FrontierResult, task: Task) -> str:
    """The whole report as Markdown."""
    sections = "\n".join(_section(config, result, group) for group in result.groups)
    flags = " ".join(
        _flag(name, value)
        for name, value in config.model_dump().items()
        if name != "task" and value != type(config).model_fields[name].default
    )
    return f"""# Frontiers: {task.name} on {config.model}

**Question.** {task.question} How many features does that take, and how many neurons or heads?

{sections}
## How to read it

A circuit is a set of units, each at one position; all other units take their values on the
corrupted prompt, on the live model. Faithfulness is (circuit - all patched) / (model - all
patched), from means over prompts; intervals are 95 % bootstrap over prompts, for random circuits
95 % of {config.n_random} draws.

- *features*: transcoder features, their errors, and tokens. *neurons*: of every MLP, with tokens;
  attention is live. *heads*: what each head holds, whole MLP outputs, and tokens. All kept is the
  model itself, none kept the corrupted run, for each kind. Units that do not differ between any two
  paired prompts are left out.
- *integrated gradients*, *attribution*: units ranked by the size of their mean effect on the
  metric, estimated by gradients. *activity*: by the length of what they write. *influence*: by
  their share in the graph of edges. *ACDC*: units that raise KL to the model when patched, one
  after the other, at {len(config.thresholds)} thresholds, each among the units left by the one
  before (features: at first the nodes that carry {config.node_threshold:.0%} of the influence).
  *random*: as many units of every layer and kind as the circuit by integrated gradients has, and
  its tokens.
- *knee*: the circuit farthest above the line between the ends of the family's front, over the
  logarithm of size; none where no circuit lies above it. *size for 80 %*: the smallest circuit
  measured whose faithfulness is within 20 % of 1 (too much counts as too little does).
- *CPR*: area under faithfulness over the share of units kept (1 is best); *CMD*: area between it
  and 1 (0 is best). The share is linear and most units do little, so neither says much about small
  circuits; beyond the largest circuit of ACDC both take what that one reaches.

The six choices (Miller et al. 2024): unit {CHOICES.unit}; component features, neurons or heads, as
named; value {CHOICES.value}; positions {CHOICES.positions}; direction {CHOICES.direction}; set
{CHOICES.ablated}.

## What to hold against it

- Units are not of one size: a head at a position is a vector, a neuron a number, a feature a number
  with a direction of its own. Fewer heads do not mean a simpler circuit.
- Feature and neuron circuits keep attention live, head circuits patch it: what attention moves by
  itself counts for the former without a unit.
- Error nodes are units of feature circuits, though nobody can read them. A feature that the clean
  prompt does not use stays live: what only the corrupted prompt uses is not put in, so that feature
  circuits start higher than neuron circuits with the same tokens.
- Units that are idle on the prompts that chose have no score and come last.
- Gradients rank by first-order effects: every family may have better circuits of the same size.

## Command

    circuits frontier {config.task} {flags}
"""


def _flag(name: str, value: object) -> str:
    """A setting as it is written on the command line."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    if isinstance(value, tuple):
        return " ".join(f"{flag} {item}" for item in value)
    return f"{flag} {value}"
