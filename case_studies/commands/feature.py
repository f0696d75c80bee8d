"""`circuits feature`: what one feature reads and writes. Input-invariant: no prompt is run."""

from typing import Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from attribution import deembed_feature, promoted_and_suppressed
from attribution.invariant.extended import deembed_feature_extended, extended_embedding
from case_studies.commands.display import print_json, print_table, progress_bar
from case_studies.commands.explained import feature_place
from case_studies.commands.flags import JsonFlag, with_flags
from case_studies.commands.loading import load_spliced
from case_studies.commands.neighbours import Neighbours, find_neighbours
from circuits import SplicedModel

__all__ = ["FeatureConfig", "command"]

Scored = list[tuple[str, float]]


class FeatureConfig(BaseModel):
    """Which feature to show, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: str = Field(description="SITE.LAYER.INDEX, such as mlp.2.345")
    model: str = Field("tiny", description="subject model: a name or a path")
    dictionaries: str = Field("tiny", description="`tiny` or a folder of dictionaries")
    top: int = Field(10, ge=1, description="entries a list")


@with_flags(FeatureConfig, "feature")
def command(config: FeatureConfig, as_json: JsonFlag = False) -> None:
    """Show what one feature reads and writes, from weights alone.

    De-embedding: tokens whose embedding pushes it most; extended, once layer 0 has read them.
    Promoted and suppressed: logits it moves, relative to the mean token. Virtual weights: features
    of the same site below that write into it, and above that read it, along the residual stream.
    """
    site, layer, index = feature_place(config.feature)
    spliced = load_spliced(config.model, config.dictionaries, sites=(site,))
    name = f"{site}.{layer}"
    spliced.write_site(name)  # a missing layer is told before a missing feature
    _check_post_norm(spliced, site, layer)
    tokens = _token_lists(spliced, name, index, config.top)
    neighbours = find_neighbours(spliced, site, layer, index, config.top)
    if as_json:
        record: dict[str, Any] = {"model": spliced.model.name, "feature": config.feature}
        record |= {key: [list(pair) for pair in pairs] for key, pairs in tokens.items()}
        print_json(record | _neighbour_records(neighbours))
        return
    for key, pairs in tokens.items():
        rows = [[repr(what), f"{x:+.4g}"] for what, x in pairs]
        print_table(f"{config.feature}: {_TITLES[key]}", ["token", "score"], rows)
    shown = {key: near for key, near in neighbours.items() if near.n_looked_at}
    for key, near in shown.items():
        rows = [[n.name, f"{n.weight:+.4g}", f"{n.z:+.1f}", f"{n.p:.1e}"] for n in near.strongest]
        title = f"{_TITLES[key]}, strongest of {near.n_looked_at}"
        print_table(f"{config.feature}: {title}", ["feature", "weight", "z", "p"], rows)
    if shown:
        typer.echo(_NULL)


def _token_lists(spliced: SplicedModel, site: str, index: int, top: int) -> dict[str, Scored]:
    """What it reads, off the embedding and once layer 0 has read that; which logits it moves."""
    lists: dict[str, Scored] = {"deembedding": deembed_feature(spliced, site, index, top=top)}
    read = spliced.placements[spliced.write_site(site)].read
    if read.layer > 0 or read.kind == "resid_post":
        with progress_bar("reading the vocabulary") as progress:
            embedding = extended_embedding(spliced.model, progress=progress)
        lists["deembedding_extended"] = deembed_feature_extended(
            spliced, site, index, embedding=embedding, top=top
        )
    promoted, suppressed = promoted_and_suppressed(spliced, site, index, top=top)
    return lists | {"promoted": promoted, "suppressed": suppressed}


def _neighbour_records(neighbours: dict[str, Neighbours]) -> dict[str, Any]:
    """Names and weights; beside them, in the same order, how they stand against the null."""
    records: dict[str, Any] = {}
    for key, near in neighbours.items():
        records[key] = [[n.name, n.weight] for n in near.strongest]
        records[f"{key}_null"] = [{"z": n.z, "p": n.p} for n in near.strongest]
        records[f"{key}_looked_at"] = near.n_looked_at
    return records


def _check_post_norm(spliced: SplicedModel, site: str, layer: int) -> None:
    """Refuse before any work: a post-norm's denominator stands between the feature and the stream.

    Raises:
        ValueError: if the model normalises what the feature writes.
    """
    if site == "mlp" and spliced.model.norm("ln2_post", layer) is not None:
        raise ValueError(
            f"{spliced.model.name!r} normalises what mlp.{layer} writes (a post-norm), so its "
            "effect on logits and on other features depends on the prompt and has no weights-only "
            "form; use `circuits attribute` on a prompt"
        )


_TITLES = {
    "deembedding": "tokens it reads (de-embedding)",
    "deembedding_extended": "tokens it reads once layer 0 has read them (extended de-embedding)",
    "promoted": "logits it raises",
    "suppressed": "logits it lowers",
    "upstream": "features that write into it (virtual weight)",
    "downstream": "features that read it (virtual weight)",
}
_NULL = (
    "z and p compare a weight with that of a random writing direction of the same length: p is\n"
    "the chance of one as large; p times the number looked at is how many chance would give."
)
