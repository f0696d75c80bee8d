"""Interventions in words and tables: plain records in, text out."""

from collections.abc import Sequence
from typing import Any

from case_studies.commands.display import markdown_table

__all__ = [
    "AGREEMENT_COLUMNS",
    "EFFECT_COLUMNS",
    "FEATURE_COLUMNS",
    "TOP_COLUMNS",
    "agreement_rows",
    "effect_rows",
    "effects_finding",
    "effects_report",
    "feature_rows",
    "intervention_lines",
    "intervention_report",
    "top_rows",
]

TOP_COLUMNS = ("before", "probability", "after", "probability")
FEATURE_COLUMNS = ("feature", "token", "activation before", "after")
AGREEMENT_COLUMNS = (
    *("predicted", "observed", "Spearman", "Pearson", "slope", "sign", "gap", "effect"),
)
EFFECT_COLUMNS = ("node", "direct", "all paths", "frozen", "real model", "switched")
_WORDS = {
    "direct": "direct",
    "total": "all paths",
    "frozen": "frozen",
    "live": "real",
}
_HOW_TO_READ = (
    "Predicted: the edges from the node to the output (direct), or all paths of the frozen model,\n"
    "every feature passing its input on with slope 1. Observed: with attention, norms, errors and\n"
    "MLPs without a dictionary held at the prompt (frozen), or with nothing held (real model:\n"
    "attention, norms and errors follow). Over all paths and frozen, the two agree to rounding\n"
    "unless features go on or off (switched: how many did). What is left between frozen and real\n"
    "is what the graph cannot know. Sign: how often they share it; gap: mean size of their\n"
    "difference; effect: mean size of what is observed."
)


def top_rows(record: dict[str, Any]) -> list[list[str]]:
    """The likeliest tokens before and after, side by side."""
    pairs = zip(record["top_before"], record["top_after"], strict=True)
    return [
        [cell for side in pair for cell in (repr(side["token"]), f"{side['probability']:.3f}")]
        for pair in pairs
    ]


def feature_rows(record: dict[str, Any]) -> list[list[str]]:
    """Activations of the changed features."""
    return [
        [f["node"], repr(f["token"]), f"{f['before']:.4g}", f"{f['after']:.4g}"]
        for f in record["features"]
    ]


def intervention_lines(record: dict[str, Any]) -> list[str]:
    """Metric, KL and text, and what a reader should know."""
    before, after = record["metric_before"], record["metric_after"]
    lines = [
        f"{record['metric']}: {before:+.4g} before, {after:+.4g} after ({after - before:+.4g})",
        f"KL(before || after) of the next token: {record['kl']:.4g} nats",
    ]
    if record["text_before"] is not None:
        lines += [
            f"text before: {record['text_before']!r}",
            f"text after:  {record['text_after']!r}",
        ]
    if record["attention"] == "frozen":
        lines.append("The next token is of the frozen model; text is written by the real one.")
    idle = [f["node"] for f in record["features"] if f["before"] == f["after"]]
    if idle:
        lines.append(f"Nothing changed at {', '.join(idle)}: its activation is what it was set to.")
    return lines


def intervention_report(record: dict[str, Any]) -> str:
    """`report.md` of one intervention."""
    parts = [
        f"# {record['change']}",
        f"{record['model']} on {record['prompt']!r}, attention {record['attention']}.",
        "\n".join(f"- {line}" for line in intervention_lines(record)),
        "## Next token",
        markdown_table(TOP_COLUMNS, top_rows(record)),
    ]
    if record["features"]:
        parts += ["## Features", markdown_table(FEATURE_COLUMNS, feature_rows(record))]
    return "\n\n".join(parts) + "\n"


def agreement_rows(agreements: dict[str, dict[str, float] | None]) -> list[list[str]]:
    """One row a pair of prediction and observation."""
    rows = []
    for name, found in agreements.items():
        predicted, observed = (_WORDS[side] for side in name.split("_"))
        if found is None:
            rows.append([predicted, observed, *["undefined"] * 4, "", ""])
            continue
        rows.append(
            [
                predicted,
                observed,
                *(f"{found[key]:+.3f}" for key in ("spearman", "pearson", "slope")),
                f"{found['same_sign']:.0%}",
                *(f"{found[key]:.3g}" for key in ("mean_absolute_error", "mean_absolute_effect")),
            ]
        )
    return rows


def effect_rows(effects: Sequence[dict[str, Any]], top: int) -> list[list[str]]:
    """The groups whose ablation moves the real model most."""
    strongest = sorted(effects, key=lambda effect: -abs(effect["live"]))[:top]
    return [
        [
            ",".join(effect["nodes"]),
            *(f"{effect[side]:+.3g}" for side in ("direct", "total", "frozen", "live")),
            f"{effect['switched']:.3g}",
        ]
        for effect in strongest
    ]


def effects_finding(record: dict[str, Any]) -> str:
    """One sentence: how well the graph foretells ablations."""
    frozen, live = (record["agreement"][f"total_{side}"] for side in ("frozen", "live"))
    if frozen is None or live is None:
        return f"Ablations of {record['n_groups']} nodes in {record['model']}"
    return (
        f"All-path effects of {record['n_groups']} nodes against their ablation in "
        f"{record['model']}: Spearman {frozen['spearman']:.2f} frozen, {live['spearman']:.2f} in "
        "the real model"
    )


def effects_report(record: dict[str, Any], effects: Sequence[dict[str, Any]], top: int) -> str:
    """`report.md` of a circuit's effects."""
    parts = (
        f"# {effects_finding(record)}",
        f"{record['model']} on {record['prompt']!r}; changes of {record['target']}, each node "
        f"ablated alone (to {record['ablation']}). The picture is in effects.html.",
        markdown_table(AGREEMENT_COLUMNS, agreement_rows(record["agreement"])),
        _HOW_TO_READ,
        f"Of {record['n_groups']} nodes and groups, {record['n_without_switch']} switch no other "
        f"feature; for them the largest gap of all paths to the frozen model is "
        f"{record['largest_gap_without_switch']:.2g}.",
        "## Strongest in the real model",
        markdown_table(EFFECT_COLUMNS, effect_rows(effects, top)),
    )
    return "\n\n".join(parts) + "\n"
