"""`circuits frontier`: features against neurons against heads against random, on the same axes."""

from collections.abc import Sequence

import typer

from case_studies.commands.display import print_json, print_table, progress_bar
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.frontiers.config import FrontierConfig
from case_studies.frontiers.files import write_frontiers
from case_studies.frontiers.report import COLUMNS, finding, rows
from case_studies.frontiers.run import run_frontiers
from case_studies.tasks.named import named_task

__all__ = ["command"]


@with_flags(FrontierConfig, "task")
def command(config: FrontierConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Size against faithfulness on a task: features, neurons, heads and random circuits."""
    task = named_task(config.task, frames=config.frames)
    spliced = load_spliced(config.model, config.dictionaries, check=config.check)
    with progress_bar("frontiers") as progress:
        result = run_frontiers(
            config, spliced, task, lambda what, share: progress(round(100 * share), 100)
        )
    page = None if out is None else write_frontiers(config, result, task, out)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for group in result.groups:
        print_table(finding(result, group), _brief(COLUMNS), [_brief(row) for row in rows(group)])
    if page is not None:
        typer.echo(f"the curves, to look at: {page}")


def _brief(row: Sequence[str]) -> Sequence[str]:
    """What fits a terminal: family, knee and the sizes that reach a level."""
    return [row[0], *row[2:6]]
