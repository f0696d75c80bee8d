"""Train every dictionary of a comparison, side by side on the same batches, and judge it."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from case_studies.comparisons.config import ComparisonConfig
from case_studies.comparisons.methods import Trial, trials, tuning_trials
from circuits import SplicedModel
from circuits.fidelity import evaluate_many
from circuits.files import write_json
from circuits.precision import fast_float32
from circuits.subject import SubjectModel
from circuits.training.buffer import ActivationSource, full_rows
from circuits.training.config import DictionaryConfig
from circuits.training.learner import Learner
from circuits.training.places import dictionary_sites
from circuits.training.step import Workspace
from circuits.training.text import bos_token, trained_positions

__all__ = ["Record", "run_all"]

_NEAR = math.log(1.25)

Progress = Callable[[str, int, int], None]


class Record(BaseModel):
    """One trained dictionary and what it is worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="name of the method")
    n_features: int = Field(description="features of the dictionary")
    level: int = Field(description="wanted L0")
    seed: int = Field(description="of weights and order of tokens")
    lr: float = Field(description="learning rate, as tuned")
    l0: float = Field(description="active features a token, on rows kept out")
    fvu: float = Field(description="squared error over variance, of what it writes")
    ce_increase: float = Field(description="CE spliced - CE clean, nats a token")
    ce_recovered: float | None = Field(description="CE recovered against mean ablation")
    kl: float = Field(description="KL(model || spliced), nats a token")
    dead_share: float = Field(description="share of features active on none of the rows kept out")
    above_1_percent: float = Field(description="share of features active on over 1 % of tokens")
    above_10_percent: float = Field(description="share of features active on over 10 % of tokens")
    cpu_s_per_step: float = Field(description="median CPU-seconds of an optimiser step")


def run_all(
    config: ComparisonConfig,
    model: SubjectModel,
    rows: Int[Tensor, "row context"],
    out: Path,
    progress: Progress,
) -> tuple[dict[str, float], list[Record]]:
    """Learning rates and records of every dictionary; those that `out` holds are not made again."""
    n = config.n_eval_rows
    train_rows, tuning_rows, test_rows = rows[: -2 * n], rows[-2 * n : -n], rows[-n:]

    def run(name: str, judged_on: Tensor, wanted: Sequence[Trial]) -> list[Record]:
        def make(missing: Sequence[Trial]) -> list[Record]:
            return _run(config, model, train_rows, judged_on, missing, progress)

        return _kept(out / name, wanted, make)

    tuning_seed = max(config.seeds) + 1
    tuned = run("tuning.json", tuning_rows, tuning_trials(config, tuning_seed))
    rates = {
        name: _best([record for record in tuned if record.method == name]).lr
        for name in dict.fromkeys(record.method for record in tuned)
    }
    records = [
        record
        for seed in config.seeds
        for record in run(f"seed_{seed}.json", test_rows, trials(config, seed, rates))
    ]
    return rates, records


def _best(records: Sequence[Record]) -> Record:
    """The least FVU among dictionaries near the wanted L0, or the nearest if none is near.

    A dictionary with more active features than wanted has less error for that reason alone.
    """
    near = [record for record in records if _distance(record) < _NEAR]
    if near:
        return min(near, key=lambda record: record.fvu)
    return min(records, key=_distance)


def _distance(record: Record) -> float:
    return abs(math.log(record.l0 / record.level)) if record.l0 else math.inf


def _kept(
    path: Path, wanted: Sequence[Trial], make: Callable[[Sequence[Trial]], list[Record]]
) -> list[Record]:
    """The wanted records of a file; those that it lacks are made and added to it."""
    found: dict[tuple[object, ...], Record] = {}
    if path.exists():
        records = [Record(**record) for record in json.loads(path.read_text())["records"]]
        found = {_place(record): record for record in records}
    missing = [trial for trial in wanted if _trial_place(trial) not in found]
    if missing:
        found |= {_place(record): record for record in make(missing)}
        write_json(path, {"records": [record.model_dump() for record in found.values()]})
    return [found[_trial_place(trial)] for trial in wanted]


def _place(record: Record) -> tuple[object, ...]:
    return record.method, record.n_features, record.level, record.seed, record.lr


def _trial_place(trial: Trial) -> tuple[object, ...]:
    return trial.method.name, trial.n_features, trial.level, trial.seed, trial.lr


def _run(
    config: ComparisonConfig,
    model: SubjectModel,
    rows: Tensor,
    eval_rows: Tensor,
    wanted: Sequence[Trial],
    progress: Progress,
) -> list[Record]:
    """All dictionaries of one seed, on the same batches in the same order."""
    (seed,) = {trial.seed for trial in wanted}
    layer = model.n_layers // 2 if config.layer is None else config.layer
    places = {t.key: dictionary_sites(f"{t.method.site}.{layer}") for t in wanted}
    sites = list(dict.fromkeys(site for pair in places.values() for site in pair))
    with torch.no_grad(), fast_float32(model.device):
        source = ActivationSource(
            model,
            rows,
            sites,
            bos=bos_token(model),
            batch_size=config.batch_size,
            chunk_tokens=200_000,
            cache_bytes=8e9,
            seed=seed,
        )
        first, work = {site: source.first(site) for site in sites}, Workspace()
        learners = {
            t.key: Learner.start(
                _settings(config, t),
                t.method.site,
                first[places[t.key][0]],
                first[places[t.key][1]],
                seed=seed,
                work=work,
            )
            for t in wanted
        }
        del first
        n_steps = config.n_tokens // config.batch_size
        seconds: dict[str, list[float]] = {key: [] for key in learners}
        for step, batch in zip(range(n_steps), source.batches(), strict=False):
            for key, learner in learners.items():
                read, write = places[key]
                x = batch(read, "x")
                y = x if read == write else batch(write, "y")
                start = time.process_time()
                learner.learn(x, y, step)
                seconds[key].append(time.process_time() - start)
            progress(f"seed {seed}: training {len(learners)} dictionaries", step + 1, n_steps)
        candidates = {
            key: SplicedModel(model, {f"{learner.site}.{layer}": learner.dictionary()})
            for key, learner in learners.items()
        }
        bos = bos_token(model)
        reports = evaluate_many(
            candidates,
            full_rows(eval_rows, bos),
            keep=trained_positions(eval_rows, bos),
            progress=lambda done, of: progress(f"seed {seed}: measuring", done, of),
        )
    return [
        _record(trial, reports[trial.key].dictionaries[0], seconds[trial.key]) for trial in wanted
    ]


def _settings(config: ComparisonConfig, trial: Trial) -> DictionaryConfig:
    return DictionaryConfig(
        n_features=trial.n_features,
        k=min(trial.level, trial.n_features),
        n_tokens=config.n_tokens,
        batch_size=config.batch_size,
        lr=trial.lr,
        seed=trial.seed,
        **trial.method.settings,
    )


def _record(trial: Trial, found: Any, seconds: Sequence[float]) -> Record:
    losses = found.cross_entropy
    return Record(
        method=trial.method.name,
        n_features=trial.n_features,
        level=trial.level,
        seed=trial.seed,
        lr=trial.lr,
        l0=found.l0,
        fvu=found.fvu,
        ce_increase=losses.spliced - losses.clean,
        ce_recovered=losses.recovered_mean,
        kl=found.kl.spliced,
        dead_share=found.dead_share,
        above_1_percent=found.density.above_1_percent,
        above_10_percent=found.density.above_10_percent,
        cpu_s_per_step=sorted(seconds)[len(seconds) // 2],
    )
