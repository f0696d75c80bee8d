"""`circuits train`: dictionaries for many layers in one pass, resumable."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from case_studies.commands.display import print_json
from case_studies.commands.fidelity_table import print_fidelity
from case_studies.commands.flags import JsonFlag, with_flags
from case_studies.commands.train_plan import print_plan
from case_studies.commands.variants import parse_variants
from circuits.fidelity import FidelityReport
from circuits.training import TrainingConfig, train, train_many
from circuits.training.plan import plan_training
from circuits.training.processes import leads

__all__ = ["command"]

FolderFlag = Annotated[
    Path | None, typer.Option("--out", file_okay=False, help="Folder for dictionaries and metrics.")
]
VariantFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="SETTINGS",
        help="Train a variant, from the same pass of the model, into OUT/NAME: "
        '"k=16", "architecture=jumprelu,k=64", "small: n_features=512". May be repeated.',
    ),
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Show memory and expected time; write nothing.")
]


@with_flags(TrainingConfig)
def command(
    config: TrainingConfig,
    out: FolderFlag = None,
    variant: VariantFlag = None,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train transcoders and SAEs for a model, resumably.

    The same command with the same `--out` goes on where an interrupted run stopped, and ends with
    the same bytes. Fidelity is measured on rows of text kept out of training.

    With several processes: `torchrun --nproc-per-node 2 -m case_studies train ...`.
    """
    variants = parse_variants(config, variant or [])
    if dry_run:
        plan = plan_training(variants or {"": config})
        if as_json:
            print_json(plan.model_dump(mode="json"))
        else:
            print_plan(plan)
        return
    if out is None:
        raise ValueError("--out: want a folder for the dictionaries (only --dry-run needs none)")
    if variants:
        reports = train_many(variants, out=out)
    else:
        report = train(config, out=out)
        reports = None if report is None else {"": report}
    assert reports is not None, "a run without stop_after ends with reports"
    if leads():
        _show(reports, out, as_json)


def _show(reports: Mapping[str, FidelityReport], out: Path, as_json: bool) -> None:
    """Where files are, and the fidelity."""
    if as_json:
        records = {name: report.model_dump(mode="json") for name, report in reports.items()}
        single = records.get("")
        print_json({**(single or {"variants": records}), "out": str(out)})
        return
    for name, report in reports.items():
        if name:
            typer.echo(f"{name}: {out / name}")
        print_fidelity(report)
    folder = out / "NAME" if "" not in reports else out
    typer.echo(
        f"Dictionaries are in {folder}/SITE.LAYER.safetensors, these numbers in "
        f"{folder / 'metrics.json'}"
    )
