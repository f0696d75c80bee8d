"""How far a run is, and a progress bar for it on stderr."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Progress", "Watcher", "progress_bar", "summary", "watching"]


@dataclass(frozen=True)
class Progress:
    """How far a run is, for a display.

    Args:
        stage: what is being done, in a few words.
        done: units done.
        total: units in all.
        numbers: latest FVU and L0 of the training batches, by dictionary.
    """

    stage: str
    done: int
    total: int
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)


Watcher = Callable[[Progress], None]


@contextmanager
def watching(progress: bool | Watcher) -> Iterator[Watcher]:
    """What to call with news: a bar on stderr (True), nothing (False), or a function itself."""
    if callable(progress):
        yield progress
    elif progress:
        with progress_bar() as watch:
            yield watch
    else:
        yield lambda news: None


def summary(news: Progress) -> str:
    """Mean FVU and L0 over the dictionaries in training, or nothing."""
    if not news.numbers:
        return ""
    n = len(news.numbers)
    fvu = sum(f for f, _ in news.numbers.values()) / n
    l0 = sum(l0 for _, l0 in news.numbers.values()) / n
    return f"FVU {fvu:.3f}  L0 {l0:.1f}  (mean of {n})"


@contextmanager
def progress_bar() -> Iterator[Watcher]:
    """One line a stage, from the first news on; yields the function that moves it."""
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
    bar, tasks = Bar(*columns, console=Console(stderr=True)), {}

    def watch(news: Progress) -> None:
        bar.start()
        if news.stage not in tasks:
            tasks[news.stage] = bar.add_task(news.stage, total=news.total, numbers="")
        bar.update(tasks[news.stage], completed=news.done, total=news.total, numbers=summary(news))

    try:
        yield watch
    finally:
        if tasks:
            bar.stop()
