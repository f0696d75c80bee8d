"""Text as rows of token ids, from files, a hub dataset or the model itself.

A row begins with BOS and is padded with -1 where its document ended.
"""

import gzip
import json
import lzma
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.files import write_atomically
from circuits.subject import SubjectModel
from circuits.training.sampling import sample_rows

__all__ = [
    "PADDING",
    "bos_token",
    "kept_rows",
    "load_rows",
    "pack_documents",
    "read_documents",
    "read_rows",
    "save_rows",
    "trained_positions",
]

PADDING = -1
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def bos_token(model: SubjectModel) -> int:
    """The token that begins rows: BOS, or EOS where there is none, or 0 without tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return 0
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((i for i in ids if i is not None), 0)


def trained_positions(rows: Int[Tensor, "row context"], bos: int) -> Bool[Tensor, "row context"]:
    """Where dictionaries are trained and judged: not the first position, BOS or padding.

    Example:
        >>> trained_positions(torch.tensor([[1, 5, 1, 7, -1]]), bos=1)
        tensor([[False,  True, False,  True, False]])
    """
    wanted = (rows != PADDING) & (rows != bos)
    wanted[:, 0] = False
    return wanted


def read_documents(source: str) -> Iterator[str]:
    """Documents of a text file, a folder of them, a JSON-lines file or a hub dataset.

    Args:
        source: see `TrainingConfig.text`. A .txt file is split at blank lines; JSON lines and
            datasets have a field `text`.

    Raises:
        ValueError: if there is no such file or dataset, or it has another layout.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise ValueError(f"folder {source} holds no .txt file; name a file or put some there")
        for file in files:
            yield from _paragraphs(file)
    elif path.is_file():
        yield from _paragraphs(path) if path.suffix == ".txt" else _json_lines(path)
    else:
        yield from _dataset(source)


def _paragraphs(path: Path) -> Iterator[str]:
    paragraphs = path.read_text(encoding="utf-8", errors="replace").split("\n\n")
    yield from (text for p in paragraphs if (text := p.strip()))


def _json_lines(path: Path) -> Iterator[str]:
    if ".jsonl" not in path.suffixes:
        raise ValueError(f"text files are .txt, .jsonl, .jsonl.gz or .jsonl.xz, got {path}")
    with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            record = json.loads(line) if line.strip() else {"text": ""}
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise ValueError(f"{path}, line {number}: want an object with a string `text`")
            if record["text"].strip():
                yield record["text"]


def _dataset(name: str) -> Iterator[str]:
    try:
        from datasets import load_dataset

        stream = load_dataset(name, split="train", streaming=True)
    except Exception as error:
        raise ValueError(
            f"no text at {name!r}: want `sample`, a .txt, .jsonl(.gz, .xz) or .safetensors file, a "
            "folder of .txt files, or a hub dataset (needs the package `datasets` and a "
            f"connection). The cause: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        ) from error
    for record in stream:
        if not isinstance(record.get("text"), str):
            raise ValueError(f"dataset {name!r} has no string field `text`, only {list(record)}")
        yield record["text"]


def pack_documents(
    documents: Iterable[list[int]], context: int, bos: int, *, n_rows: int, pack: bool = True
) -> Int[Tensor, "row context"]:
    """Token ids of documents as rows that begin with BOS.

    Args:
        documents: token ids without BOS.
        context: tokens a row.
        n_rows: most rows; reading stops there.
        pack: join documents, BOS between them, into full rows (an unfilled last row is dropped);
            otherwise every document begins a row, is cut into as many as it fills, and padded.
    """
    rows: list[list[int]] = []
    width, pending = context - 1, []
    for ids in documents:
        pending += ([bos] if pending else []) + ids if pack else ids
        while len(pending) >= width or (pending and not pack):
            row, pending = pending[:width], pending[width:]
            rows.append([bos, *row, *[PADDING] * (width - len(row))])
        if len(rows) >= n_rows:
            break
    return torch.tensor(rows[:n_rows], dtype=torch.int32).view(-1, context)


def _tokenised(model: SubjectModel, documents: Iterable[str]) -> Iterator[list[int]]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"model {model.name!r} has no tokenizer; pass `tokens` instead of text")
    for text in documents:
        yield tokenizer(text, add_special_tokens=False).input_ids


def read_rows(
    model: SubjectModel,
    source: str,
    *,
    context: int,
    n_tokens: int,
    seed: int = 0,
    pack: bool = True,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Int[Tensor, "row context"]:
    """Rows of `context` tokens from `source`, at most `n_tokens` in all, in a shuffled order.

    Args:
        source: see `TrainingConfig.text`.
        progress: called with rows done and rows wanted.

    Raises:
        ValueError: if the source cannot be read or the context is longer than the model's.
    """
    if context > model.n_ctx:
        raise ValueError(f"context {context} is longer than {model.name!r} reads, {model.n_ctx}")
    n_rows, bos = max(1, n_tokens // context), bos_token(model)
    if source == "sample":
        batches = []
        for batch in sample_rows(model, n_rows, context, bos=bos, seed=seed):
            batches.append(batch)
            progress(sum(map(len, batches)), n_rows)
        return torch.cat(batches).to(torch.int32)
    if source.endswith(".safetensors"):
        return load_rows(Path(source), context)[:n_rows]
    documents = _tokenised(model, read_documents(source))
    rows = pack_documents(documents, context, bos, n_rows=n_rows, pack=pack)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return rows[order]


def kept_rows(
    path: Path, context: int, make: Callable[[], Int[Tensor, "row context"]]
) -> Int[Tensor, "row context"]:
    """The rows in the file at `path`; if there is none, what `make` returns is kept there."""
    if not path.exists():
        save_rows(make().to(torch.int32), path)
    return load_rows(path, context)


def save_rows(rows: Int[Tensor, "row context"], path: Path) -> None:
    """Write rows of token ids, all or nothing."""
    from safetensors.torch import save_file

    write_atomically(
        path, lambda temporary: save_file({"tokens": rows.contiguous()}, str(temporary))
    )


def load_rows(path: Path, context: int) -> Int[Tensor, "row context"]:
    """Read rows written by `save_rows`.

    Raises:
        ValueError: if the file is damaged or its rows have another length.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        rows = load_file(str(path))["tokens"]
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} is no file of token rows ({error}); delete it to make it again"
        ) from error
    if rows.ndim != 2 or rows.shape[1] != context:
        raise ValueError(f"{path} has rows of shape {tuple(rows.shape)}; want context {context}")
    return rows
