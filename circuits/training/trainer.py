"""The training run: many dictionaries from one pass of the subject model, resumable."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.checkpoints import load_folder, save_dictionary
from circuits.fidelity import FidelityReport, evaluate
from circuits.files import write_json
from circuits.loading import load_model
from circuits.precision import fast_float32
from circuits.sites import Site
from circuits.spliced import SplicedModel
from circuits.subject import SubjectModel
from circuits.training.buffer import ActivationSource, full_rows
from circuits.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
from circuits.training.config import TrainingConfig
from circuits.training.learner import Learner
from circuits.training.text import bos_token, load_rows, read_rows, save_rows, trained_positions

__all__ = ["Progress", "dictionary_sites", "train"]

_VERSION = 1
_TOKENS_NAME = "tokens.safetensors"
_NEWS_EVERY = 10


@dataclass(frozen=True)
class Progress:
    """How far a run is, for a display.

    Args:
        stage: what is being done, in a few words.
        done: units done.
        total: units in all.
        numbers: latest FVU and L0 of the training batches, by dictionary.
    """

    stage: str
    done: int
    total: int
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)


Watcher = Callable[[Progress], None]


def dictionary_sites(key: str) -> tuple[Site, Site]:
    """Where the dictionary called `key` (`mlp.2`, `resid_post.0`) reads and writes."""
    site, _, layer = key.rpartition(".")
    if site == "mlp":
        return Site("mlp_in", int(layer)), Site("mlp_raw_out", int(layer))
    return Site(site, int(layer)), Site(site, int(layer))  # type: ignore[arg-type]


def train(
    config: TrainingConfig,
    model: SubjectModel | None = None,
    *,
    out: Path,
    tokens: Int[Tensor, "row context"] | None = None,
    progress: bool | Watcher = True,
    stop_after: int | None = None,
) -> FidelityReport | None:
    """Train every dictionary `config` asks for, or go on where an interrupted run stopped.

    Args:
        config: settings. A folder that holds a run with other settings is refused.
        model: the subject model if it is in memory already; it must be what `config.model` names.
        out: folder for `SITE.LAYER.safetensors`, `config.json`, `metrics.json`, the text as token
            ids and, until the run is complete, its checkpoint.
        tokens: text as rows of token ids that begin with BOS, padded with -1, instead of
            `config.text`.
        progress: True for a bar on stderr, False for none, or a function to call.
        stop_after: stop with a checkpoint once this many steps are done.

    Returns:
        Fidelity on rows kept out of training; None if stopped before the end.

    Raises:
        ValueError: if settings do not fit the model, the text or what is in `out`.
    """
    if callable(progress):
        return _run(config, model, out, tokens, progress, stop_after)
    if not progress:
        return _run(config, model, out, tokens, lambda news: None, stop_after)
    from circuits.training.display import progress_bar

    with progress_bar() as watch:
        return _run(config, model, out, tokens, watch, stop_after)


def _run(
    config: TrainingConfig,
    model: SubjectModel | None,
    out: Path,
    tokens: Tensor | None,
    watch: Watcher,
    stop_after: int | None,
) -> FidelityReport | None:
    _claim(out, config)
    if (out / "metrics.json").exists():
        return FidelityReport.model_validate_json((out / "metrics.json").read_text())
    model = load_model(config.model) if model is None else model
    _keys(config, model)  # a layer that does not exist is refused before any text is read
    rows = _rows(config, model, out, tokens, watch)
    if len(rows) <= config.n_eval_rows:
        raise ValueError(
            f"the text fills {len(rows)} rows of {config.context} tokens; want more than the "
            f"{config.n_eval_rows} kept for evaluation: give more text or fewer n_eval_rows"
        )
    with _no_grad(), fast_float32(model.device):
        learners = _learn(config, model, rows[: -config.n_eval_rows], out, watch, stop_after)
        if learners is None:
            return None
        return _finish(config, model, learners, rows[-config.n_eval_rows :], out, watch)


@contextmanager
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def _claim(out: Path, config: TrainingConfig) -> None:
    """Write `config.json`, or check that the folder's run is this one."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    record = {"version": _VERSION, **config.model_dump(mode="json")}
    if not path.exists():
        write_json(path, record)
        return
    found = json.loads(path.read_text())
    differing = sorted(k for k in {*found, *record} if found.get(k) != record.get(k))
    if differing:
        what = ", ".join(f"{k} {found.get(k)!r} not {record.get(k)!r}" for k in differing)
        raise ValueError(f"{out} holds a run with other settings ({what}); use another folder")


def _rows(
    config: TrainingConfig, model: SubjectModel, out: Path, tokens: Tensor | None, watch: Watcher
) -> Int[Tensor, "row context"]:
    """The text as token ids, read or sampled once and then kept in `out`."""
    path = out / _TOKENS_NAME
    if path.exists():
        return load_rows(path, config.context)
    if tokens is None:
        tokens = read_rows(
            model,
            config.text,
            context=config.context,
            n_tokens=config.n_text_tokens,
            seed=config.seed,
            pack=config.pack,
            progress=lambda done, of: watch(Progress("reading text (rows)", done, of)),
        )
    elif tokens.ndim != 2 or tokens.shape[1] > model.n_ctx:
        raise ValueError(
            f"tokens must be rows of at most {model.n_ctx} ids, got shape {tuple(tokens.shape)}"
        )
    rows = tokens.to(torch.int32)
    save_rows(rows, path)
    return rows


def _keys(config: TrainingConfig, model: SubjectModel) -> list[str]:
    layers = range(model.n_layers) if config.layers is None else config.layers
    outside = [layer for layer in layers if not 0 <= layer < model.n_layers]
    if outside:
        raise ValueError(
            f"{model.name!r} has layers 0 to {model.n_layers - 1}, got {outside} among the layers"
        )
    return [f"{site}.{layer}" for site in config.sites for layer in layers]


def _learn(
    config: TrainingConfig,
    model: SubjectModel,
    rows: Tensor,
    out: Path,
    watch: Watcher,
    stop_after: int | None,
) -> dict[str, Learner] | None:
    """All optimiser steps that are left; None if stopped before the last."""
    sites = {key: dictionary_sites(key) for key in _keys(config, model)}
    total, seen = int(trained_positions(rows, bos_token(model)).sum()), [0]

    def count(n_tokens: int) -> None:
        seen[0] = (seen[0] + n_tokens) % max(total, 1)
        watch(Progress("running the model (tokens)", seen[0] or total, total))

    source = ActivationSource(
        model,
        rows,
        list(dict.fromkeys(site for pair in sites.values() for site in pair)),
        bos=bos_token(model),
        batch_size=config.batch_size,
        chunk_tokens=config.buffer_tokens,
        cache_bytes=config.activation_cache_gb * 1e9,
        seed=config.seed,
        model_batch_rows=config.model_batch_rows,
        progress=count,
    )
    found = load_checkpoint(out, config)
    step, learners = (0, _start(config, source, sites)) if found is None else found
    last = config.n_steps if stop_after is None else min(stop_after, config.n_steps)
    batches = source.batches(step)
    numbers: dict[str, tuple[float, float]] = {}
    while step < last:
        batch = next(batches)
        for key, (read, write) in sites.items():
            result = learners[key].learn(batch[read], batch[write], step)
            numbers[key] = (result.loss, result.l0)
        step += 1
        if step % _NEWS_EVERY == 0 or step == last:
            watch(Progress("training (steps)", step, config.n_steps, dict(numbers)))
        if step % config.checkpoint_every == 0 or step == last:
            save_checkpoint(out, learners, step)
    return learners if step >= config.n_steps else None


def _start(
    config: TrainingConfig, source: ActivationSource, sites: Mapping[str, tuple[Site, Site]]
) -> dict[str, Learner]:
    values = source.first()
    return {
        key: Learner.start(
            config,
            key.rpartition(".")[0],
            values[read],
            values[write],
            seed=config.seed * 1000 + number,
        )
        for number, (key, (read, write)) in enumerate(sites.items())
    }


def _finish(
    config: TrainingConfig,
    model: SubjectModel,
    learners: Mapping[str, Learner],
    rows: Tensor,
    out: Path,
    watch: Watcher,
) -> FidelityReport:
    """Write the dictionaries, judge them as they are on disk, write `metrics.json`."""
    dtype = getattr(torch, config.save_dtype)
    for key, learner in learners.items():
        path = out / f"{key}.safetensors"
        layer = dictionary_sites(key)[0].layer
        save_dictionary(learner.dictionary(), path, layer=layer, model=config.model, dtype=dtype)
    watch(Progress("measuring fidelity", 0, 1))
    spliced = SplicedModel(model, load_folder(out, sites=config.sites, layers=config.layers))
    keep = trained_positions(rows, bos_token(model))
    report = evaluate(spliced, full_rows(rows, bos_token(model)), keep=keep)
    write_json(out / "metrics.json", report.model_dump(mode="json"))
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    watch(Progress("measuring fidelity", 1, 1))
    return report
