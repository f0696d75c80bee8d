"""The dictionaries of `tiny`: transcoders on every MLP and SAEs on every residual stream."""

import random
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from case_studies.tiny.corpus import greater_than_document, ioi_document, read_prose
from circuits.fidelity import FidelityReport
from circuits.subject import SubjectModel
from circuits.training import TrainingConfig, train
from circuits.training.text import pack_documents

__all__ = ["dictionary_config", "train_dictionaries"]

_PROSE_ROWS, _TASK_ROWS = 6_000, 12_000
"""A prose row holds 127 tokens, a task row one document of 12 to 24: about a fifth is tasks."""


def dictionary_config(model: str, *, n_tokens: int, seed: int) -> TrainingConfig:
    """Settings of the run: TopK 32 of 1,024 features at eight places."""
    return TrainingConfig(
        model=model,
        text="prose and task documents",
        sites=("mlp", "resid_post"),
        n_features=1024,
        k=32,
        n_tokens=n_tokens,
        n_text_tokens=3_000_000,
        batch_size=2048,
        lr=2e-3,
        n_eval_rows=256,
        activation_cache_gb=8.0,
        save_dtype="float16",
        seed=seed,
        data_seed=seed,
    )


def _rows(model: SubjectModel, prose: Path, seed: int) -> Int[Tensor, "row context"]:
    """Rows of prose, and rows of one task document each, in a shuffled order."""
    paragraphs = read_prose(prose, "train")
    rng, tokenizer = random.Random(seed), model.tokenizer
    assert tokenizer is not None, "tiny comes with its tokenizer"

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False).input_ids

    width, bos = model.n_ctx, model.bos_token
    in_prose = pack_documents(ids(paragraphs), width, bos, n_rows=_PROSE_ROWS)
    makers = (greater_than_document, ioi_document)
    documents = ["".join(makers[i % 2](rng)) + "." for i in range(_TASK_ROWS)]
    in_tasks = pack_documents(ids(documents), width, bos, n_rows=_TASK_ROWS, pack=False)
    rows = torch.cat([in_prose, in_tasks])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def train_dictionaries(
    model: SubjectModel, prose: Path, out: Path, *, n_tokens: int, seed: int
) -> FidelityReport:
    """Train all dictionaries in one pass into `out`, and measure them on rows kept aside."""
    config = dictionary_config(model.name, n_tokens=n_tokens, seed=seed)
    report = train(config, model, out=out, tokens=_rows(model, prose, seed))
    assert report is not None, "a run without stop_after ends with a report"
    return report
