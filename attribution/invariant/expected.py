"""Expected attribution: virtual weights weighted by how often and how strongly features meet.

Input-dependent, averaged over a corpus in one stream: memory is that of the answer and one chunk.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.invariant.routes import check_route
from attribution.invariant.weights import virtual_weights
from circuits.sites import Site
from circuits.spliced import Placement, SplicedModel
from circuits.subject import Edit

__all__ = ["ExpectedAttribution", "coactivation", "expected_attribution"]


@dataclass(frozen=True, eq=False)
class ExpectedAttribution:
    """Mean direct edges over a corpus.

    Attributes:
        targets: the features that are explained.
        attribution: mean over positions, those where the target is inactive counting as 0.
        frequency: the share of positions where each target is active.
        n_positions: how many positions there were, those that dictionaries leave out not counted.
    """

    targets: Int[Tensor, " target"]
    attribution: Float[Tensor, "target source"]
    frequency: Float[Tensor, " target"]
    n_positions: int

    def given_active(self) -> Float[Tensor, "target source"]:
        """The mean edge where the target is active; zero for a target that never is."""
        return torch.where(
            self.frequency[:, None] > 0, self.attribution / self.frequency[:, None], 0.0
        )


def coactivation(
    target: Float[Tensor, "pos target"],
    source: Float[Tensor, "pos source"],
    scale: Float[Tensor, "pos 1"],
) -> Float[Tensor, "target source"]:
    """`sum_p 1[target_t(p) != 0] source_s(p) / scale(p)`.

    Example:
        >>> target = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
        >>> coactivation(target, torch.tensor([[4.0], [6.0]]), torch.tensor([[1.0], [2.0]]))
        tensor([[7.],
                [3.]])
    """
    active = (target != 0).to(source)
    return (active / scale).T @ source


def expected_attribution(
    spliced: SplicedModel,
    token_batches: Iterable[Int[Tensor, "..."]],
    target: str,
    source: str,
    *,
    target_features: list[int] | None = None,
    max_bytes: int = 256 * 2**20,
    progress: Callable[[int], None] | None = None,
) -> ExpectedAttribution:
    """The mean over a corpus of the direct edge from each source feature to each target feature.

        E[t, s] = w[t, s] * mean_p( 1[a_t(p) > 0] a_s(p) / sigma_t(p) )

    with `w` the virtual weight and `sigma_t` the denominator of the norm that the target reads
    through (1 where there is none, as for a residual SAE), at the same position `p`: Circuit
    Tracing's expected residual attribution (Ameisen et al. 2025, "global weights"), with the norm's
    division written out.
    `given_active()` is the mean input-times-gradient of Dunefsky et al. 2024 (`w` times the mean
    activation) over the positions where the target is active, again with the division.

    Everything is read off the original model, as in `attribute`: no dictionary is spliced in.

    Args:
        spliced: holds both dictionaries.
        token_batches: token ids, `[batch, pos]` each; sizes may differ. BOS tokens are run and
            left out of the means, as are first positions where a dictionary's convention leaves
            them out; there is no padding.
        target: the reading dictionary, such as `mlp.3`.
        source: the writing dictionary, such as `mlp.1`.
        target_features: which targets; None takes all, if the answer fits.
        max_bytes: memory for the answer (double precision), and again for encoding one chunk of
            positions; the model's own run on a batch comes on top.
        progress: called with the number of positions counted so far.

    Raises:
        ValueError: as `virtual_weights`; if the answer does not fit in `max_bytes`; if a batch is
            not `[batch, pos]`; or if no position is left to average over.
    """
    read_at, write = spliced.write_site(target), spliced.write_site(source)
    check_route(spliced, read_at, write, None)
    reader, writer = spliced.placements[read_at], spliced.placements[write]
    n_targets = reader.dictionary.n_features
    targets = list(range(n_targets)) if target_features is None else target_features
    _check_size(len(targets), writer.dictionary.n_features, max_bytes)
    weights = virtual_weights(spliced, target, source, target_features=targets).double()
    sums, counts, n_positions = torch.zeros_like(weights), weights.new_zeros(len(targets)), 0
    per_position = 8 * (n_targets + writer.dictionary.n_features) * weights.element_size()
    chunk = max(1, max_bytes // per_position)
    with torch.no_grad():
        for tokens in token_batches:
            for read, written, scale in _positions(spliced, tokens, reader, writer, chunk):
                a_target = reader.dictionary.encode(read)[:, targets]
                seen = (a_target != 0).any(1)
                a_source = writer.dictionary.encode(written[seen])
                sums += coactivation(a_target[seen], a_source, scale[seen]).double()
                counts += (a_target != 0).sum(0)
                n_positions += len(read)
            if progress is not None:
                progress(n_positions)
    if n_positions == 0:
        raise ValueError(
            "no position to average over: there is no batch, or every token is BOS (or first in "
            "its row, which a dictionary was not trained on)"
        )
    return ExpectedAttribution(
        torch.tensor(targets, device=weights.device),
        weights * sums / n_positions,
        counts / n_positions,
        n_positions,
    )


def _positions(
    spliced: SplicedModel, tokens: Tensor, reader: Placement, writer: Placement, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What both dictionaries read and the target's denominators, where both were trained."""
    if tokens.ndim != 2:
        raise ValueError(f"want batches of token ids [batch, pos], got shape {tuple(tokens.shape)}")
    model, denominator = spliced.model, Site("ln2_scale", reader.read.layer)
    normed = reader.read.kind == "mlp_in"
    # A fresh tensor at every denominator makes each norm compute in the model's own dtype.
    edits: dict[Site, Edit] = {s: torch.clone for s in model.scale_sites()}
    edits[Site("unembed_in")] = lambda x: x[:, :0]
    sites = {reader.read, writer.read, *([denominator] if normed else [])}
    tokens = tokens.to(model.device)
    _, values = model.run(tokens, edits=edits, capture=sites)
    kept = ~(spliced.left_out(reader.write, tokens) | spliced.left_out(writer.write, tokens))
    read, written = values[reader.read][kept], values[writer.read][kept]
    scale = values[denominator][kept] if normed else torch.ones_like(read[:, :1])
    yield from zip(read.split(chunk), written.split(chunk), scale.split(chunk), strict=True)


def _check_size(n_targets: int, n_sources: int, max_bytes: int) -> None:
    room = max_bytes // (8 * n_sources)
    if n_targets > room:
        raise ValueError(
            f"expected attribution for {n_targets} targets and {n_sources} sources takes "
            f"{8 * n_targets * n_sources} bytes, but max_bytes is {max_bytes}; choose at most "
            f"{room} target_features at a time, or raise max_bytes"
        )
