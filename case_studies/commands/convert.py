"""`circuits convert`: dictionaries from one program's files to another's."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from case_studies.commands.display import print_json
from case_studies.commands.flags import JsonFlag, with_flags
from circuits import load_dictionaries, save_dictionaries
from circuits.training.config import TrainedSite

__all__ = ["ConvertConfig", "command"]

_FolderFlag = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder to write to.")]


class ConvertConfig(BaseModel):
    """What to convert, and to what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="a published set, hf:OWNER/NAME, or a file or folder")
    to: str = Field(description="circuitloom, saelens or circuit-tracer")
    sites: tuple[TrainedSite, ...] | None = Field(
        None, description="kinds to convert; if left out transcoders, or SAEs if there are none"
    )
    layers: tuple[int, ...] | None = Field(None, description="which layers; all if left out")
    model: str = Field("", description="name of the model in the new files; empty keeps it")


@with_flags(ConvertConfig, "source")
def command(config: ConvertConfig, out: _FolderFlag, as_json: JsonFlag = False) -> None:
    """Write dictionaries in the format of another program.

    What was subtracted from inputs stays folded into the encoder's bias, so that the new files
    compute the same. What the other format cannot hold is refused before anything is written.
    """
    found = load_dictionaries(config.source, sites=config.sites, layers=config.layers)
    models = {entry.model for entry in found.entries.values() if entry.model}
    if not config.model and len(models) != 1:
        raise ValueError(
            f"the files name {', '.join(sorted(models)) or 'no model'}; say which with --model"
        )
    model = config.model or models.pop()
    save_dictionaries(found, out, format=config.to, model=model)
    record = {"dictionaries": list(found), "folder": str(out), "format": config.to, "model": model}
    if as_json:
        print_json(record)
    else:
        typer.echo(f"wrote {', '.join(found)} for {model} to {out} as {config.to}")
