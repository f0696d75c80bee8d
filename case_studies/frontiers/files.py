"""What frontiers leave in their folder: settings, numbers, figures and a report."""

import re
from pathlib import Path

from case_studies.commands.display import write_config
from case_studies.frontiers.config import FrontierConfig
from case_studies.frontiers.report import finding, report
from case_studies.frontiers.run import FrontierResult
from case_studies.tasks.task import Task
from circuits.files import write_json, write_text
from graphs import plot_frontiers, write_html

__all__ = ["write_frontiers"]

_SHOWN = ("integrated gradients", "ACDC", "random")
"""Methods drawn at first; the others wait in the legend."""


def write_frontiers(config: FrontierConfig, result: FrontierResult, task: Task, out: Path) -> Path:
    """Write `config.json`, `frontier.json`, `frontier.html` and `report.md`.

    Further groups get figures of their own, `frontier-BABA.html` and so on.

    Returns:
        The path of `frontier.html`.

    Raises:
        OSError: if the folder cannot be written; no file is left half-written.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, "frontier", config)
    write_json(out / "frontier.json", result.model_dump(mode="json"))
    for number, group in enumerate(result.groups):
        suffix = "-" + re.sub(r"\W+", "_", group.group) if number else ""
        names = [family.family for family in group.frontiers]
        figure = plot_frontiers(
            group.frontiers,
            title=finding(result, group),
            hidden=[name for name in names if not name.endswith(_SHOWN)],
        )
        write_html(figure, out / f"frontier{suffix}.html")
    write_text(out / "report.md", report(config, result, task))
    return out / "frontier.html"
