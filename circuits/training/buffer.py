"""Activations of many sites from one pass of the subject model, in shuffled batches.

Batch i is a function of the seed and of i alone, so that a resumed run continues the same order
without a saved buffer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site
from circuits.subject import SubjectModel
from circuits.training.text import trained_positions

__all__ = ["ActivationSource", "activations", "full_rows"]

Activations = dict[Site, Float[Tensor, "token d_model"]]


def full_rows(rows: Int[Tensor, "row context"], bos: int) -> Int[Tensor, "row context"]:
    """Rows the model can read: padding (which nothing before it sees) becomes BOS."""
    return torch.where(rows < 0, bos, rows).long()


def activations(
    model: SubjectModel,
    rows: Int[Tensor, "row context"],
    sites: Sequence[Site],
    *,
    bos: int,
    batch_rows: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Activations:
    """What the model computes at `sites` on every trained position of `rows`, in their order.

    Args:
        bos: token whose positions are left out, with the first of each row and padding.
        batch_rows: rows a forward pass.
        progress: called with the number of tokens just done.
    """
    kept = trained_positions(rows, bos)
    n_tokens = int(kept.sum())
    out = {
        site: torch.empty(n_tokens, model.d_model, dtype=model.dtype, device=model.device)
        for site in sites
    }
    start = 0
    for batch, keep in zip(rows.split(batch_rows), kept.split(batch_rows), strict=True):
        with torch.inference_mode():
            _, values = model.run(full_rows(batch, bos).to(model.device), capture=sites)
        stop = start + int(keep.sum())
        chosen = keep.to(model.device)
        for site in sites:
            out[site][start:stop] = values[site][chosen]
        progress(stop - start)
        start = stop
    return out


@dataclass(frozen=True)
class _Chunk:
    """Rows whose activations are shuffled together, and the batches they make."""

    rows: Int[Tensor, " row"]
    n_batches: int


class ActivationSource:
    """Endless batches of activations at several sites, the same for the same seed.

    Rows are shuffled every epoch and cut into chunks of about `chunk_tokens`; the activations of
    a chunk are shuffled and served in batches, an incomplete last one dropped. When one chunk
    holds all rows its activations are computed once and kept.

    Args:
        model: the subject model.
        rows: token ids, padded with -1.
        sites: what to capture.
        bos: token whose positions are left out.
        batch_size: tokens a batch.
        chunk_tokens: tokens shuffled together; all of them if `cache_bytes` is enough.
        cache_bytes: memory for keeping the activations of all rows; 0 for never.
        seed: of the order.
        model_batch_rows: rows a forward pass.
        progress: called with the number of tokens just run through the model.

    Raises:
        ValueError: if there are fewer tokens than one batch.
    """

    def __init__(
        self,
        model: SubjectModel,
        rows: Int[Tensor, "row context"],
        sites: Sequence[Site],
        *,
        bos: int,
        batch_size: int,
        chunk_tokens: int,
        cache_bytes: float,
        seed: int,
        model_batch_rows: int = 16,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self._model, self._rows, self._sites, self._bos = model, rows, tuple(sites), bos
        self._batch_size, self._seed = batch_size, seed
        self._model_batch_rows, self._progress = model_batch_rows, progress
        self._counts: Int[Tensor, " row"] = trained_positions(rows, bos).sum(1)
        self.n_tokens = int(self._counts.sum())
        if self.n_tokens < batch_size:
            raise ValueError(
                f"the text has {self.n_tokens} tokens to train on, fewer than one batch of "
                f"{batch_size}; give more text or a smaller batch_size"
            )
        need = self.n_tokens * len(self._sites) * model.d_model * model.W_E.element_size()
        self.cached = need <= cache_bytes
        self._chunk_tokens = self.n_tokens if self.cached else max(chunk_tokens, batch_size)
        self._cache: Activations | None = None

    def _generator(self, *key: int) -> torch.Generator:
        mixed = self._seed
        for part in key:
            mixed = (mixed * 1_000_003 + part + 1) % (2**63 - 1)
        return torch.Generator().manual_seed(mixed)

    def _chunks(self, epoch: int) -> Iterator[_Chunk]:
        order = torch.randperm(len(self._rows), generator=self._generator(0, epoch))
        if self.cached:
            yield _Chunk(torch.arange(len(self._rows)), self.n_tokens // self._batch_size)
            return
        chunk_of = (self._counts[order].cumsum(0) - 1).clamp_min(0) // self._chunk_tokens
        for number in range(int(chunk_of.max()) + 1):
            rows = order[chunk_of == number]
            yield _Chunk(rows, int(self._counts[rows].sum()) // self._batch_size)

    def _compute(self, rows: Int[Tensor, " row"]) -> Activations:
        return activations(
            self._model,
            self._rows[rows],
            self._sites,
            bos=self._bos,
            batch_rows=self._model_batch_rows,
            progress=self._progress,
        )

    def _values(self, chunk: _Chunk) -> Activations:
        if not self.cached:
            return self._compute(chunk.rows)
        if self._cache is None:
            self._cache = self._compute(chunk.rows)
        return self._cache

    def first(self) -> Activations:
        """Activations of the first chunk, for statistics such as means and scales."""
        return self._values(next(self._chunks(0)))

    def batches(self, start: int = 0) -> Iterator[Activations]:
        """Batches from number `start` on, for ever."""
        skip, epoch = start, 0
        while True:
            for number, chunk in enumerate(self._chunks(epoch)):
                if skip >= chunk.n_batches:
                    skip -= chunk.n_batches
                    continue
                yield from self._serve(chunk, epoch, number, skip)
                skip = 0
            epoch += 1

    def _serve(self, chunk: _Chunk, epoch: int, number: int, skip: int) -> Iterator[Activations]:
        values = self._values(chunk)
        n_tokens = len(values[self._sites[0]])
        order = torch.randperm(n_tokens, generator=self._generator(1, epoch, number))
        for batch in order.split(self._batch_size)[skip : chunk.n_batches]:
            index = batch.to(self._model.device)
            yield {site: value[index] for site, value in values.items()}
