"""`circuits attention`: why a head looks where it looks, as pairs of sources that add up."""

from typing import Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from attribution.qk.scores import attention_contrast, attention_row, attention_score
from case_studies.commands.attention_records import contrast_record, row_record, score_record
from case_studies.commands.attention_report import heading, remarks, report, tables
from case_studies.commands.display import print_json, print_table, progress_bar, write_config
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from circuits import SplicedModel
from circuits.files import write_json, write_text
from circuits.plausibility import CHECK
from circuits.training.config import TrainedSite

__all__ = ["AttentionConfig", "command"]


class AttentionConfig(BaseModel):
    """Which head of which model on which prompt, and what of it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(description="text to explain the head on")
    layer: int = Field(description="the head's layer, from 0")
    head: int = Field(description="the head in its layer, from 0")
    query: int = Field(-1, description="position that looks; negative ones count from the end")
    key: int | None = Field(
        None, description="why does it look at this position? none: all that it looks at"
    )
    instead_of: int | None = Field(
        None, description="why does it look at --key rather than at this position?"
    )
    model: str = Field("tiny", description="subject model: a name or a path")
    dictionaries: str = Field(
        default="tiny", description="a published set, or a file or folder of dictionaries"
    )
    check: bool = Field(default=True, description=CHECK)
    sites: tuple[TrainedSite, ...] = Field(("mlp",), description="kinds of dictionaries to use")
    top: int = Field(8, ge=1, description="strongest pairs, or most looked at positions, to list")


@with_flags(AttentionConfig, "prompt")
def command(config: AttentionConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Show why a head looks where it looks, as pairs of sources that add up.

    Without --key: how much the head looks at every position. With it: the score of that position,
    summed over pairs of what the query and the key are made of (features, tokens, heads below,
    errors, biases). With --instead-of: the same for the difference of two scores. `--out` gets
    config.json, metrics.json and report.md.
    """
    if config.instead_of is not None and config.key is None:
        raise ValueError("--instead-of needs a --key to be compared with; give both")
    spliced = load_spliced(
        config.model, config.dictionaries, sites=config.sites, check=config.check
    )
    with progress_bar("reading the scores"):
        record = _record(config, spliced)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_config(out, "attention", config)
        write_json(out / "metrics.json", {"version": 1, **record})
        write_text(out / "report.md", report(record, config.top))
    if as_json:
        print_json(record)
        return
    typer.echo(f"{heading(record)}\n")
    for title, columns, rows in tables(record, config.top):
        print_table(title, columns, rows)
    typer.echo("\n".join(remarks(record)))


def _record(config: AttentionConfig, spliced: SplicedModel) -> dict[str, Any]:
    ids, place = spliced.model.tokenize(config.prompt), (config.layer, config.head)
    tokens = spliced.model.token_strings(ids)
    if config.key is None:
        return row_record(spliced, tokens, attention_row(spliced, ids, *place, query=config.query))
    if config.instead_of is None:
        score = attention_score(spliced, ids, *place, key=config.key, query=config.query)
        return score_record(spliced, tokens, score, config.top)
    contrast = attention_contrast(
        spliced, ids, *place, here=config.key, there=config.instead_of, query=config.query
    )
    if contrast.here.key == contrast.there.key:
        raise ValueError(f"--key and --instead-of are both {contrast.here.key}; give two positions")
    return contrast_record(spliced, tokens, contrast, config.top)
