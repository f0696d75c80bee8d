"""From QK attribution to records: what `circuits attention --json` prints and `--out` keeps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attribution import Node
from attribution.qk.results import AttentionContrast, AttentionRow, AttentionScore
from attribution.qk.tables import SourcePair
from case_studies.node_notes import describe_nodes
from circuits import SplicedModel

__all__ = ["contrast_record", "row_record", "score_record"]

Record = dict[str, Any]

_LISTED = 5
"""Sources kept for each key of a row."""


def score_record(
    spliced: SplicedModel, tokens: tuple[str, ...], score: AttentionScore, top: int
) -> Record:
    """Why one query looks at one key: the `top` strongest sources and pairs, and the rest."""
    *pairs, rest = score.table(top)
    values, keys = score.pairs, [score.key] * len(score.key_sources)
    sums = {
        "by_query_source": _strongest(score.query_sources, values.sum(1), top),
        "by_key_source": _strongest(score.key_sources, values.sum(0), top, keys),
    }
    return {
        "kind": "score",
        **_place(spliced, tokens, score),
        **_score(tokens, score),
        "conservation_error": score.conservation_error(),
        **sums,
        **_pairs(spliced, [score], pairs, keys[:1] * len(pairs)),
        "other_pairs": rest.value,
        "labels": _labels(spliced, tokens, _listed(sums, pairs, [score])),
    }


def contrast_record(
    spliced: SplicedModel, tokens: tuple[str, ...], contrast: AttentionContrast, top: int
) -> Record:
    """Why one query looks at one key rather than at another."""
    *pairs, rest = contrast.table(top)
    both = [contrast.here, contrast.there]
    (here, there), nodes = both, [node for score in both for node in score.key_sources]
    by_query = here.pairs.sum(1) - there.pairs.sum(1)
    by_key = torch.cat([here.pairs.sum(0), -there.pairs.sum(0)])
    keys = [score.key for score in both for _ in score.key_sources]
    sums = {
        "by_query_source": _strongest(here.query_sources, by_query, top),
        "by_key_source": _strongest(nodes, by_key, top, keys),
    }
    return {
        "kind": "contrast",
        **_place(spliced, tokens, here),
        "here": _score(tokens, here),
        "there": _score(tokens, there),
        "difference": contrast.difference,
        "log_ratio": contrast.log_ratio,
        "conservation_error": max(score.conservation_error() for score in both),
        **sums,
        **_pairs(spliced, both, pairs, [_key_of(contrast, pair) for pair in pairs]),
        "other_pairs": rest.value,
        "labels": _labels(spliced, tokens, _listed(sums, pairs, both)),
    }


def row_record(spliced: SplicedModel, tokens: tuple[str, ...], row: AttentionRow) -> Record:
    """All that one query looks at, most looked at first, with the strongest sources of each key."""
    keys = [
        {
            "key": key,
            "key_token": tokens[key],
            "pattern": float(row.pattern[i]),
            "score": float(row.scores[i]),
            "strongest": _strongest(row.key_sources[i], row.by_key_source[i], _LISTED),
        }
        for i, key in enumerate(row.keys.tolist())
    ]
    return {
        "kind": "row",
        **_place(spliced, tokens, row),
        "conservation_error": row.conservation_error(),
        "keys": sorted(keys, key=lambda key: -key["pattern"]),
    }


def _place(
    spliced: SplicedModel, tokens: tuple[str, ...], result: AttentionScore | AttentionRow
) -> Record:
    return {
        "model": spliced.model.name,
        "prompt": "".join(tokens),
        "layer": result.layer,
        "head": result.head,
        "query": result.query,
        "query_token": tokens[result.query],
    }


def _score(tokens: tuple[str, ...], score: AttentionScore) -> Record:
    return {
        "key": score.key,
        "key_token": tokens[score.key],
        "score": score.score,
        "capped_score": score.capped_score,
        "softcap": score.softcap,
        "pattern": score.pattern,
    }


def _strongest(
    nodes: Sequence[Node], values: Float[Tensor, " source"], top: int, keys: Sequence[int] = ()
) -> list[Record]:
    """The `top` sources of one side, whatever they meet on the other; at which key, if told."""
    strongest = values.abs().argsort(descending=True, stable=True)[:top].tolist()
    return [
        {
            "source": nodes[i].id,
            "value": float(values[i]),
            **({"key": keys[i]} if keys else {}),
        }
        for i in strongest
    ]


def _key_of(contrast: AttentionContrast, pair: SourcePair) -> int:
    """The key position of a pair; those of `there` count with the opposite sign.

    A bias has no position in its id; its factor at a key is positive.
    """
    here, there = contrast.here, contrast.there
    if "@" in pair.key:
        return int(pair.key.rsplit("@", 1)[1])
    at_query = here.query_factors[here.query_sources.row(pair.query)]
    return here.key if pair.input_dependent * float(at_query) > 0 else there.key


def _nodes(scores: list[AttentionScore]) -> dict[str, Node]:
    tables = [table for score in scores for table in (score.query_sources, score.key_sources)]
    return {node.id: node for table in tables for node in table}


def _pairs(
    spliced: SplicedModel, scores: list[AttentionScore], pairs: list[SourcePair], keys: list[int]
) -> Record:
    """Pairs with the position of their key, and whether their weights part is weights alone."""
    of_weights = {name: _of_weights(spliced, node) for name, node in _nodes(scores).items()}
    records = [
        {
            "query_source": pair.query,
            "key_source": pair.key,
            "key": key,
            "value": pair.value,
            "share": None if math.isnan(pair.share) else pair.share,
            "prompt_part": pair.input_dependent,
            "weights_part": pair.input_invariant,
            "weights_only": of_weights[pair.query] and of_weights[pair.key],
        }
        for pair, key in zip(pairs, keys, strict=True)
    ]
    n_pairs = sum(score.invariant.numel() for score in scores)
    return {"pairs": records, "n_other_pairs": n_pairs - len(pairs)}


def _of_weights(spliced: SplicedModel, node: Node) -> bool:
    """Whether what a source writes is made of weights alone.

    What errors, held MLPs and heads write was made by the prompt; so was a constant behind a
    post-norm, which the norm's denominator divides.
    """
    if node.kind == "bias" and node.site == "attn":
        return spliced.model.norm("ln1_post", node.layer) is None
    if node.kind == "bias" and node.site == "mlp":
        behind = spliced.mlp_site(node.layer).kind == "mlp_out"
        return behind or spliced.model.norm("ln2_post", node.layer) is None
    return node.kind not in ("error", "sublayer")


def _listed(
    sums: dict[str, list[Record]], pairs: list[SourcePair], scores: list[AttentionScore]
) -> list[Node]:
    """Every source that the record names."""
    names = [record["source"] for side in sums.values() for record in side]
    names += [name for pair in pairs for name in (pair.query, pair.key)]
    nodes = _nodes(scores)
    return [nodes[name] for name in dict.fromkeys(names)]


def _labels(spliced: SplicedModel, tokens: tuple[str, ...], nodes: list[Node]) -> dict[str, str]:
    """By id, what a feature reads or says, and which token an input is."""
    notes = describe_nodes(spliced, nodes)
    inputs = {node.id: repr(tokens[node.pos]) for node in nodes if node.kind == "token"}
    return inputs | {name: note.label for name, note in notes.items()}
