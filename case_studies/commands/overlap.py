"""`circuits overlap`: what circuits of several studies have in common."""

from functools import cache
from pathlib import Path

import typer

from case_studies.commands.display import print_json, print_table, progress_bar, write_config
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.overlaps.comparing import Comparison, compare
from case_studies.overlaps.config import OverlapConfig
from case_studies.overlaps.reading import read_circuits
from case_studies.overlaps.report import PAIR_COLUMNS, finding, pair_cells, report
from circuits import SplicedModel
from circuits.files import write_json, write_text

__all__ = ["command"]


@with_flags(OverlapConfig, "circuits")
def command(config: OverlapConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Compare circuits: nodes and edges in common, against chance, by layer and role.

    Circuits of one model and dictionary set by their features; of two dictionary sets by matched
    features; of two models by where the influence lies.
    """
    saved = read_circuits(config.circuits)

    @cache
    def load(model: str, dictionaries: str) -> SplicedModel:
        return load_spliced(model, dictionaries, check=config.check)

    with progress_bar("comparing circuits") as progress:
        found = compare(config, saved, load, progress)
    if out is not None:
        _write(out, config, found)
    if as_json:
        print_json(found.record.model_dump(mode="json"))
        return
    print_table(finding(found.record), PAIR_COLUMNS, pair_cells(found.record))
    if out is not None:
        typer.echo(f"the page, to look at: {out / 'overlap.html'}")


def _write(out: Path, config: OverlapConfig, found: Comparison) -> None:
    from case_studies.overlaps.page import overlap_figure
    from graphs import write_html

    out.mkdir(parents=True, exist_ok=True)
    write_config(out, "overlap", config)
    write_json(out / "overlap.json", found.record.model_dump(mode="json"))
    if found.shared is not None:
        found.shared.save(out / "graph.json")
    write_html(overlap_figure(found.record, title=finding(found.record)), out / "overlap.html")
    write_text(out / "report.md", report(found.record))
