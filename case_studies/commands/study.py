"""`circuits study`: the circuit of a task, found and proved."""

from pathlib import Path

import typer

from case_studies.commands.display import print_json, print_table, progress_bar
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.study import StudyResult, run_study
from case_studies.study_config import StudyConfig
from case_studies.study_files import metrics_record, write_study
from case_studies.study_proof import ALL_FOUND
from case_studies.study_proof_text import worst_knockout
from case_studies.study_report import finding
from case_studies.tasks.named import named_task
from graphs.proof import Estimate
from graphs.proof.beside import MOST_ACTIVE, RANDOM, TOKENS_ONLY

__all__ = ["command"]


@with_flags(StudyConfig, "task")
def command(config: StudyConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Find and prove the circuit of a task: greater-than or ioi."""
    task = named_task(config.task, frames=config.frames)
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


def _show(config: StudyConfig, result: StudyResult, page: Path | None) -> None:
    behaviour = result.behaviour
    name = behaviour.metric_name.replace("_", " ")
    for group in result.groups:
        proof, table = group.proof, group.table
        random = table.control(RANDOM)
        rows = [
            ("model", f"{behaviour.metric:.3f}", f"success {behaviour.success_rate:.1%}"),
            ("all dictionaries in place", f"{result.spliced.metric:.3f}", "mode replace"),
            ("model, on the proof prompts", f"{proof.metric_model.value:.3f}", ""),
            ("circuit", f"{proof.metric_circuit.value:.3f}", f"{group.n_nodes} nodes"),
            ("every node ablated", f"{proof.metric_empty.value:.3f}", proof.choices.value),
            ("faithfulness", *_cells(proof.faithfulness)),
            (
                "  random circuits",
                f"{random.faithfulness.value:.3f}",
                f"best {random.faithfulness_range[1]:.3f}",
            ),
            *(
                (f"  {name}", *_cells(table.control(name).faithfulness))
                for name in (MOST_ACTIVE, TOKENS_ONLY, ALL_FOUND)
            ),
            ("left without the circuit", *_cells(proof.completeness)),
            ("lost with it", *_cells(proof.necessity)),
            ("  with all of it but tokens", *_cells(proof.necessity_features)),
            ("  with every node but tokens", *_cells(proof.necessity_all_features)),
            ("worst gap under knockouts", *_cells(worst_knockout(proof).worst)),
            ("nodes that matter, share", *_cells(proof.minimality.needed)),
            ("KL(model, circuit), nats", *_cells(proof.kl_circuit)),
            ("conservation error", f"{group.conservation_error:.1e}", "largest of all rows"),
        ]
        print_table(finding(config, result, group), ("", name, ""), rows)
        typer.echo(f"proved with: {proof.choices}\n")
    if page is not None:
        typer.echo(f"the circuit, to look at: {page}")


def _cells(number: Estimate) -> tuple[str, str]:
    return f"{number.value:.3f}", f"{number.low:.3f} to {number.high:.3f}"
