"""The report of a study in words: question, behaviour, circuit, proof, limits, command."""

from case_studies.study import GroupResult, StudyConfig, StudyResult
from case_studies.tasks.task import Task

__all__ = ["finding", "report"]


def finding(config: StudyConfig, result: StudyResult, group: GroupResult) -> str:
    """One sentence: what was found, with its number and its control."""
    randoms = group.random_faithfulness
    where = f", order {group.group}" if len(result.groups) > 1 else ""
    return (
        f"{config.task} on {result.behaviour.model}{where}: {group.n_nodes} nodes keep "
        f"{group.circuit.faithfulness:.0%} of the {result.behaviour.metric_name.replace('_', ' ')}; "
        f"random circuits of the same size {sum(randoms) / len(randoms):.0%}"
    )


def _table(result: StudyResult) -> str:
    lines = [
        "| on the prompts that prove | " + " | ".join(g.group for g in result.groups) + " |",
        "|---" * (1 + len(result.groups)) + "|",
    ]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    groups = result.groups
    row("metric of the model", [f"{g.circuit.metric_model:.4g}" for g in groups])
    row("metric of the circuit", [f"{g.circuit.metric_circuit:.4g}" for g in groups])
    row("metric with every node patched", [f"{g.circuit.metric_empty:.4g}" for g in groups])
    row("**faithfulness**", [f"**{g.circuit.faithfulness:.3f}**" for g in groups])
    row(
        "95 % interval",
        [f"{g.circuit.interval[0]:.3f} to {g.circuit.interval[1]:.3f}" for g in groups],
    )
    row("KL(model, circuit), nats", [f"{g.circuit.kl:.3f}" for g in groups])
    row("control: random circuits, mean", [_mean(g.random_faithfulness) for g in groups])
    row("control: random circuits, best", [f"{max(g.random_faithfulness):.3f}" for g in groups])
    row(
        "control: the circuit's tokens alone", [f"{g.tokens_only.faithfulness:.3f}" for g in groups]
    )
    row("ceiling: every node found", [f"{g.found_nodes.faithfulness:.3f}" for g in groups])
    row("nodes", [_kinds(g) for g in groups])
    row("edges", [f"{g.n_edges}" for g in groups])
    row("largest conservation error", [f"{g.conservation_error:.2g}" for g in groups])
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}"


def _kinds(group: GroupResult) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in group.nodes_by_kind.items())
    return f"{group.n_nodes} ({kinds})"


def _limits(result: StudyResult) -> str:
    """What a reader should hold against the result, computed from it."""
    notes = [
        "- Attention is not a node: heads run live in every circuit, so a circuit names the features, "
        "errors and tokens they move, not the heads.",
        "- Features that are off on a prompt stay live when the rest is patched.",
    ]
    for group in result.groups:
        share = group.nodes_by_kind.get("error", 0)
        if share:
            notes.append(
                f"- {group.group}: {share} of {group.n_nodes} nodes are error nodes, which no "
                "dictionary explains."
            )
        if group.tokens_only.faithfulness > 0.5:
            notes.append(
                f"- {group.group}: the tokens alone, with no feature, already keep "
                f"{group.tokens_only.faithfulness:.0%}: attention does most of the task by itself."
            )
        if group.circuit.faithfulness < 0.8:
            notes.append(
                f"- {group.group}: the circuit keeps only {group.circuit.faithfulness:.0%}; every "
                f"node found on the choosing prompts would keep {group.found_nodes.faithfulness:.0%}."
            )
    return "\n".join(notes)


def report(config: StudyConfig, result: StudyResult, task: Task) -> str:
    """The whole report as Markdown."""
    behaviour = result.behaviour
    low, high = behaviour.metric_interval
    flags = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in config.model_dump().items()
        if name != "task" and value != type(config).model_fields[name].default
    )
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
{config.threshold:.3%} of what patching every node does). Proved on {config.n_proof} other prompts of the same frame, on the live model: each node
outside the circuit takes its value on the corrupted prompt.
Faithfulness is (circuit - all patched) / (model - all patched), from means.

{_table(result)}

Random circuits have as many features and errors in every layer as the circuit, and its tokens.

## What to hold against it

{_limits(result)}

## Command

    circuits study {config.task} {flags}
"""
