"""`circuits evaluate`: the fidelity of dictionaries on text of one's own."""

from pydantic import BaseModel, ConfigDict, Field

from case_studies.commands.display import print_json, progress_bar, write_config
from case_studies.commands.fidelity_page import fidelity_figure
from case_studies.commands.fidelity_table import print_fidelity
from case_studies.commands.flags import JsonFlag, OutFlag, with_flags
from case_studies.commands.loading import load_spliced
from circuits.fidelity import evaluate
from circuits.files import write_json
from circuits.plausibility import CHECK
from circuits.training.buffer import full_rows
from circuits.training.config import TrainedSite
from circuits.training.text import bos_token, read_rows, trained_positions
from graphs.html import write_html

__all__ = ["EvaluateConfig", "command"]


class EvaluateConfig(BaseModel):
    """Everything needed to repeat an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("tiny", description="subject model: a name or a path")
    dictionaries: str = Field(
        default="tiny", description="a published set, or a file or folder of dictionaries"
    )
    check: bool = Field(default=True, description=CHECK)
    sites: tuple[TrainedSite, ...] = Field(("mlp",), description="kinds of dictionaries to judge")
    layers: tuple[int, ...] | None = Field(None, description="layers to judge; all if not given")
    text: str = Field(
        "sample",
        description="`sample` (text sampled from the model), or a file, folder or hub dataset as "
        "for `circuits train`",
    )
    n_tokens: int = Field(8192, ge=1, description="most tokens of text")
    context: int = Field(128, ge=2, description="tokens a row of text, the first one BOS")
    seed: int = Field(
        1, ge=0, description="seed of sampled text; another than training's gives new text"
    )


@with_flags(EvaluateConfig)
def command(config: EvaluateConfig, out: OutFlag = None, as_json: JsonFlag = False) -> None:
    """Measure the fidelity of dictionaries: L0, FVU, CE recovered, KL, density and more.

    Each dictionary alone, and all of a site together; CE recovered against mean and zero ablation.
    `--out` gets config.json, metrics.json and fidelity.html.
    """
    spliced = load_spliced(
        config.model,
        config.dictionaries,
        sites=config.sites,
        layers=config.layers,
        check=config.check,
    )
    with progress_bar("reading text") as progress:
        rows = read_rows(
            spliced.model,
            config.text,
            context=config.context,
            n_tokens=config.n_tokens,
            seed=config.seed,
            progress=progress,
        )
    bos = bos_token(spliced.model)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with progress_bar("measuring") as progress:
        report = evaluate(
            spliced, full_rows(rows, bos), keep=trained_positions(rows, bos), progress=progress
        )
    if out is not None:
        write_config(out, "evaluate", config)
        write_json(out / "metrics.json", report.model_dump(mode="json"))
        write_html(fidelity_figure(report), out / "fidelity.html")
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_fidelity(report)
