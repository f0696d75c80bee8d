"""The report of a study in words: question, behaviour, circuit, proof, limits, command."""

import shlex
from typing import Any

from case_studies.study import GroupResult, StudyResult
from case_studies.study_config import StudyConfig
from case_studies.study_proof import ALL_FOUND
from case_studies.study_proof_text import proof_in_words, proof_numbers
from case_studies.tasks.task import Task
from graphs.proof.beside import RANDOM, TOKENS_ONLY

__all__ = ["finding", "report", "study_command"]

_VALUES = {
    "corrupted": "its value on the corrupted prompt",
    "mean": "its mean over the corrupted prompts of the choosing set (tokens stay clean)",
    "zero": "zero (tokens stay clean)",
}
_ERRORS = {
    "as chosen": "in the circuit if they were chosen",
    "kept": "kept clean in every run",
    "dropped": "ablated in every run but the model's",
}


def finding(config: StudyConfig, result: StudyResult, group: GroupResult) -> str:
    """One sentence: what was found, with its number and its control."""
    where = f", order {group.group}" if len(result.groups) > 1 else ""
    random = group.table.control(RANDOM).faithfulness.value
    return (
        f"{config.task} on {result.behaviour.model}{where}: {group.n_nodes} nodes keep "
        f"{group.proof.faithfulness.value:.0%} of the "
        f"{result.behaviour.metric_name.replace('_', ' ')}; random circuits of the same size "
        f"{random:.0%}"
    )


def _kinds(group: GroupResult) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in group.nodes_by_kind.items())


def _group_section(result: StudyResult, group: GroupResult) -> str:
    """Circuit and proof of one group."""
    head = f"### {group.group}\n\n" if len(result.groups) > 1 else ""
    return f"""{head}The circuit has {group.n_nodes} nodes ({_kinds(group)}) and {group.n_edges} edges; of the rows traced for
it, the one that adds up worst is off by {group.conservation_error:.2g} of its size.

{group.table.markdown()}

{proof_numbers(group.proof)}

{proof_in_words(group.table)}"""


def _numbers(result: StudyResult) -> str:
    """Every number of every proof, each with its metric, prompts and choices."""
    return "\n".join(
        f"- {group.group}: {line}" for group in result.groups for line in group.proof.lines()
    )


def _limits(result: StudyResult) -> str:
    """What a reader should hold against the result, computed from it."""
    notes = [
        "- Attention is not a node: heads run live in every circuit, so a circuit names the features, "
        "errors and tokens they move, not the heads.",
        "- Features that are off on a prompt stay live when the rest is ablated.",
        "- The bootstrap is over prompts: it says nothing of other frames, seeds or dictionaries.",
    ]
    for group in result.groups:
        share = group.nodes_by_kind.get("error", 0)
        found, tokens = group.table.control(ALL_FOUND), group.table.control(TOKENS_ONLY)
        if share:
            notes.append(
                f"- {group.group}: {share} of {group.n_nodes} nodes are error nodes, which no "
                f"dictionary explains (in this proof: {group.proof.choices.errors})."
            )
        if tokens.faithfulness.value > 0.5:
            notes.append(
                f"- {group.group}: the tokens alone, with no feature, already keep "
                f"{tokens.faithfulness.value:.0%}: attention does most of the task by itself."
            )
        if group.proof.faithfulness.value < 0.8:
            notes.append(
                f"- {group.group}: the circuit keeps only {group.proof.faithfulness.value:.0%}; "
                f"every node found on the choosing prompts would keep "
                f"{found.faithfulness.value:.0%}."
            )
    return "\n".join(notes)


def _flag(name: str, value: Any) -> str:
    """A setting as it is typed."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return f"{flag} {shlex.quote(str(value))}"


def study_command(config: StudyConfig) -> str:
    """What to type to make the study again: only the flags that differ from their defaults."""
    flags = (
        _flag(name, value)
        for name, value in config.model_dump().items()
        if name != "task" and value != type(config).model_fields[name].default
    )
    return " ".join(("circuits study", config.task, *flags))


def report(config: StudyConfig, result: StudyResult, task: Task) -> str:
    """The whole report as Markdown."""
    behaviour = result.behaviour
    low, high = behaviour.metric_interval
    return f"""# {task.name} on {behaviour.model}

**Question.** {task.question}

**Finding.** {finding(config, result, result.groups[0])}.

## Behaviour

{task.expected} On {behaviour.n_prompts} prompts ({behaviour.split.replace("_", " ")} words and years, seed
{config.seed}): {behaviour.metric_name.replace("_", " ")} {behaviour.metric:.4g} ({low:.4g} to {high:.4g}, 95 % bootstrap), success
{behaviour.success_rate:.1%}; on the corrupted prompts {behaviour.corrupted_metric:.4g}. With every dictionary's
reconstruction in place of what it replaces: {result.spliced.metric:.4g}, success {result.spliced.success_rate:.1%}.

## Circuit and proof

Chosen on {config.n_discovery} prompts a group: edges averaged, nodes that carry {config.node_threshold:.0%} of the influence on
each, then ACDC over nodes (a node stays if patching it raises KL to the model by at least
{config.threshold:.3%} of what patching every node does). Proved on {config.n_proof} other prompts of the same frame, on the live
model: what is ablated carries {_VALUES[config.value]}, and errors are {_ERRORS[config.errors]}.
Faithfulness is (circuit - all ablated) / (model - all ablated), and completeness the same for the model without the
circuit, where low is good; both from means over prompts.

{chr(10).join(_group_section(result, group) + chr(10) for group in result.groups)}
Random circuits have as many features and errors in every layer as the circuit, and its tokens; the most active
features take the place of the circuit's own. Both are drawn from all that can be ablated on the proving prompts.

## What to hold against it

{_limits(result)}

## Command

    {study_command(config)}

## Every number with its choices

{_numbers(result)}
"""
