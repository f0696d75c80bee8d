"""A dry run: what training would need, from a few real steps on this machine. Writes nothing."""

from collections.abc import Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from circuits.precision import fast_float32
from circuits.sites import Site
from circuits.subject import SubjectModel
from circuits.training.buffer import activations, n_chunks
from circuits.training.config import TrainingConfig
from circuits.training.data import captured_sites, inputs_and_targets, shared_settings
from circuits.training.measuring import seconds_to_read, seconds_to_sample, step_of
from circuits.training.places import dictionary_names, keys_of, kind_of
from circuits.training.step import Workspace
from circuits.training.text import bos_token
from circuits.training.trainer import subject_of

__all__ = ["Plan", "Seconds", "plan_training"]

_COPIES = 4
"""Of the parameters: themselves, their gradients and Adam's two moments, all in float32."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Seconds(_Record):
    """Expected time of each part of a run."""

    text: float = Field(description="sampling the text; reading it from files is not counted")
    model: float = Field(description="forward passes of the model over the text")
    training: float = Field(description="optimiser steps of all dictionaries")
    fidelity: float = Field(description="forward passes of the evaluation")


class Plan(_Record):
    """What a run would need on this machine, in one process."""

    model: str = Field(description="subject model")
    device: str = Field(description="where it runs")
    dictionaries: dict[str, int] = Field(description="configuration -> dictionaries it trains")
    parameters: dict[str, int] = Field(description="configuration -> numbers it trains")
    text_tokens: int = Field(description="distinct tokens to train on, if there is text enough")
    tokens: int = Field(description="tokens presented to every dictionary")
    steps: int = Field(description="optimiser steps of every dictionary")
    optimiser_bytes: int = Field(description="memory of parameters, gradients and Adam's moments")
    activation_bytes: int = Field(description="memory of kept activations")
    activations_kept: bool = Field(description="whether each row runs through the model only once")
    step_bytes: int = Field(description="memory of one step's pre-activations")
    checkpoint_bytes: int = Field(description="size of the checkpoints on disk")
    seconds: Seconds = Field(description="expected time of each part")
    seconds_total: float = Field(description="expected time of all")


def plan_training(configs: Mapping[str, TrainingConfig], model: SubjectModel | None = None) -> Plan:
    """Time a batch of the model, some sampling and some steps of every kind of dictionary.

    Times are those of the first steps: where sparsity is adapted (jumprelu, gated, relu) later ones
    are faster, since fewer features are active. The model reads random tokens.

    Args:
        configs: as for `train_many`.
        model: the subject model if it is in memory already.

    Raises:
        ValueError: as `train_many`.
    """
    shared_settings(configs)
    common = next(iter(configs.values()))
    model = subject_of(common, model)
    keys = {name: keys_of(c, model.name, model.n_layers) for name, c in configs.items()}
    names = {
        name: [d for key in each for d in dictionary_names(key)] for name, each in keys.items()
    }
    sites = captured_sites([key for each in keys.values() for key in each])
    n_rows = max(1, common.n_text_tokens // common.context)
    n_text = max(1, n_rows - common.n_eval_rows) * (common.context - 1)
    width = len(sites) * model.d_model * model.W_E.element_size()
    chunks = n_chunks(n_text, common.batch_size, common.buffer_tokens)
    kept = chunks == 1 or n_text * width <= common.activation_cache_gb * 1e9
    tokens = common.n_steps * common.batch_size
    through_model = min(n_text, tokens) if kept else tokens
    with torch.no_grad(), fast_float32(model.device):
        parameters, training = _dictionaries(configs, keys, sites, model)
        per_row, whole = seconds_to_read(model, _rows(model, common), sites)
        sampled = common.text == "sample"
        text = seconds_to_sample(model, n_rows, common.context) if sampled else 0.0
    seconds = Seconds(
        text=text,
        model=per_row * through_model / (common.context - 1),
        training=training,
        fidelity=whole * common.n_eval_rows * _passes(configs, names),
    )
    return Plan(
        model=model.name,
        device=str(model.device),
        dictionaries={name: len(each) for name, each in names.items()},
        parameters=parameters,
        text_tokens=n_text,
        tokens=tokens,
        steps=common.n_steps,
        optimiser_bytes=_COPIES * 4 * sum(parameters.values()),
        activation_bytes=(n_text if kept else -(-n_text // chunks)) * width,
        activations_kept=kept,
        step_bytes=5 * common.batch_size * max(_widths(configs, keys)),
        checkpoint_bytes=3 * 4 * sum(parameters.values()),
        seconds=seconds,
        seconds_total=sum(dict(seconds).values()),
    )


def _rows(model: SubjectModel, config: TrainingConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(config.data_seed)
    shape = (config.model_batch_rows, config.context)
    rows = torch.randint(model.W_E.shape[0], shape, generator=generator)
    rows[:, 0] = bos_token(model)
    return rows


def _dictionaries(
    configs: Mapping[str, TrainingConfig],
    keys: Mapping[str, Sequence[str]],
    sites: Sequence[Site],
    model: SubjectModel,
) -> tuple[dict[str, int], float]:
    """Trained numbers of each configuration, and seconds of all optimiser steps of all."""
    rows = _rows(model, next(iter(configs.values())))
    values = activations(model, rows, sites, bos=bos_token(model))
    work, parameters, seconds = Workspace(), dict.fromkeys(configs, 0), 0.0
    for name, config in configs.items():
        for kind in dict.fromkeys(kind_of(key) for key in keys[name]):
            alike = [key for key in keys[name] if kind_of(key) == kind]
            x, y = inputs_and_targets(alike[0], lambda site, _: values[site])
            size, step = step_of(config, kind, x, y, work)
            parameters[name] += size * len(alike)
            seconds += step * len(alike) * config.n_steps
    return parameters, seconds


def _widths(configs: Mapping[str, TrainingConfig], keys: Mapping[str, Sequence[str]]) -> list[int]:
    """How many features each step computes side by side: a dictionary's, or of all layers."""
    return [
        config.n_features * len(dictionary_names(key))
        for name, config in configs.items()
        for key in keys[name]
    ]


def _passes(configs: Mapping[str, TrainingConfig], names: Mapping[str, Sequence[str]]) -> int:
    """Forward passes of the evaluation: spliced ones, and clean and ablated ones once for all."""
    alone = sum(map(len, names.values()))
    together = sum(len(config.sites) for config in configs.values())
    distinct = {name for each in names.values() for name in each}
    kinds = {kind for config in configs.values() for kind in config.sites}
    return 2 + alone + together + 2 * (len(distinct) + len(kinds))
