"""What a comparison found: a report with tables and intervals, and its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import plotly.graph_objects as go

from case_studies.commands.display import markdown_table
from case_studies.comparisons.config import ComparisonConfig, Question
from case_studies.comparisons.matched import Difference, Metric, differences, verdict
from case_studies.comparisons.methods import QUESTIONS, middle_level
from case_studies.comparisons.runs import Record
from case_studies.frontier import FrontierPoint, frontier_figure
from case_studies.seeds import SeedMean, mean_over_seeds
from graphs.figure_style import SIGN_STYLES

__all__ = ["METRICS", "Answer", "answer", "figures", "write_report"]

METRICS: dict[Metric, str] = {"fvu": "FVU", "ce_increase": "CE increase (nats a token)"}


@dataclass(frozen=True)
class Answer:
    """What one question's dictionaries say.

    Args:
        records: of this question alone.
        differences: of every other method from the first, at each level and over all; none for
            `size`, which has one method.
    """

    question: Question
    records: tuple[Record, ...]
    differences: tuple[Difference, ...]

    @property
    def overall(self) -> tuple[Difference, ...]:
        """The differences over all levels."""
        return tuple(difference for difference in self.differences if difference.l0 is None)


def answer(config: ComparisonConfig, question: Question, records: Sequence[Record]) -> Answer:
    """The records that bear on a question, and the paired differences at equal L0."""
    names = [method.name for method in QUESTIONS[question].methods]
    if question == "size":
        own = [r for r in records if r.method == names[0] and r.n_features in config.sizes]
        return Answer(question, tuple(r for r in own if r.level == middle_level(config)), ())
    own = [r for r in records if r.method in names and r.n_features == config.n_features]
    found = [
        difference
        for name in names[1:]
        for metric in METRICS
        for difference in differences(own, name, names[0], metric)
    ]
    return Answer(question, tuple(own), tuple(found))


def figures(answer: Answer) -> list[go.Figure]:
    """One figure a metric: frontiers, or for `size` the metric by number of features."""
    title = QUESTIONS[answer.question].title
    if answer.question == "size":
        return [_size_figure(answer, metric) for metric in METRICS]
    return [
        frontier_figure(
            [FrontierPoint(r.method, r.l0, getattr(r, metric), r.seed) for r in answer.records],
            metric=name,
            title=f"{title}: {name}",
        )
        for metric, name in METRICS.items()
    ]


def _size_figure(answer: Answer, metric: Metric) -> go.Figure:
    sizes = sorted({record.n_features for record in answer.records})
    means = [_over_seeds(answer.records, metric, n_features=size) for size in sizes]
    bars = [0.0 if mean.high is None else mean.high - mean.mean for mean in means]
    figure = go.Figure(
        go.Scatter(
            x=sizes,
            y=[mean.mean for mean in means],
            error_y={"type": "data", "array": bars},
            mode="lines+markers",
            line={"color": SIGN_STYLES[1].color},
            hovertemplate=f"%{{x:,}} features: {METRICS[metric]} %{{y:.4f}}<extra></extra>",
        )
    )
    level = answer.records[0].level
    figure.update_layout(
        template="plotly_white",
        title={
            "text": f"<b>Dictionary size: {METRICS[metric]} at L0 {level}</b>",
            "subtitle": {"text": "mean over seeds; bars: 95 % interval of the mean (t)"},
        },
        width=860,
        height=520,
    )
    figure.update_xaxes(
        title="features (log scale)", type="log", tickvals=sizes, ticktext=[f"{n:,}" for n in sizes]
    )
    figure.update_yaxes(title=METRICS[metric])
    return figure


def _over_seeds(records: Sequence[Record], metric: str, **place: object) -> SeedMean:
    """A number of the records at one place, over seeds."""
    return mean_over_seeds(
        [
            float(getattr(record, metric))
            for record in records
            if all(getattr(record, name) == value for name, value in place.items())
        ]
    )


def _shown(value: SeedMean) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.4f}"
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def write_report(
    config: ComparisonConfig,
    answers: Sequence[Answer],
    rates: dict[str, float],
    facts: dict[str, str],
) -> str:
    """The report as Markdown.

    Args:
        rates: learning rate of every method, as tuned.
        facts: what was measured on, for the first lines.
    """
    parts = [
        f"# Dictionaries compared on {facts['model']}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "Every dictionary got the same tokens in the same order (per seed), Adam with the same "
        "schedule, and the same tuning: each learning rate of "
        f"{', '.join(f'{rate:g}' for rate in config.learning_rates)} at the middle level, chosen "
        "by FVU, among those within a quarter of the wanted L0, on rows used for nothing else. "
        "Brackets are 95 % intervals of the mean over seeds (Student's t): they say nothing of "
        "other text, layers or models. Differences are paired by seed and read off both "
        "frontiers at equal L0, without extrapolation.",
    ]
    return "\n\n".join([*parts, *(_section(each, rates) for each in answers)]) + "\n"


def _section(answer: Answer, rates: dict[str, float]) -> str:
    comparison = QUESTIONS[answer.question]
    parts = [f"## {comparison.title}", f"Claim: {comparison.claim}"]
    if answer.differences:
        parts.append(_findings(answer))
    parts.append(_records_table(answer, rates))
    if answer.differences:
        parts.append(_differences_table(answer))
    return "\n\n".join(parts)


def _findings(answer: Answer) -> str:
    lines = [
        f"- {METRICS[d.metric]}, mean over levels: {d.method} - {d.reference} = {_shown(d.value)}: "
        f"**{verdict(d)}**"
        for d in answer.overall
    ]
    return "\n".join(lines) or "No L0 is reached by both with every seed: nothing can be compared."


def _records_table(answer: Answer, rates: dict[str, float]) -> str:
    rows = []
    for method in dict.fromkeys(record.method for record in answer.records):
        own = [record for record in answer.records if record.method == method]
        for size, level in sorted({(record.n_features, record.level) for record in own}):
            at = [r for r in own if (r.n_features, r.level) == (size, level)]
            recovered = [r.ce_recovered for r in at if r.ce_recovered is not None]
            rows.append(
                [
                    method,
                    f"{size:,}",
                    f"{level}",
                    f"{fmean(r.l0 for r in at):.1f}",
                    _shown(_over_seeds(at, "fvu")),
                    _shown(_over_seeds(at, "ce_increase")),
                    f"{fmean(recovered):.3f}" if recovered else "-",
                    f"{fmean(r.dead_share for r in at):.1%}",
                    f"{fmean(r.above_1_percent for r in at):.1%}",
                    f"{fmean(r.above_10_percent for r in at):.1%}",
                    f"{1000 * fmean(r.cpu_s_per_step for r in at):.0f}",
                    f"{rates[method]:g}",
                ]
            )
    columns = ("method", "F", "wanted L0", "L0", "FVU", "CE increase (nats)")
    more = ("CE recovered (mean abl.)", "dead", "> 1 %", "> 10 %", "CPU ms a step", "lr")
    return markdown_table([*columns, *more], rows)


def _differences_table(answer: Answer) -> str:
    rows = [
        [
            d.method,
            METRICS[d.metric],
            "all" if d.l0 is None else f"{d.l0:g}",
            _shown(d.value),
            verdict(d),
        ]
        for d in answer.differences
    ]
    reference = QUESTIONS[answer.question].methods[0].name
    columns = ["method", "metric", "at L0", f"difference from {reference}", "so it is"]
    return "Differences at equal L0 (above 0 is worse):\n\n" + markdown_table(columns, rows)
