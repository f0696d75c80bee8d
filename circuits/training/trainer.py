"""Training runs: dictionaries of many layers, for one or several configurations, in one pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.fidelity import FidelityReport
from circuits.loading import load_model
from circuits.subject import SubjectModel
from circuits.training.checkpoint import CHECKPOINT_NAME
from circuits.training.config import TrainingConfig
from circuits.training.data import shared_settings
from circuits.training.display import Watcher, watching
from circuits.training.folder import claim
from circuits.training.one_pass import METRICS_NAME, Job, complete
from circuits.training.processes import check_device, joined

__all__ = ["subject_of", "train", "train_many"]


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

    Started by torchrun, processes share the model's passes and every batch; they see the same
    folder, and the first one writes.

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
    with _job({"": config}, {"": out}, out, model, tokens, progress, stop_after) as job:
        if job.processes.first:
            claim(out, config.model_dump(mode="json"))
        reports = _reports(job, model)
    return None if reports is None else reports[""]


def train_many(
    configs: Mapping[str, TrainingConfig],
    model: SubjectModel | None = None,
    *,
    out: Path,
    tokens: Int[Tensor, "row context"] | None = None,
    progress: bool | Watcher = True,
    stop_after: int | None = None,
) -> dict[str, FidelityReport] | None:
    """Train several configurations from one pass of the model, each as if it were alone.

    Weights are those that a configuration gets in any company. So a later call with other
    configurations, but the same settings about data, adds to the folder; what is complete stays.

    Args:
        configs: by name; all but what is about dictionaries (sites and layers too) must be equal.
        out: gets the text and the shared settings; `out/NAME` what `train` leaves.
        model, tokens, progress, stop_after: as for `train`.

    Returns:
        Fidelity by name; None if stopped before the end.

    Raises:
        ValueError: as `train`, or if settings about data differ or a name is no folder's.
    """
    for name in configs:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"the name of a configuration becomes a folder, got {name!r}")
    shared = shared_settings(configs)
    folders = {name: out / name for name in configs}
    with _job(configs, folders, out, model, tokens, progress, stop_after) as job:
        if job.processes.first:
            claim(out, shared)
            for name, folder in folders.items():
                claim(folder, configs[name].model_dump(mode="json"))
        return _reports(job, model)


def subject_of(config: TrainingConfig, model: SubjectModel | None = None) -> SubjectModel:
    """The subject model that `config` names, where and as it says.

    Args:
        config: names it.
        model: the same if it is in memory already.

    Raises:
        ValueError: if `model` is elsewhere, or of another dtype, or there is no such device.
    """
    if model is None:
        check_device(config.device or "cpu")
        dtype = torch.float32 if config.dtype is None else getattr(torch, config.dtype)
        return load_model(config.model, dtype=dtype, device=config.device or "cpu")
    has = {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch.")}
    for name, value in has.items():
        if getattr(config, name) not in (None, value):
            raise ValueError(
                f"the model has {name} {value}, but the settings say {getattr(config, name)}; load "
                f"it so, or leave {name} out"
            )
    return model


@contextmanager
def _job(
    configs: Mapping[str, TrainingConfig],
    folders: Mapping[str, Path],
    out: Path,
    model: SubjectModel | None,
    tokens: Tensor | None,
    progress: bool | Watcher,
    stop_after: int | None,
) -> Iterator[Job]:
    """The work to do, among the processes that do it."""
    common = next(iter(configs.values()))
    kind = (common.device or "cpu") if model is None else model.device.type
    with joined(kind) as processes, watching(processes.first and progress) as watch:
        processes.share(common.batch_size)
        yield Job(configs, folders, out, tokens, stop_after, watch, processes)


def _reports(job: Job, model: SubjectModel | None) -> dict[str, FidelityReport] | None:
    """What is kept in the folders of the job, after doing what is missing."""
    missing = [name for name in job.configs if not (job.folders[name] / METRICS_NAME).exists()]
    job.processes.wait()  # nobody looks for metrics once somebody may write them
    if missing and not complete(job.only(missing), subject_of(job.common, model)):
        return None
    if job.processes.first:
        for folder in job.folders.values():
            (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    return {
        name: FidelityReport.model_validate_json((folder / METRICS_NAME).read_text("utf-8"))
        for name, folder in job.folders.items()
    }
