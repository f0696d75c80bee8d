"""What commands show: results on stdout, progress on stderr, files in the `--out` folder."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from circuits.files import write_json

__all__ = [
    "addends",
    "markdown_table",
    "print_json",
    "print_table",
    "progress_bar",
    "shares",
    "write_config",
]


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


def addends(values: Sequence[float]) -> list[str]:
    """Terms and, last, what they add up to, all to the same decimals.

    Four digits of the largest; where large terms nearly cancel more, to show three of the sum, but
    no more than the seven that a float32 has.

    Example:
        >>> addends([1.5, -0.25, 0.00001, 1.25001])
        ['+1.500', '-0.250', '+0.000', '+1.250']
        >>> addends([100.0, -99.9877, 0.0123])
        ['+100.0000', '-99.9877', '+0.0123']
    """
    first = _first_digit(max((abs(value) for value in values), default=0.0))
    decimals = min(max(3 - first, 2 - _first_digit(values[-1])), 6 - first)
    return [f"{value:+z.{max(0, decimals)}f}" for value in values]


def _first_digit(value: float) -> int:
    """The power of ten of the first digit; of 0, above all that is shown."""
    return math.floor(math.log10(abs(value))) if value else 3


def shares(values: Sequence[float], total: float) -> list[str]:
    """Each value as a percentage of the total; nothing where that is zero.

    Example:
        >>> shares([1.0, -0.5], 0.5)
        ['200.0%', '-100.0%']
    """
    return [f"{value / total:z.1%}" if total else "" for value in values]


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
