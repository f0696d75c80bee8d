"""What hover boxes say of a circuit's features: de-embedding, promoted and suppressed logits."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from attribution import Node, deembed, direct_logit_attribution
from attribution.invariant.deembedding import effective_encoder
from attribution.invariant.logits import feature_directions
from circuits import SplicedModel
from graphs import NodeNotes

__all__ = ["describe_nodes"]


def _top_strings(
    spliced: SplicedModel, scores: Float[Tensor, "feature d_vocab"], n: int
) -> list[tuple[str, ...]]:
    return [spliced.model.token_strings(ids) for ids in scores.topk(n, dim=-1).indices]


def _prominence(scores: Float[Tensor, "feature d_vocab"]) -> Float[Tensor, " feature"]:
    """How far each row's largest score stands out, in standard deviations of the row."""
    return (scores.amax(1) - scores.mean(1)) / scores.std(1)


def _legible(tokens: tuple[str, ...]) -> str:
    """The first token that shows something, or the first if none does."""
    shown = [token.strip() for token in tokens]
    return next((t for t in shown if t and t.isprintable() and "\ufffd" not in t), shown[0])


def describe_nodes(
    spliced: SplicedModel, nodes: Iterable[Node], *, top: int = 6
) -> dict[str, NodeNotes]:
    """Notes for every feature node, by node id; weights only, so they hold on every prompt.

    The label is the feature's top de-embedding token ("reads") or its most promoted token ("says"),
    whichever stands out more from its row, in standard deviations; of either, the first that can be
    printed.
    """
    by_site: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.kind == "feature":
            by_site[f"{node.site}.{node.layer}"].append(node)
    final = spliced.model.norm("final")
    assert final is not None
    notes: dict[str, NodeNotes] = {}
    for site, members in by_site.items():
        placement = spliced.placements[spliced.write_site(site)]
        features = torch.tensor([node.feature for node in members])
        encoder = effective_encoder(spliced.model, placement)[features]
        decoder = feature_directions(spliced.model, placement)[features]
        deembedding = deembed(encoder, spliced.model.W_E)
        reads = _top_strings(spliced, deembedding, top)
        writes = direct_logit_attribution(decoder, spliced.model.W_U, final)
        is_reader = _prominence(deembedding) > _prominence(writes)
        promoted = _top_strings(spliced, writes, top)
        suppressed = _top_strings(spliced, -writes, top)
        rows = zip(members, reads, promoted, suppressed, is_reader.tolist(), strict=True)
        for node, read, up, down, reader in rows:
            label = f"reads {_legible(read)}" if reader else f"says {_legible(up)}"
            notes[node.id] = NodeNotes(deembedding=read, promoted=up, suppressed=down, label=label)
    return notes
