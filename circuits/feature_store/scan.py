"""The scan: one pass of the model over a corpus, every feature of every dictionary at once.

Nothing here loops over features. A batch of rows goes through the model as far as the last site
that a dictionary reads; each dictionary encodes once; only the list of active entries goes on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import process_time

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.feature_store.coactivation import count_partners
from circuits.feature_store.collected import Collected, encode_active
from circuits.feature_store.fingerprints import fingerprint
from circuits.feature_store.keys import MAX_PLACES
from circuits.feature_store.layout import MANIFEST_NAME, CorpusSettings, ScanSettings
from circuits.feature_store.progress_file import PROGRESS_NAME, read_progress, save_progress
from circuits.feature_store.store import FeatureStore
from circuits.feature_store.writing import write_manifest, write_tables
from circuits.precision import fast_float32
from circuits.spliced import Placement, SplicedModel
from circuits.subject import SubjectModel
from circuits.training.buffer import activations
from circuits.training.data import TOKENS_NAME
from circuits.training.display import Progress, Watcher, watching
from circuits.training.folder import claim
from circuits.training.text import bos_token, kept_rows, read_rows, trained_positions

__all__ = ["Clock", "scan"]

Clock = dict[str, float]
"""Processor seconds, of all threads, spent on `model`, `encode`, `collect`, `save`, `partners`."""


def scan(
    spliced: SplicedModel,
    corpus: CorpusSettings,
    out: Path,
    *,
    rows: Int[Tensor, "row context"] | None = None,
    settings: ScanSettings | None = None,
    save_every: int = 2048,
    progress: bool | Watcher = False,
    clock: Clock | None = None,
) -> FeatureStore:
    """Collect what every feature does on a corpus into a feature store.

    The same call with the same folder goes on where an interrupted scan stopped, and ends with the
    same bytes. Positions that count are those of training: not the first of a row, BOS or padding.

    Args:
        spliced: the model with all dictionaries to scan.
        corpus: which text.
        out: folder for the store.
        rows: token rows to use instead of `corpus.text`, `corpus.context` wide, padded with -1.
        settings: what is kept of each feature.
        save_every: rows between saves of what was collected. Changes no result.
        progress: a bar on stderr (True), nothing (False), or a function that gets the news.
        clock: gets the processor seconds spent on each part.

    Returns:
        The store, opened.

    Raises:
        ValueError: if `out` holds a scan with other settings or dictionaries, the text cannot be
            read, or activations are not finite.
        OSError: if the disk is full.
    """
    settings = settings or ScanSettings()
    clock = {} if clock is None else clock
    model = spliced.model
    places = {placement.name: placement for placement in spliced.placements.values()}
    if not places:
        raise ValueError("there is no dictionary to scan; give at least one")
    prints = {
        name: (p.dictionary.n_features, fingerprint(p.dictionary)) for name, p in places.items()
    }
    claim(
        out,
        {
            "model": model.name,
            "dictionaries": {name: known for name, (_, known) in prints.items()},
            "order": list(places),
            "corpus": corpus.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
        },
    )
    if (out / MANIFEST_NAME).exists():
        return FeatureStore.open(out)
    with watching(progress) as watch:
        rows = _rows(model, corpus, out, rows, watch)
        with torch.no_grad(), fast_float32(model.device):
            collected = _collect(model, places, rows, out, settings, save_every, watch, clock)
        n_tokens = int(trained_positions(rows, bos_token(model)).sum())
        with _timed(clock, "partners"):
            _write(collected, out, settings, watch)
    write_manifest(
        out,
        model=model.name,
        dictionaries=prints,
        corpus=corpus,
        settings=settings,
        n_rows=len(rows),
        n_tokens=n_tokens,
        n_coactivation_tokens=len(collected.sample.hashes),
    )
    (out / PROGRESS_NAME).unlink(missing_ok=True)
    return FeatureStore.open(out)


def _rows(
    model: SubjectModel,
    corpus: CorpusSettings,
    out: Path,
    rows: Int[Tensor, "row context"] | None,
    watch: Watcher,
) -> Int[Tensor, "row context"]:
    """The corpus, read or sampled once and then kept in `out`."""

    def read() -> Tensor:
        return read_rows(
            model,
            corpus.text,
            context=corpus.context,
            n_tokens=corpus.n_tokens,
            seed=corpus.seed,
            pack=corpus.pack,
            progress=lambda done, of: watch(Progress("reading text (rows)", done, of)),
        )

    if rows is not None and (rows.ndim != 2 or rows.shape[1] != corpus.context):
        raise ValueError(
            f"rows must have {corpus.context} tokens (corpus.context), got {tuple(rows.shape)}"
        )
    kept = kept_rows(out / TOKENS_NAME, corpus.context, read if rows is None else lambda: rows)
    if rows is not None and not torch.equal(kept, rows.to(kept.dtype)):
        raise ValueError(f"{out} holds a scan of other rows than these; use another folder")
    if not len(kept) or kept.numel() >= MAX_PLACES:
        raise ValueError(
            f"want a text of one row to {MAX_PLACES:,} tokens, got {len(kept)} rows of "
            f"{corpus.context}; give more text, or scan it in parts"
        )
    return kept


def _collect(
    model: SubjectModel,
    places: Mapping[str, Placement],
    rows: Int[Tensor, "row context"],
    out: Path,
    settings: ScanSettings,
    save_every: int,
    watch: Watcher,
    clock: Clock,
) -> Collected:
    """The pass over the corpus, from where the last one was saved."""
    collected = Collected({n: p.dictionary.n_features for n, p in places.items()}, settings)
    found, done = read_progress(out), 0
    if found is not None:
        done, tensors = found
        collected.restore(tensors)
    saved = done
    while done < len(rows):
        batch = rows[done : done + settings.batch_rows]
        _add_batch(collected, model, places, batch, done, settings, clock)
        done += len(batch)
        watch(Progress("scanning (rows)", done, len(rows)))
        if done - saved >= save_every or done == len(rows):
            with _timed(clock, "save"):
                save_progress(out, collected.tensors(), done)
            saved = done
    return collected


def _add_batch(
    collected: Collected,
    model: SubjectModel,
    places: Mapping[str, Placement],
    rows: Int[Tensor, "row context"],
    first_row: int,
    settings: ScanSettings,
    clock: Clock,
) -> None:
    bos, context = bos_token(model), rows.shape[1]
    kept = trained_positions(rows, bos)
    sites = list(dict.fromkeys(placement.read for placement in places.values()))
    with _timed(clock, "model"):
        values = activations(model, rows, sites, bos=bos, batch_rows=len(rows))
    where = kept.flatten().nonzero().squeeze(1) + first_row * context
    active = {}
    for name, placement in places.items():
        with _timed(clock, "encode"):
            active[name] = encode_active(placement.dictionary, values[placement.read])
        with _timed(clock, "collect"):
            collected.add(name, active[name], where, kept)
    with _timed(clock, "collect"):
        collected.add_together(active, where)


def _write(collected: Collected, out: Path, settings: ScanSettings, watch: Watcher) -> None:
    """Count partners and write every dictionary's tables."""
    n_active = torch.cat([state.sums.n_active for state in collected.states.values()])
    counted = count_partners(
        collected.sample,
        n_active,
        m=settings.partners,
        most=settings.partner_tokens,
        progress=lambda done, of: watch(Progress("counting co-activation (features)", done, of)),
    )
    sizes = [len(state.sums.n_active) for state in collected.states.values()]
    parts = zip(*(table.split(sizes) for table in counted), strict=True)
    for (name, state), part in zip(collected.states.items(), parts, strict=True):
        together = dict(zip(("n_counted", "partner_id", "partner_count"), part, strict=True))
        write_tables(out, name, {**state.tables(), **together}, settings)


@contextmanager
def _timed(clock: Clock, part: str) -> Iterator[None]:
    start = process_time()
    yield
    clock[part] = clock.get(part, 0.0) + process_time() - start
