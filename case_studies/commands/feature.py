"""`circuits feature`: what one feature reads and writes. Input-invariant: no prompt is run."""

from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from attribution import deembed_feature, promoted_and_suppressed, virtual_weights
from case_studies.commands.display import print_json, print_table
from case_studies.commands.flags import JsonFlag, with_flags
from case_studies.commands.loading import load_spliced
from circuits import Dictionary, SplicedModel
from circuits.sites import DICTIONARY_SITES

__all__ = ["FeatureConfig", "command"]

Scored = list[tuple[str, float]]


class FeatureConfig(BaseModel):
    """Which feature to show, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: str = Field(description="SITE.LAYER.INDEX, such as mlp.2.345")
    model: str = Field("tiny", description="subject model: a name or a path")
    dictionaries: str = Field("tiny", description="`tiny` or a folder of dictionaries")
    top: int = Field(10, ge=1, description="entries a list")

    @property
    def place(self) -> tuple[str, int, int]:
        """Site, layer and index.

        Raises:
            ValueError: if `feature` is not of the form SITE.LAYER.INDEX.
        """
        site, *numbers = self.feature.split(".")
        known = ("mlp", *DICTIONARY_SITES)
        if site not in known or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
            raise ValueError(
                f"want a feature as SITE.LAYER.INDEX, such as mlp.2.345, with a site of "
                f"{', '.join(known)}; got {self.feature!r}"
            )
        return site, int(numbers[0]), int(numbers[1])


@with_flags(FeatureConfig, "feature")
def command(config: FeatureConfig, as_json: JsonFlag = False) -> None:
    """Show what one feature reads and writes, from weights alone.

    De-embedding: tokens whose embedding pushes it most. Promoted and suppressed: logits it moves,
    relative to the mean token. Virtual weights: features of the same site below that write into
    it, and above that read it, along the residual stream.
    """
    site, layer, index = config.place
    spliced = load_spliced(config.model, config.dictionaries, sites=(site,))
    name = f"{site}.{layer}"
    spliced.write_site(name)  # a missing layer is told before a missing feature
    reads = deembed_feature(spliced, name, index, top=config.top)
    promoted, suppressed = promoted_and_suppressed(spliced, name, index, top=config.top)
    lists: dict[str, Scored] = {
        "deembedding": reads,
        "promoted": promoted,
        "suppressed": suppressed,
        **_neighbours(spliced, site, layer, index, config.top),
    }
    if as_json:
        record: dict[str, Any] = {
            key: [list(pair) for pair in pairs] for key, pairs in lists.items()
        }
        print_json({"model": spliced.model.name, "feature": config.feature, **record})
        return
    for title, pairs in lists.items():
        rows = [[repr(what) if title in _OF_TOKENS else what, f"{x:+.4g}"] for what, x in pairs]
        print_table(f"{config.feature}: {_TITLES[title]}", ["what", "score"], rows)


_OF_TOKENS = ("deembedding", "promoted", "suppressed")
_TITLES = {
    "deembedding": "tokens it reads (de-embedding)",
    "promoted": "logits it raises",
    "suppressed": "logits it lowers",
    "upstream": "features that write into it (virtual weight)",
    "downstream": "features that read it (virtual weight)",
}


def _neighbours(
    spliced: SplicedModel, site: str, layer: int, index: int, top: int
) -> dict[str, Scored]:
    """The strongest virtual weights from below and to above, by size.

    Each pair of dictionaries is taken by itself, the one feature cut out of its own.
    """
    dictionaries = {write.layer: p.dictionary for write, p in spliced.placements.items()}
    one, here = _only(dictionaries[layer], index), f"{site}.{layer}"
    upstream: Scored = []
    downstream: Scored = []
    for other, dictionary in dictionaries.items():
        if other == layer:
            continue
        there = f"{site}.{other}"
        pair = SplicedModel(spliced.model, {here: one, there: dictionary})
        if other < layer:
            upstream += _largest(there, virtual_weights(pair, here, there)[0], top)
        else:
            downstream += _largest(there, virtual_weights(pair, there, here)[:, 0], top)
    return {
        "upstream": sorted(upstream, key=lambda p: -abs(p[1]))[:top],
        "downstream": sorted(downstream, key=lambda p: -abs(p[1]))[:top],
    }


def _only(dictionary: Dictionary, index: int) -> Dictionary:
    """The dictionary with one feature left."""
    threshold = dictionary.threshold
    return replace(
        dictionary,
        W_enc=dictionary.W_enc[:, [index]],
        W_dec=dictionary.W_dec[[index]],
        b_enc=dictionary.b_enc[[index]],
        threshold=None if threshold is None else threshold[[index]],
    )


def _largest(site: str, weights: torch.Tensor, top: int) -> Scored:
    found = weights.abs().topk(min(top, len(weights))).indices.tolist()
    return [(f"{site}.{feature}", float(weights[feature])) for feature in found]
