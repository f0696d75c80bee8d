"""`circuits feature`: what one feature reads, writes and fires on; pages of one, or of all."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel, ConfigDict, Field, model_validator

from attribution.invariant.deembedding import check_feature
from case_studies.commands.display import print_json, progress_bar, write_config
from case_studies.commands.explained import feature_place
from case_studies.commands.feature_tables import feature_json, print_feature
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced, splice
from case_studies.dashboard.build import Source, feature_records, open_source
from case_studies.dashboard.page import Surroundings, feature_page
from case_studies.dashboard.places import in_order
from case_studies.dashboard.records import Missing
from case_studies.dashboard.site import chosen_features, write_site
from circuits import SplicedModel, load_dictionaries
from circuits.feature_store import FeatureStore
from circuits.files import write_json, write_text
from circuits.plausibility import CHECK
from circuits.training.config import TrainedSite

__all__ = ["FeatureConfig", "command"]


class FeatureConfig(BaseModel):
    """Which feature to show, or all; and how much of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: str | None = Field(
        None, description="SITE.LAYER.INDEX, such as mlp.2.345; 2.345 is mlp.2.345"
    )
    model: str = Field("tiny", description="subject model: a name or a path")
    dictionaries: str = Field(
        default="tiny", description="a published set, or a file or folder of dictionaries"
    )
    check: bool = Field(default=True, description=CHECK)
    store: str | None = Field(
        None, description="folder of a scan (`circuits scan`): contexts, density and partners"
    )
    top: int = Field(10, ge=1, description="entries a list")
    all: bool = Field(False, description="a site with a page for every feature; needs --out")
    limit: int | None = Field(
        None, ge=1, description="with --all: pages a dictionary, first of features that fire"
    )
    sites: tuple[TrainedSite, ...] = Field(
        ("mlp",), description="with --all: kinds of dictionaries to show"
    )

    @model_validator(mode="after")
    def _one_or_all(self) -> "FeatureConfig":
        if self.all == (self.feature is not None):
            raise ValueError("want one feature, such as mlp.2.345, or --all with --out DIR")
        if not self.all and (self.limit is not None or self.sites != ("mlp",)):
            raise ValueError("--limit and --sites choose pages of --all; add it, or leave them out")
        return self


@with_flags(FeatureConfig, "feature")
def command(config: FeatureConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Show what one feature reads, writes and, given a scan of a corpus, fires on.

    De-embedding: tokens whose embedding pushes it most; extended, once layer 0 has read them.
    Promoted and suppressed: logits it moves, relative to the mean token. Virtual weights: features
    of the same site below that write into it, and above that read it, along the residual stream.
    `--out` gets its page, such as mlp.2.345.html, and the numbers as JSON; with `--all`, a page
    for every feature, and index.html with search.
    """
    if config.all:
        _every(config, out, as_json)
    else:
        _one(config, out, as_json)


def _one(config: FeatureConfig, out: Path | None, as_json: bool) -> None:
    assert config.feature is not None
    site, layer, index = _place(config.feature)
    spliced = load_spliced(config.model, config.dictionaries, sites=(site,), check=config.check)
    # a missing layer is told before a missing feature
    placement = spliced.placements[spliced.write_site(f"{site}.{layer}")]
    check_feature(placement.dictionary, index)
    source = _source(config, {placement.name: spliced})
    (record,) = feature_records(source, placement.name, [index], top=config.top)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        made = frozenset(page.stem for page in out.glob("*.html"))
        among = Surroundings(made, _command(config, record.name, out), "index" in made)
        write_text(out / f"{record.name}.html", feature_page(record, among))
        write_json(out / f"{record.name}.json", {"version": 1, **feature_json(record)})
        write_config(out, "feature", config)
    if as_json:
        print_json(feature_json(record))
    else:
        print_feature(record, config.top)


def _every(config: FeatureConfig, out: Path | None, as_json: bool) -> None:
    if out is None:
        raise ValueError("--all writes a site of pages; give its folder with --out DIR")
    source = _source(config, _spliced(config))
    chosen = chosen_features(source, config.limit)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar("writing pages") as progress:
        n_pages = write_site(
            out,
            source,
            chosen,
            top=config.top,
            command=lambda name: _command(config, name, out),
            site_command=_command(config, "--all", out),
            progress=progress,
        )
    write_config(out, "feature", config)
    summary: dict[str, Any] = {"n_pages": n_pages, "index": str(out / "index.html")}
    if as_json:
        print_json(summary)
    else:
        typer.echo(f"{n_pages:,} pages; open {summary['index']}")


def _place(text: str) -> tuple[str, int, int]:
    """Site, layer and index; two numbers alone are those of a transcoder's feature."""
    parts = text.split(".")
    alone = len(parts) == 2 and all(part.isdecimal() for part in parts)
    return feature_place(f"mlp.{text}" if alone else text)


def _spliced(config: FeatureConfig) -> dict[str, SplicedModel]:
    """The name of every dictionary, and the model with those of its site."""
    first, *others = config.sites
    by_site = [load_spliced(config.model, config.dictionaries, sites=(first,), check=config.check)]
    for site in others:
        found = load_dictionaries(config.dictionaries, sites=(site,))
        by_site.append(splice(by_site[0].model, found, check=config.check))
    pairs = [(placement.name, on) for on in by_site for placement in in_order(on)]
    if len(dict(pairs)) < len(pairs):
        raise ValueError(
            "resid_pre.1 is the same place as resid_post.0, and so on up; give one of them to "
            "--sites, or make two sites"
        )
    return dict(pairs)


def _source(config: FeatureConfig, spliced: dict[str, SplicedModel]) -> Source:
    store = _how_to_scan(config, spliced)
    if config.store is not None:
        store = FeatureStore.open(config.store)
    with progress_bar("reading the vocabulary") as progress:
        return open_source(spliced, config.dictionaries, store, progress)


def _how_to_scan(config: FeatureConfig, names: Iterable[str]) -> Missing:
    sites = ",".join(dict.fromkeys(name.split(".")[0] for name in names))
    scan = ["circuits", "scan", "--model", config.model, "--dictionaries", config.dictionaries]
    return Missing(
        f"No scan of a corpus was given. Make one with `{shlex.join(scan)} --sites {sites} --out "
        "STORE`, and add `--store STORE` to the command that makes this page."
    )


def _command(config: FeatureConfig, what: str, out: Path) -> str:
    """The command that makes the page of one feature, or the site."""
    parts = ["circuits", "feature", what, "--model", config.model]
    parts += ["--dictionaries", config.dictionaries]
    if config.store is not None:
        parts += ["--store", config.store]
    if config.top != FeatureConfig.model_fields["top"].default:
        parts += ["--top", str(config.top)]
    if what == "--all":
        parts += ["--sites", ",".join(config.sites)]
        parts += [] if config.limit is None else ["--limit", str(config.limit)]
    return shlex.join([*parts, "--out", str(out)])
