"""`circuits train`: dictionaries for many layers in one pass, resumable."""

from pathlib import Path
from typing import Annotated

import typer

from case_studies.commands.display import print_json
from case_studies.commands.fidelity_table import print_fidelity
from case_studies.commands.flags import JsonFlag, with_flags
from circuits.training import TrainingConfig, train

__all__ = ["command"]

FolderFlag = Annotated[
    Path, typer.Option("--out", file_okay=False, help="Folder for dictionaries and metrics.")
]


@with_flags(TrainingConfig)
def command(config: TrainingConfig, out: FolderFlag, as_json: JsonFlag = False) -> None:
    """Train transcoders and SAEs for a model, resumably.

    The same command with the same `--out` goes on where an interrupted run stopped. Fidelity is
    measured on rows of text kept out of training.
    """
    report = train(config, out=out)
    assert report is not None, "a run without stop_after ends with a report"
    if as_json:
        print_json({**report.model_dump(mode="json"), "out": str(out)})
    else:
        print_fidelity(report)
