"""Activations of many sites from one pass of the subject model, in shuffled batches.

Batch i is a function of the text, the seed and of i alone: not of which sites are captured, how
much memory there is, how many processes run the model, or where a run was stopped. To that end rows
are shuffled in groups, and a group always makes one forward pass of its own.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site
from circuits.subject import SubjectModel
from circuits.training.processes import ALONE, Processes
from circuits.training.step import Workspace
from circuits.training.text import trained_positions

__all__ = ["ActivationSource", "Gather", "activations", "full_rows", "n_chunks"]

Gather = Callable[[Site, str], Tensor]
"""The values of a batch at a site, [token, d_model], in a buffer called by the second argument."""


def full_rows(rows: Int[Tensor, "row context"], bos: int) -> Int[Tensor, "row context"]:
    """Rows the model can read: padding (which nothing before it sees) becomes BOS."""
    return torch.where(rows < 0, bos, rows).long()


def activations(
    model: SubjectModel,
    rows: Int[Tensor, "row context"],
    sites: Sequence[Site],
    *,
    bos: int,
    batch_rows: int = 16,
) -> dict[Site, Float[Tensor, "token d_model"]]:
    """What the model computes at `sites` on every trained position of `rows`, in their order.

    Args:
        bos: token whose positions are left out, with the first of each row and padding.
        batch_rows: rows a forward pass.
    """
    passes = [_one_pass(model, batch, sites, bos) for batch in rows.split(batch_rows)]
    if len(passes) == 1:
        return passes[0]
    return {site: torch.cat([values[site] for values in passes]) for site in sites}


def _one_pass(
    model: SubjectModel, rows: Int[Tensor, "row context"], sites: Sequence[Site], bos: int
) -> dict[Site, Float[Tensor, "token d_model"]]:
    kept = trained_positions(rows, bos).flatten().nonzero().squeeze(1).to(model.device)
    with torch.no_grad():
        values = model.read(full_rows(rows, bos).to(model.device), sites)
        return {site: values[site].flatten(0, 1).index_select(0, kept) for site in sites}


def n_chunks(n_tokens: int, batch_size: int, chunk_tokens: int) -> int:
    """Into how many chunks of at most `chunk_tokens` a text is cut, so that each makes a batch.

    Example:
        >>> n_chunks(1000, 64, 300), n_chunks(1000, 400, 300)
        (4, 2)
    """
    return max(1, min(-(-n_tokens // chunk_tokens), n_tokens // batch_size))


class ActivationSource:
    """Endless batches of activations at several sites, the same for the same seed.

    Groups of rows are shuffled every epoch and cut into chunks of about `chunk_tokens`; the
    activations of a chunk are shuffled and served in batches, an incomplete last one dropped.

    Args:
        model: the subject model.
        rows: token ids, padded with -1.
        sites: what to capture.
        bos: token whose positions are left out.
        batch_size: tokens a batch.
        chunk_tokens: most tokens shuffled together (a chunk has more if a batch needs them).
        cache_bytes: memory for the activations of all rows; if they do not fit, those of one chunk
            are kept, and rows run through the model again every epoch.
        seed: of the order.
        model_batch_rows: rows of a group.
        processes: that share the passes of the model, and each batch.
        work: where batches are put together.
        progress: called with the number of tokens just run through the model.

    Raises:
        ValueError: if there are fewer tokens than one batch, or processes cannot share it evenly.
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
        processes: Processes = ALONE,
        work: Workspace | None = None,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self._model, self._sites, self._bos = model, tuple(sites), bos
        self._batch_size, self._seed, self._progress = batch_size, seed, progress
        self._processes, self._share = processes, processes.share(batch_size)
        self._work = work or Workspace()
        self._groups = rows.split(model_batch_rows)
        kept = trained_positions(rows, bos).split(model_batch_rows)
        self._counts = torch.stack([each.count_nonzero() for each in kept])
        self.n_tokens = int(self._counts.sum())
        if self.n_tokens < batch_size:
            raise ValueError(
                f"the text has {self.n_tokens} tokens to train on, fewer than one batch of "
                f"{batch_size}; give more text or a smaller batch_size"
            )
        self._n_chunks = n_chunks(self.n_tokens, batch_size, chunk_tokens)
        width = len(self._sites) * model.d_model * model.W_E.element_size()
        self.cached = self._n_chunks == 1 or self.n_tokens * width <= cache_bytes
        most = -(-self.n_tokens // self._n_chunks) + int(self._counts.max())
        self._room = self.n_tokens if self.cached else min(most, self.n_tokens)
        self._store: dict[Site, Float[Tensor, "token d_model"]] = {}
        self._places: dict[int, int] = {}
        self._chunk = (-1, -1)

    def first(self, site: Site, n_tokens: int | None = None) -> Float[Tensor, "token d_model"]:
        """Activations of the first chunk at a site, for statistics such as means and scales.

        Args:
            site: one of those captured.
            n_tokens: most tokens to give; None for the whole chunk.
        """
        order = self._fill(next(self._chunks(0)), (0, 0)).to(self._model.device)
        return self._store[site].index_select(0, order[:n_tokens])

    def batches(self, start: int = 0) -> Iterator[Gather]:
        """This process's share of the batches from number `start` on, for ever."""
        skip, epoch = start, 0
        while True:
            for number, groups in enumerate(self._chunks(epoch)):
                n_batches = int(self._counts[groups].sum()) // self._batch_size
                if skip >= n_batches:
                    skip -= n_batches
                    continue
                place = self._fill(groups, (epoch, number))
                order = torch.randperm(len(place), generator=self._generator(1, epoch, number))
                chosen = place[order].to(self._model.device)
                for batch in chosen.split(self._batch_size)[skip:n_batches]:
                    yield self._gathering(batch[self._share])
                skip = 0
            epoch += 1

    def _gathering(self, index: Int[Tensor, " token"]) -> Gather:
        def gather(site: Site, name: str) -> Tensor:
            values = self._store[site]
            out = self._work.take(f"raw {name}", len(index), values.shape[1], like=values)
            return torch.index_select(values, 0, index, out=out)

        return gather

    def _generator(self, *key: int) -> torch.Generator:
        mixed = self._seed
        for part in key:
            mixed = (mixed * 1_000_003 + part + 1) % (2**63 - 1)
        return torch.Generator().manual_seed(mixed)

    def _chunks(self, epoch: int) -> Iterator[Int[Tensor, " group"]]:
        """Numbers of the groups of each chunk: about equally many tokens in all of them."""
        order = torch.randperm(len(self._groups), generator=self._generator(0, epoch))
        last = (self._counts[order].cumsum(0) - 1).clamp_min(0)
        chunk_of = last * self._n_chunks // self.n_tokens
        # A group of more tokens than a chunk leaves the next number without one.
        yield from (order[chunk_of == number] for number in chunk_of.unique())

    def _fill(self, groups: Int[Tensor, " group"], chunk: tuple[int, int]) -> Int[Tensor, " token"]:
        """Have the activations of a chunk in the store; where they lie, in the order of rows."""
        counts = self._counts[groups].tolist()
        if self.cached:
            starts = (self._counts.cumsum(0) - self._counts)[groups].tolist()
        else:
            starts = [0, *torch.tensor(counts).cumsum(0).tolist()][:-1]
        if not self.cached and chunk != self._chunk:
            self._places, self._chunk = {}, chunk
        missing = [
            (group, start)
            for group, start, count in zip(groups.tolist(), starts, counts, strict=True)
            if count and self._places.get(group) != start
        ]
        for turn, (group, start) in enumerate(missing):
            if turn % self._processes.size == self._processes.rank:
                self._run(group, start)
            self._progress(int(self._counts[group]))
        self._exchange(missing)
        self._places |= dict(missing)
        return torch.cat([torch.arange(a, a + n) for a, n in zip(starts, counts, strict=True)])

    def _run(self, group: int, start: int) -> None:
        values = _one_pass(self._model, self._groups[group], self._sites, self._bos)
        for site, value in values.items():
            self._stored(site)[start : start + len(value)] = value

    def _exchange(self, groups: Sequence[tuple[int, int]]) -> None:
        """Give every process what the others computed."""
        pieces = [
            (turn % self._processes.size, self._stored(site)[start : start + self._counts[group]])
            for turn, (group, start) in enumerate(groups)
            for site in self._sites
        ]
        self._processes.spread(pieces)

    def _stored(self, site: Site) -> Float[Tensor, "token d_model"]:
        if site not in self._store:
            model = self._model
            self._store[site] = torch.empty(
                self._room, model.d_model, dtype=model.dtype, device=model.device
            )
        return self._store[site]
