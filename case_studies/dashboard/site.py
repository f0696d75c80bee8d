"""A browsable site of features: a page each, and an index with search."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from case_studies.dashboard.build import Source, feature_records
from case_studies.dashboard.page import Surroundings, feature_page
from case_studies.dashboard.records import Missing
from case_studies.dashboard.site_index import index_page, index_row
from circuits.files import write_text

__all__ = ["chosen_features", "write_site"]

Progress = Callable[[int, int], None]


def chosen_features(source: Source, limit: int | None) -> dict[str, list[int]]:
    """The features of every dictionary that get a page, in the order of their indices.

    Args:
        source: the dictionaries, and the store if there is one.
        limit: at most so many of each dictionary; None for all. With a store, features that were
            never active give way to those that were.
    """
    chosen: dict[str, list[int]] = {}
    for name, spliced in source.spliced.items():
        order = list(range(spliced.placements[spliced.write_site(name)].dictionary.n_features))
        if not isinstance(source.store, Missing):
            densities = source.store.densities(name).tolist()
            order.sort(key=lambda i: densities[i] == 0)
        chosen[name] = sorted(order[:limit])
    return chosen


def write_site(
    folder: Path,
    source: Source,
    chosen: Mapping[str, Sequence[int]],
    *,
    top: int,
    command: Callable[[str], str],
    site_command: str,
    progress: Progress | None = None,
) -> int:
    """Write the pages, then `index.html`.

    Args:
        folder: must exist.
        source: what records are made from.
        chosen: the features of each dictionary.
        top: entries a list.
        command: how the page of a feature alone is made, from its name.
        site_command: how the site is made.
        progress: called with (pages done, pages in all).

    Returns:
        The number of pages, the index not counted.
    """
    names = [f"{name}.{index}" for name, features in chosen.items() for index in features]
    made, order = frozenset(names), ["", *names, ""]
    rows = []
    for name, features in chosen.items():
        for record in feature_records(source, name, features, top=top):
            around = order[len(rows)], order[len(rows) + 2]
            among = Surroundings(made, command(record.name), has_index=True, order=around)
            write_text(folder / f"{record.name}.html", feature_page(record, among))
            rows.append(index_row(record))
            if progress is not None:
                progress(len(rows), len(names))
    model = source.model.name
    facts = [("model", model), ("dictionaries", source.dictionaries)]
    if not isinstance(source.store, Missing):
        facts.append(("corpus", f"{source.store.n_tokens:,} tokens"))
    title = f"{len(rows):,} features of {model}, in {len(chosen)} dictionaries"
    page = index_page(rows, title, [*facts, ("made by", site_command)])
    write_text(folder / "index.html", page)
    return len(rows)
