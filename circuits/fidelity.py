"""Fidelity of dictionaries in their model: L0, FVU, dead features and cross-entropy recovered.

Positions left out (the first of each row, BOS, padding) keep their true value in every splice and
ablation, and count in no mean: dictionaries are not trained there.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from circuits.metrics import SquaredError, ce_recovered
from circuits.sites import Site
from circuits.spliced import Placement, SplicedModel, site_name
from circuits.subject import Edit, SubjectModel

__all__ = ["CrossEntropy", "DictionaryFidelity", "FidelityReport", "cross_entropy", "evaluate"]


class CrossEntropy(BaseModel):
    """Mean next-token losses, in nats, of the model and of what stands in for some of its sites."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clean: float = Field(description="the model itself, nats a token")
    spliced: float = Field(description="reconstructions in place of the sites, nats a token")
    mean_ablated: float = Field(description="the sites at their mean over the tokens, nats a token")
    zero_ablated: float = Field(description="the sites at zero, nats a token")
    recovered_mean: float = Field(description="CE recovered against mean ablation; 1 is perfect")
    recovered_zero: float = Field(description="CE recovered against zero ablation; 1 is perfect")


class DictionaryFidelity(BaseModel):
    """How well one dictionary does, alone in the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="SITE.LAYER; site mlp is a transcoder")
    n_features: int = Field(description="features of the dictionary")
    l0: float = Field(description="mean active features a token")
    fvu: float = Field(description="squared error over the target's variance about its mean")
    dead_share: float = Field(description="share of features active on none of the tokens")
    cross_entropy: CrossEntropy = Field(description="losses with this dictionary alone")


class FidelityReport(BaseModel):
    """Every dictionary alone, and all of each kind of site together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, description="version of this record")
    model: str = Field(description="name of the subject model")
    n_tokens: int = Field(description="tokens measured on; left-out positions not counted")
    dictionaries: tuple[DictionaryFidelity, ...] = Field(description="each dictionary alone")
    together: dict[str, CrossEntropy] = Field(
        description="losses with all dictionaries of a site (mlp, resid_post, ...) at once"
    )


def cross_entropy(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    keep: Bool[Tensor, "batch pos"],
) -> tuple[float, int]:
    """Summed next-token loss where both the position and the token it predicts are kept.

    Returns:
        Sum of losses in nats, and how many there were.
    """
    counted = keep[:, :-1] & keep[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][counted].float(), tokens[:, 1:][counted], reduction="none"
    )
    return losses.double().sum().item(), int(counted.sum())


def evaluate(
    spliced: SplicedModel,
    tokens: Int[Tensor, "row pos"],
    *,
    keep: Bool[Tensor, "row pos"] | None = None,
    batch_rows: int = 8,
) -> FidelityReport:
    """Measure every dictionary of `spliced` on `tokens`, alone and with the others of its site.

    Args:
        spliced: the model with its dictionaries.
        tokens: rows of token ids.
        keep: positions to measure and splice; None for all but the first of each row.
        batch_rows: rows a forward pass.

    Raises:
        ValueError: if nothing is kept, or an ablation changes no loss.
    """
    if keep is None:
        keep = torch.ones_like(tokens, dtype=torch.bool)
        keep[:, 0] = False
    device = spliced.model.device
    run = _Evaluation(
        spliced, tokens.to(device).split(batch_rows), keep.to(device).split(batch_rows)
    )
    with torch.no_grad():
        return run.report()


class _Evaluation:
    def __init__(
        self, spliced: SplicedModel, tokens: Iterable[Tensor], keep: Iterable[Tensor]
    ) -> None:
        self.model: SubjectModel = spliced.model
        self.placements: Mapping[Site, Placement] = spliced.placements
        self.batches = list(zip(tokens, keep, strict=True))
        self.errors = {s: SquaredError(p.dictionary.d_out) for s, p in self.placements.items()}
        self.active = {s: 0 for s in self.placements}
        self.alive = {
            s: torch.zeros(p.dictionary.n_features, dtype=torch.bool, device=self.model.device)
            for s, p in self.placements.items()
        }
        self.clean = float("nan")

    def report(self) -> FidelityReport:
        self._read()
        n_tokens = sum(int(keep.sum()) for _, keep in self.batches)
        sites: dict[str, list[Site]] = {}
        for write in self.placements:
            sites.setdefault(site_name(write), []).append(write)
        alone = {write: self._losses([write]) for write in self.placements}
        together = {
            name: alone[writes[0]] if len(writes) == 1 else self._losses(writes)
            for name, writes in sites.items()
        }
        records = tuple(
            DictionaryFidelity(
                name=f"{site_name(write)}.{write.layer}",
                n_features=len(self.alive[write]),
                l0=self.active[write] / n_tokens,
                fvu=self.errors[write].fvu(),
                dead_share=1 - self.alive[write].double().mean().item(),
                cross_entropy=alone[write],
            )
            for write in self.placements
        )
        return FidelityReport(
            model=self.model.name, n_tokens=n_tokens, dictionaries=records, together=together
        )

    def _read(self) -> None:
        """One clean pass: losses, and every dictionary on the model's own activations."""
        sites = {s for p in self.placements.values() for s in (p.read, p.write)}
        total, count = 0.0, 0
        for tokens, keep in self.batches:
            logits, values = self.model.run(tokens, capture=sites)
            loss, n = cross_entropy(logits, tokens, keep)
            total, count = total + loss, count + n
            for write, placement in self.placements.items():
                x, y = values[placement.read][keep], values[write][keep]
                a = placement.dictionary.encode(x)
                self.errors[write].add(y, placement.dictionary.decode(a, x))
                self.active[write] += int(a.count_nonzero())
                self.alive[write] |= (a != 0).any(0)
        if not count:
            raise ValueError(
                "no position and its next token are both kept; give rows of more than two tokens"
            )
        self.clean = total / count

    def _losses(self, writes: list[Site]) -> CrossEntropy:
        """Losses with all of `writes` replaced at once."""
        means = {w: self.errors[w].mean.to(self.model.device, self.model.dtype) for w in writes}
        spliced = self._loss(lambda keep: self._splices(writes, keep))
        mean = self._loss(lambda keep: {w: _constant(means[w], keep) for w in writes})
        zero = self._loss(lambda keep: {w: _constant(means[w] * 0, keep) for w in writes})
        return CrossEntropy(
            clean=self.clean,
            spliced=spliced,
            mean_ablated=mean,
            zero_ablated=zero,
            recovered_mean=ce_recovered(self.clean, spliced, mean),
            recovered_zero=ce_recovered(self.clean, spliced, zero),
        )

    def _loss(self, edits_at: Callable[[Tensor], dict[Site, Edit]]) -> float:
        total, count = 0.0, 0
        for tokens, keep in self.batches:
            logits, _ = self.model.run(tokens, edits=edits_at(keep))
            loss, n = cross_entropy(logits, tokens, keep)
            total, count = total + loss, count + n
        return total / count

    def _splices(self, writes: list[Site], keep: Tensor) -> dict[Site, Edit]:
        inputs: dict[Site, Tensor] = {}
        edits: dict[Site, Edit] = {}

        def remember(read: Site) -> Edit:
            def edit(x: Tensor) -> Tensor:
                inputs[read] = x
                return x.clone()

            return edit

        def splice(placement: Placement) -> Edit:
            def edit(y: Tensor) -> Tensor:
                x = y if placement.read == placement.write else inputs[placement.read]
                return torch.where(keep[..., None], placement.dictionary(x), y)

            return edit

        for write in writes:
            placement = self.placements[write]
            if placement.read != write:
                edits[placement.read] = remember(placement.read)
            edits[write] = splice(placement)
        return edits


def _constant(value: Tensor, keep: Tensor) -> Edit:
    return lambda y: torch.where(keep[..., None], value, y)
