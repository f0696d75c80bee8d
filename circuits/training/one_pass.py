"""One pass of the subject model, and all that is trained, judged and written on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.checkpoints import load_folder, save_dictionary
from circuits.fidelity import evaluate_many
from circuits.files import write_json
from circuits.precision import fast_float32
from circuits.spliced import SplicedModel
from circuits.subject import SubjectModel
from circuits.training.buffer import ActivationSource, full_rows
from circuits.training.config import TrainingConfig
from circuits.training.data import (
    activation_source,
    batches_of,
    inputs_and_targets,
    text_rows,
)
from circuits.training.display import Progress, Watcher
from circuits.training.loop import Run, learn, open_run
from circuits.training.places import (
    CROSS_LAYER,
    dictionary_names,
    dictionary_sites,
    keys_of,
    kind_of,
)
from circuits.training.processes import Processes
from circuits.training.step import Workspace
from circuits.training.text import bos_token, trained_positions

__all__ = ["METRICS_NAME", "Job", "complete", "weight_seed"]

METRICS_NAME = "metrics.json"
_SCALING_TOKENS = 32_768
"""To which a cross-layer transcoder is scaled: the whole first chunk of all its layers, side by
side, would be as much memory again as all activations."""


@dataclass(frozen=True)
class Job:
    """What is to be trained together.

    Args:
        configs: by name, equal in what is about data.
        folders: name -> where its dictionaries, metrics and checkpoint go.
        out: where the text is kept.
        tokens: the text as token ids if it is not to be read.
        stop_after: stop once this many steps are done; None for the end.
        watch: called with news.
        processes: that do it together.
    """

    configs: Mapping[str, TrainingConfig]
    folders: Mapping[str, Path]
    out: Path
    tokens: Int[Tensor, "row context"] | None
    stop_after: int | None
    watch: Watcher
    processes: Processes

    @property
    def common(self) -> TrainingConfig:
        """A configuration to read shared settings from."""
        return next(iter(self.configs.values()))

    @property
    def last_step(self) -> int:
        """Steps done when this job stops."""
        n_steps = self.common.n_steps
        return n_steps if self.stop_after is None else min(self.stop_after, n_steps)

    def only(self, names: Sequence[str]) -> "Job":
        """The job for some of its configurations."""
        return replace(self, configs={name: self.configs[name] for name in names})


def complete(job: Job, model: SubjectModel) -> bool:
    """Do all that is left of a job; whether there is nothing left now."""
    common, processes = job.common, job.processes
    # A layer that does not exist is refused before any text is read.
    keys = {name: keys_of(c, model.name, model.n_layers) for name, c in job.configs.items()}
    if processes.first:
        text_rows(common, model, job.out, job.tokens, job.watch)
    processes.wait()
    rows = text_rows(common, model, job.out, None, job.watch)
    with torch.no_grad(), fast_float32(model.device):
        work = Workspace()
        source = activation_source(
            common,
            model,
            rows[: -common.n_eval_rows],
            [key for each in keys.values() for key in each],
            processes=processes,
            work=work,
            watch=job.watch,
        )
        runs = [_open(job, name, keys[name], source, model.device, work) for name in job.configs]
        processes.wait()  # all have read the checkpoints before any is replaced
        learn(
            runs,
            batches_of(source),
            last=job.last_step,
            checkpoint_every=common.checkpoint_every,
            watch=job.watch,
            saves=processes.first,
        )
        if job.last_step < common.n_steps:
            return False
        del source
        if processes.first:
            _finish(job, runs, model, rows[-common.n_eval_rows :])
        processes.wait()
    return True


def weight_seed(seed: int, key: str) -> int:
    """Seed of the first weights of a dictionary: that of its run and its name decide, no others."""
    return crc32(f"{seed} {key}".encode())


def _open(
    job: Job,
    name: str,
    keys: Sequence[str],
    source: ActivationSource,
    device: torch.device,
    work: Workspace,
) -> Run:
    def first(key: str) -> tuple[Tensor, Tensor]:
        most = _SCALING_TOKENS if kind_of(key) == CROSS_LAYER else None
        return inputs_and_targets(key, lambda site, _: source.first(site, most))

    config = job.configs[name]
    return open_run(
        name,
        config,
        {key: weight_seed(config.seed, key) for key in keys},
        first,
        folder=job.folders[name],
        device=device,
        work=work,
        processes=job.processes,
    )


def _finish(job: Job, runs: Sequence[Run], model: SubjectModel, rows: Tensor) -> None:
    """Write the dictionaries, judge them as they are on disk, write `metrics.json`."""
    spliced = {}
    for run in runs:
        config, folder = job.configs[run.name], job.folders[run.name]
        for key, learner in run.learners.items():
            for place, dictionary in zip(
                dictionary_names(key), learner.dictionaries(), strict=True
            ):
                save_dictionary(
                    dictionary,
                    folder / f"{place}.safetensors",
                    layer=dictionary_sites(place)[0].layer,
                    model=config.model,
                    dtype=getattr(torch, config.save_dtype),
                )
        found = load_folder(folder, sites=config.sites, layers=config.layers)
        spliced[run.name] = SplicedModel(model, found)
    bos = bos_token(model)
    reports = evaluate_many(
        spliced,
        full_rows(rows, bos),
        keep=trained_positions(rows, bos),
        progress=lambda done, of: job.watch(Progress("measuring fidelity (passes)", done, of)),
    )
    for name, report in reports.items():
        write_json(job.folders[name] / METRICS_NAME, report.model_dump(mode="json"))
