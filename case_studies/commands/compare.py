"""`circuits compare`: the papers' comparisons of dictionaries, on a model of one's own."""

import json
import platform
from pathlib import Path
from typing import Annotated

import typer

from case_studies.commands.display import print_json, print_table, progress_bar, write_config
from case_studies.commands.flags import JsonFlag, with_flags
from case_studies.comparisons.config import ComparisonConfig
from case_studies.comparisons.matched import verdict
from case_studies.comparisons.report import METRICS, answer, figures, write_report
from case_studies.comparisons.runs import run_all
from circuits import load_model
from circuits.files import write_json, write_text
from circuits.precision import fast_float32
from circuits.training.text import read_rows
from graphs.html import write_html

__all__ = ["command"]

FolderFlag = Annotated[
    Path, typer.Option("--out", file_okay=False, help="Folder for report, figures and records.")
]


@with_flags(ComparisonConfig)
def command(config: ComparisonConfig, out: FolderFlag, as_json: JsonFlag = False) -> None:
    """Compare architectures, sites and sizes of dictionaries at equal L0, with seeds.

    Equal tokens and equal tuning for every method; 95 % intervals over seeds. The same command
    with the same `--out` goes on where an interrupted run stopped.
    """
    _claim(out, config)
    model = load_model(config.model)
    layer = model.n_layers // 2 if config.layer is None else config.layer
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"--layer: {config.model} has 0 to {model.n_layers - 1}, got {layer}")
    with progress_bar("reading text") as progress, fast_float32(model.device):
        rows = read_rows(
            model,
            config.text,
            context=config.context,
            n_tokens=config.n_text_tokens,
            progress=progress,
        )
    if len(rows) <= 2 * config.n_eval_rows:
        raise ValueError(
            f"the text fills {len(rows)} rows; want more than the 2 x {config.n_eval_rows} kept "
            "for choosing and judging: give more text or fewer --n-eval-rows"
        )
    with progress_bar("comparing") as progress:
        rates, records = run_all(config, model, rows, out, lambda _, *n: progress(*n))
    answers = [answer(config, question, records) for question in config.questions]
    facts = {
        "model": config.model,
        "layer": f"{layer} of {model.n_layers}",
        "text": f"{config.text}, {rows.numel():,} tokens; {config.n_tokens:,} presented",
        "judged on": f"{config.n_eval_rows} rows of {config.context} tokens kept out",
        "seeds": ", ".join(map(str, config.seeds)),
        "machine": f"{platform.machine()}, {model.device.type}",
    }
    write_text(out / "report.md", write_report(config, answers, rates, facts))
    for each in answers:
        for metric, figure in zip(METRICS, figures(each), strict=True):
            write_html(figure, out / f"{each.question}_{metric}.html")
    overall = [
        {
            "question": each.question,
            "method": d.method,
            "reference": d.reference,
            "metric": d.metric,
            "difference": vars(d.value),
            "verdict": verdict(d),
        }
        for each in answers
        for d in each.overall
    ]
    write_json(
        out / "metrics.json",
        {"learning_rates": rates, "differences": overall}
        | {"records": [record.model_dump() for record in records]},
    )
    if as_json:
        print_json({"out": str(out), "learning_rates": rates, "differences": overall})
        return
    for each in answers:
        print_table(
            each.question,
            ["method", "metric", "difference at equal L0", "so it is"],
            [
                [d.method, METRICS[d.metric], f"{d.value.mean:+.4f}", verdict(d)]
                for d in each.overall
            ],
        )
    typer.echo(f"Tables with intervals are in {out / 'report.md'}, figures beside it.")


def _claim(out: Path, config: ComparisonConfig) -> None:
    """Write `config.json`, or check that the folder's comparison is this one.

    Raises:
        ValueError: if it has other settings.
    """
    path = out / "config.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_config(out, "compare", config)
        return
    if json.loads(path.read_text()).get("settings") != config.model_dump(mode="json"):
        raise ValueError(
            f"{out} holds a comparison with other settings (see {path}); use another folder"
        )
