"""What hover boxes say of a circuit's features: de-embedding, promoted and suppressed logits."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from attribution import Node, deembed, direct_logit_attribution
from attribution.deembedding import effective_encoder
from circuits import SplicedModel
from graphs import NodeNotes

__all__ = ["describe_nodes"]


def _top_strings(
    spliced: SplicedModel, scores: Float[Tensor, "feature d_vocab"], n: int
) -> list[tuple[str, ...]]:
    return [spliced.model.token_strings(ids) for ids in scores.topk(n, dim=-1).indices]


def describe_nodes(
    spliced: SplicedModel, nodes: Iterable[Node], *, top: int = 6
) -> dict[str, NodeNotes]:
    """Notes for every feature node, by node id; weights only, so they hold on every prompt.

    The label is the feature's strongest de-embedding token in layer 0 and its most promoted token
    above, where features no longer read the embedding directly.
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
        decoder = placement.dictionary.W_dec[features]
        reads = _top_strings(spliced, deembed(encoder, spliced.model.W_E), top)
        writes = direct_logit_attribution(decoder, spliced.model.W_U, final)
        promoted = _top_strings(spliced, writes, top)
        suppressed = _top_strings(spliced, -writes, top)
        for node, read, up, down in zip(members, reads, promoted, suppressed, strict=True):
            label = f"reads {read[0].strip()}" if node.layer == 0 else f"says {up[0].strip()}"
            notes[node.id] = NodeNotes(deembedding=read, promoted=up, suppressed=down, label=label)
    return notes
