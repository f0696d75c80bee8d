"""`circuits scan`: every feature of every dictionary over a corpus, in one pass of the model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from case_studies.commands.display import print_json, print_table
from case_studies.commands.flags import JsonFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.commands.train_plan import size
from circuits import SplicedModel
from circuits.feature_store import CorpusSettings, FeatureStore, ScanSettings
from circuits.feature_store.memory import ScanMemory, scan_memory
from circuits.feature_store.scan import scan
from circuits.plausibility import CHECK
from circuits.training.config import TrainedSite

__all__ = ["ScanConfig", "command"]

FolderFlag = Annotated[
    Path | None, typer.Option("--out", file_okay=False, help="Folder for the feature store.")
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Show the memory and disk it takes; write nothing.")
]


class ScanConfig(ScanSettings, CorpusSettings):
    """Everything needed to repeat a scan."""

    model: str = Field(default="tiny", description="subject model: a name or a path")
    dictionaries: str = Field(
        default="tiny", description="a published set, or a file or folder of dictionaries"
    )
    check: bool = Field(default=True, description=CHECK)
    sites: tuple[TrainedSite, ...] = Field(
        default=("mlp",), min_length=1, description="kinds of dictionaries to scan"
    )
    layers: tuple[int, ...] | None = Field(
        default=None, description="layers to scan; all if not given"
    )
    save_every: int = Field(
        default=2048, ge=1, description="rows between saves that an interrupted scan goes on from"
    )


@with_flags(ScanConfig)
def command(
    config: ScanConfig,
    out: FolderFlag = None,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Collect what every feature of every layer does on a corpus, resumably.

    Density, maximum, histogram, contexts of the largest activations and of each band, and the
    features active together with it. The same command with the same `--out` goes on where an
    interrupted scan stopped, and ends with the same bytes.
    """
    if out is None and not dry_run:
        raise ValueError("--out: want a folder for the feature store (only --dry-run needs none)")
    spliced = load_spliced(
        config.model,
        config.dictionaries,
        sites=config.sites,
        layers=config.layers,
        check=config.check,
    )
    settings = ScanSettings(**config.model_dump(include=set(ScanSettings.model_fields)))
    corpus = CorpusSettings(**config.model_dump(include=set(CorpusSettings.model_fields)))
    memory = scan_memory(_sizes(spliced), settings, corpus.context)
    if out is None or dry_run:
        _show_memory(memory, as_json)
        return
    typer.echo(f"Memory besides the model: at most {size(memory.peak)}", err=True)
    store = scan(
        spliced, corpus, out, settings=settings, save_every=config.save_every, progress=True
    )
    _show(store, as_json)


def _sizes(spliced: SplicedModel) -> dict[str, int]:
    return {p.name: p.dictionary.n_features for p in spliced.placements.values()}


def _show_memory(memory: ScanMemory, as_json: bool) -> None:
    parts = {
        "statistics and contexts": memory.kept,
        "active features held for co-activation": memory.entries,
        "counting co-activation, at the end": memory.counting,
        "activations of a batch": memory.batch,
        "at most at a time": memory.peak,
        "on disk": memory.disk,
    }
    if as_json:
        print_json(
            {f"{name.replace(' ', '_').replace(',', '')}_bytes": n for name, n in parts.items()}
        )
        return
    rows = [(name, size(n_bytes)) for name, n_bytes in parts.items()]
    print_table("Memory, besides the model and the dictionaries", ("for", "size"), rows)


def _show(store: FeatureStore, as_json: bool) -> None:
    """What was found in each dictionary, and where it is."""
    records: dict[str, dict[str, Any]] = {}
    for name in store.names:
        densities, maxima = store.densities(name), store.maxima(name)
        records[name] = {
            "n_features": len(densities),
            "n_never_active": int((densities == 0).sum()),
            "l0": float(densities.sum()),
            "maximum": float(maxima.max()),
        }
    if as_json:
        found = {"n_tokens": store.n_tokens, "out": str(store.folder), "dictionaries": records}
        print_json(found)
        return
    print_table(
        f"{store.manifest.model}: every feature on {store.n_tokens:,} tokens",
        ("dictionary", "features", "never active", "L0", "largest activation"),
        [
            (
                name,
                f"{r['n_features']:,}",
                f"{r['n_never_active']:,}",
                f"{r['l0']:.1f}",
                f"{r['maximum']:.3g}",
            )
            for name, r in records.items()
        ],
    )
    typer.echo(f"The store is in {store.folder}")
