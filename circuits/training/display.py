"""A progress bar for training, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuits.training.trainer import Progress

__all__ = ["progress_bar", "summary"]


def summary(news: "Progress") -> str:
    """Mean FVU and L0 over the dictionaries in training, or nothing."""
    if not news.numbers:
        return ""
    n = len(news.numbers)
    fvu = sum(f for f, _ in news.numbers.values()) / n
    l0 = sum(l0 for _, l0 in news.numbers.values()) / n
    return f"FVU {fvu:.3f}  L0 {l0:.1f}  (mean of {n})"


@contextmanager
def progress_bar() -> Iterator[Callable[["Progress"], None]]:
    """One line a stage; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        tasks = {}

        def watch(news: "Progress") -> None:
            if news.stage not in tasks:
                tasks[news.stage] = bar.add_task(news.stage, total=news.total, numbers="")
            bar.update(
                tasks[news.stage], completed=news.done, total=news.total, numbers=summary(news)
            )

        yield watch
