"""Exact ACDC over the edges between heads, MLPs, input and output.

Conmy et al. 2023: visit readers from the output back, of each reader its writers from the last to
the first, and drop an edge if that worsens the score by less than the threshold. The answer is that
of the sequential loop over whole runs; what each run repeats is left out:

- everything upstream of the visited reader keeps its values, so a candidate starts there;
- only parts that the reader's owner reaches, and that reach the output, are computed again;
- removals are tried many at a time, as if all were accepted, up to the first refusal.
"""

from collections.abc import Iterable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.subject import SubjectModel
from graphs.heads.metrics import Metric
from graphs.heads.partial import Visit
from graphs.heads.running import EdgeRunner, check_keep
from graphs.prune_acdc import removable

__all__ = ["acdc_heads", "prune_readers"]


def acdc_heads(
    model: SubjectModel,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    score: Metric,
    *,
    threshold: float,
    start: Bool[Tensor, "reader writer"] | None = None,
    batch: int = 8,
) -> Bool[Tensor, "reader writer"]:
    """The edges that stay; a removed edge carries its writer's output on the corrupted prompts.

    Readers are visited in descending order of `HeadEdges` (output, last MLP, values, keys, queries
    of the last layer's heads from the last head to the first, and so on), and so are the writers of
    each. An edge of a part that no longer reaches the output changes nothing, so it goes unasked.

    Args:
        model: the whole model, without dictionaries.
        clean: prompts of one length.
        corrupted: their counterparts, row by row and token by token.
        score: lower is better, for example `mean_kl(clean_logits)`.
        threshold: in the units of the score; an edge stays if it is worth at least this much.
        start: edges to begin from, for example the best by `edge_attribution`; None for all. The
            others carry corrupted values from the beginning.
        batch: removals tried in one call.

    Returns:
        Flags in the order of `HeadEdges`.

    Raises:
        ValueError: if `threshold` or `batch` is not positive, the prompts do not line up, `start`
            does not fit the model, or the model cannot be taken apart (`decompose`).
    """
    runner = EdgeRunner.on_prompts(model, clean, corrupted)
    keep = runner.edges.exists if start is None else start
    readers = reversed(range(runner.edges.n_readers))
    return prune_readers(runner, keep, readers, score, threshold=threshold, batch=batch)


def prune_readers(
    runner: EdgeRunner,
    keep: Bool[Tensor, "reader writer"],
    readers: Iterable[int],
    score: Metric,
    *,
    threshold: float,
    candidates: Bool[Tensor, "reader writer"] | None = None,
    batch: int = 8,
) -> Bool[Tensor, "reader writer"]:
    """ACDC over the edges of some readers, which must come in descending order.

    Args:
        runner: the prompts.
        keep: edges to begin from.
        readers: those whose edges are tried.
        score: lower is better.
        threshold: an edge stays if it is worth at least this much.
        candidates: edges that may go, of those in `keep`; None for all.
        batch: removals tried in one call.

    Raises:
        ValueError: if `threshold` or `batch` is not positive, or `keep` or `candidates` does not
            fit the model.
    """
    if threshold <= 0 or batch < 1:
        raise ValueError(f"want threshold > 0 and batch >= 1, got {threshold} and {batch}")
    check_keep(runner.edges, keep)
    may_go = runner.edges.exists if candidates is None else candidates
    check_keep(runner.edges, may_go)
    keep = keep.clone()
    added = runner.run(keep[None])[:, 0]
    for reader in readers:
        visit = Visit(runner, keep.clone(), reader, added)
        if not visit.matters:
            keep[reader] &= ~may_go[reader]
            continue
        writers = (keep[reader] & may_go[reader]).nonzero()[:, 0].flip(0).tolist()
        keep[reader] = removable(
            writers,
            keep[reader],
            score=partial(_scores, visit, score),
            threshold=threshold,
            batch=batch,
        )
        added = visit.updated(keep[reader])
    return keep


def _scores(
    visit: Visit, score: Metric, rows: Bool[Tensor, "circuit writer"]
) -> Float[Tensor, " circuit"]:
    return torch.stack([score(logits) for logits in visit.logits(rows)])
