"""What commands show: results on stdout, progress on stderr, files in the `--out` folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from circuits.files import write_json

__all__ = ["markdown_table", "print_json", "print_table", "progress_bar", "write_config"]


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON object on stdout, keys sorted."""
    typer.echo(json.dumps(record, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A titled table on stdout; its cells are plain text, whatever brackets they hold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(Text(title), table, "", sep="\n")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A Markdown table; bars in cells are escaped.

    Example:
        >>> markdown_table(["a"], [["x|y"]]).splitlines()
        ['| a |', '| --- |', '| x\\|y |']
    """
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell.replace("|", "\\|").replace("\n", "⏎") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that goes away when done; yields a function of (done, in all).

    Where stderr is no terminal there is no bar, so that a log holds lines alone.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write_config(folder: Path, command: str, config: BaseModel) -> None:
    """Write `config.json`: the command, its settings, and the versions it ran with."""
    record = {
        "command": command,
        "settings": config.model_dump(mode="json"),
        "versions": {name: _version(name) for name in ("circuitloom", "torch", "transformer-lens")},
    }
    write_json(folder / "config.json", record)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
