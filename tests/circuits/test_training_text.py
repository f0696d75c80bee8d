"""Text in, rows of token ids out."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
import torch

from circuits.training.sampling import choose, sample_rows
from circuits.training.text import (
    load_rows,
    pack_documents,
    read_documents,
    read_rows,
    save_rows,
)
from tests.circuits.training_models import small_gpt2, small_llama


def test_documents_are_paragraphs_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    (tmp_path / "b.txt").write_text("four")
    assert list(read_documents(str(tmp_path))) == ["one\ntwo", "three", "four"]
    assert list(read_documents(str(tmp_path / "b.txt"))) == ["four"]


@pytest.mark.parametrize(("ending", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_documents_are_lines_of_jsonl(tmp_path: Path, ending: str, opener) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "é one"}) + "\n\n" + json.dumps({"text": " "}) + "\n")
    assert list(read_documents(str(path))) == ["é one"]


def test_bad_sources_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"words": "x"}\n')
    with pytest.raises(
        ValueError, match=r"bad\.jsonl, line 1: want an object with a string `text`"
    ):
        list(read_documents(str(bad)))
    with pytest.raises(ValueError, match=r"holds no \.txt file"):
        list(read_documents(str(tmp_path)))
    other = tmp_path / "a.csv"
    other.write_text("x")
    with pytest.raises(ValueError, match=r"text files are \.txt"):
        list(read_documents(str(other)))


def test_packing_by_hand() -> None:
    documents = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    packed = pack_documents(documents, 4, 1, n_rows=9)
    assert packed.tolist() == [[1, 5, 6, 7], [1, 8, 1, 9], [1, 10, 11, 12]]
    apart = pack_documents(documents, 4, 1, n_rows=9, pack=False)
    assert apart.tolist() == [[1, 5, 6, 7], [1, 8, -1, -1], [1, 9, 10, 11], [1, 12, 13, -1]]
    assert len(pack_documents(documents, 4, 1, n_rows=2)) == 2


def test_choose_draws_by_probability() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(1000, 3)
    uniform = (torch.arange(1000)[:, None] + 0.5) / 1000
    assert choose(logits, uniform).flatten().bincount().tolist() == [100, 200, 700]


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
def test_extending_a_cache_gives_the_logits_of_one_pass(make) -> None:
    model = make()
    tokens = torch.tensor([[0, 5, 9, 3], [0, 7, 7, 1]])
    wanted, _ = model.run(tokens)
    cache = None
    for position in range(4):
        logits, cache = model.extend(tokens[:, position : position + 1], cache)
        torch.testing.assert_close(logits, wanted[:, position], rtol=1e-4, atol=1e-4)


def test_sampling_repeats_with_its_seed() -> None:
    model = small_gpt2()
    first, again, other = (
        torch.cat(list(sample_rows(model, 5, 8, bos=0, seed=seed, batch_rows=3)))
        for seed in (0, 0, 1)
    )
    assert first.shape == (5, 8)
    assert (first[:, 0] == 0).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_survive_a_file_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    model = small_gpt2()
    rows = read_rows(model, "sample", context=8, n_tokens=24)
    path = tmp_path / "tokens.safetensors"
    save_rows(rows, path)
    assert torch.equal(load_rows(path, 8), rows)
    with pytest.raises(ValueError, match=r"rows of shape \(3, 8\); want context 9"):
        load_rows(path, 9)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="no file of token rows"):
        load_rows(path, 8)


def test_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"context 25 is longer than .* reads, 24"):
        read_rows(small_gpt2(), "sample", context=25, n_tokens=50)
