"""From a name, a folder or an object to a model; and the message when there is none."""

from pathlib import Path

import pytest
import torch

from circuits import SplicedModel, load_model, loading
from tests import models
from tests.models import TOKENS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder whose name has a dot, as many hub names have."""
    path = tmp_path_factory.mktemp("hub") / "toy-1.4b"
    models.hf_model("llama_gqa").save_pretrained(path)
    models.word_tokenizer().save_pretrained(path)
    return path


def test_a_folder_loads_as_it_was_saved(folder: Path):
    model = load_model(folder)
    assert model.name == "toy-1.4b"
    assert model.tokenize(" Mary gave").tolist() == [3, 5]
    logits, _ = model.run(TOKENS[None])
    want, _ = models.subject("llama_gqa").run(TOKENS[None])
    assert torch.allclose(logits, want, atol=1e-5)
    double = load_model(str(folder), dtype=torch.float64)
    assert double.dtype == double.run(TOKENS[None])[0].dtype == torch.float64


def test_bos_can_be_asked_for(folder: Path):
    model = load_model(folder, prepend_bos=True)
    assert model.tokenize(" Mary").tolist() == [0, 3]


def test_another_tokenizer_can_be_given(folder: Path):
    tokenizer = models.word_tokenizer()
    assert load_model(folder, tokenizer).tokenizer is tokenizer


def test_an_in_memory_model_needs_no_tokenizer():
    model = load_model(models.hf_model("gpt2"))
    assert model.name == "GPT2LMHeadModel"
    run = SplicedModel(model, {0: models.transcoder()}).run(TOKENS[None], "replace")
    assert run.logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no-such-org/no-such-model",
            "cannot load model 'no-such-org/no-such-model': want",
        ),
        ("tiyn", "cannot load model 'tiyn': want one of tiny, smollm2, gpt2, a hub name"),
        ("/nowhere/model.gguf", "no GGUF file at /nowhere/model.gguf; check the path"),
        ("", "cannot load model ''"),
    ],
)
def test_an_unknown_model_is_named(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_a_truncated_model_is_named(folder: Path, tmp_path: Path):
    copy = tmp_path / "cut"
    copy.mkdir()
    for file in folder.iterdir():
        data = file.read_bytes()
        keep = len(data) // 2 if file.suffix == ".safetensors" else len(data)
        (copy / file.name).write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"cannot load model '.*cut'.*The cause: "):
        load_model(copy)


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot load model"):
        load_model(tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CIRCUITLOOM_CACHE", str(tmp_path / "a"))
    assert loading.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("CIRCUITLOOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert loading.cache_folder() == tmp_path / "b" / "circuitloom"


def test_a_conversion_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As on a full disk: the second of two files cannot be written."""
    tokenizer = models.word_tokenizer()

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        loading._save_converted(models.hf_model("llama_gqa"), tokenizer, tmp_path / "smollm2")
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_loads_as_a_plain_folder(tmp_path: Path):
    hf = models.hf_model("llama_gqa")
    loading._save_converted(hf, models.word_tokenizer(), tmp_path / "smollm2")
    converted = load_model(tmp_path / "smollm2")
    want, _ = models.subject("llama_gqa").run(TOKENS[None])
    assert torch.allclose(converted.run(TOKENS[None])[0], want, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["smollm2"]
