"""`circuits study`: the circuit of a task, found and proved."""

from pathlib import Path

import typer

from case_studies.commands.display import print_json, print_table, progress_bar
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.study import StudyConfig, StudyResult, run_study
from case_studies.study_files import metrics_record, write_study
from case_studies.study_report import finding
from case_studies.tasks import GreaterThanTask, IoiTask, Task

__all__ = ["command"]


@with_flags(StudyConfig, "task")
def command(config: StudyConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Find and prove the circuit of a task: greater-than or ioi."""
    task = _task(config)
    spliced = load_spliced(config.model, config.dictionaries, check=config.check)
    with progress_bar("study") as progress:
        result = run_study(
            config, spliced, task, lambda what, share: progress(round(100 * share), 100)
        )
    page = None if out is None else write_study(config, spliced, task, result, out)
    if as_json:
        print_json(metrics_record(config, result))
    else:
        _show(config, result, page)


def _task(config: StudyConfig) -> Task:
    if config.task == "greater-than":
        return GreaterThanTask()
    return IoiTask(frames=config.frames)


def _show(config: StudyConfig, result: StudyResult, page: Path | None) -> None:
    behaviour = result.behaviour
    name = behaviour.metric_name.replace("_", " ")
    for group in result.groups:
        low, high = group.circuit.interval
        randoms = group.random_faithfulness
        rows = [
            ("model", f"{behaviour.metric:.3f}", f"success {behaviour.success_rate:.1%}"),
            ("all dictionaries in place", f"{result.spliced.metric:.3f}", "mode replace"),
            ("model, on the proof prompts", f"{group.circuit.metric_model:.3f}", ""),
            ("circuit", f"{group.circuit.metric_circuit:.3f}", f"{group.n_nodes} nodes"),
            ("every node patched", f"{group.circuit.metric_empty:.3f}", "corrupted prompts"),
            ("faithfulness", f"{group.circuit.faithfulness:.3f}", f"{low:.3f} to {high:.3f}"),
            ("random circuits", f"{sum(randoms) / len(randoms):.3f}", f"best {max(randoms):.3f}"),
            ("the circuit's tokens alone", f"{group.tokens_only.faithfulness:.3f}", ""),
            ("conservation error", f"{group.conservation_error:.1e}", "largest of all rows"),
        ]
        print_table(finding(config, result, group), ("", name, ""), rows)
    if page is not None:
        typer.echo(f"the circuit, to look at: {page}")
