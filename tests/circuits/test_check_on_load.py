"""Dictionaries from files are tried on the model that they are put into."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from case_studies.cli import app
from circuits import Convention, SplicedModel, SubjectModel, load_dictionaries, load_model
from circuits.checkpoints import save_dictionary
from circuits.loading import tiny_folder
from circuits.plausibility import ImplausibleDictionaryError, checking, remembered
from tests import models
from tests.cross_layer import cross_layer

pytestmark = pytest.mark.check_on_load
_BARE = Convention(norm="bare")


@pytest.fixture(scope="module")
def tiny() -> SubjectModel:
    return load_model("tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIRCUITLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checked"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two of tiny's transcoders, as somebody's own files."""
    (tmp_path / "mine").mkdir()
    for layer in (0, 2):
        name = f"mlp.{layer}.safetensors"
        shutil.copy(tiny_folder() / "dictionaries" / name, tmp_path / "mine" / name)
    return tmp_path / "mine"


def _count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of dictionaries, one for each time that some are tried."""
    tries: list[int] = []

    def counted(model: Any, dictionaries: Any) -> Any:
        tries.append(len(dictionaries))
        return checking.check_plausible(model, dictionaries)

    monkeypatch.setattr(remembered, "check_plausible", counted)
    return tries


def test_what_fits_is_tried_once(
    tiny: SubjectModel, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = _count(monkeypatch)
    SplicedModel(tiny, load_dictionaries(folder))
    assert tries == [2]
    (note,) = cache.iterdir()
    assert [fit["name"] for fit in json.loads(note.read_text())["fits"]] == ["mlp.0", "mlp.2"]
    SplicedModel(tiny, load_dictionaries(folder))
    assert tries == [2]
    SplicedModel(tiny, load_dictionaries(folder, layers=[2]))
    assert tries == [2, 1]
    path = folder / "mlp.2.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    SplicedModel(tiny, load_dictionaries(folder, layers=[2]))
    assert tries == [2, 1, 1]


def test_what_does_not_fit_is_refused(tiny: SubjectModel, folder: Path, cache: Path) -> None:
    with pytest.raises(ImplausibleDictionaryError, match=r"2 of 2 .*'tiny'[^?]*mlp.0 has FVU"):
        SplicedModel(tiny, load_dictionaries(folder, convention=_BARE))
    assert not cache.exists()
    with pytest.raises(ImplausibleDictionaryError, match=r"gain and bias it has FVU 0.0"):
        SplicedModel(tiny, load_dictionaries(folder, convention=_BARE))
    SplicedModel(tiny, load_dictionaries(folder))
    with pytest.raises(ImplausibleDictionaryError):
        SplicedModel(tiny, load_dictionaries(folder, convention=_BARE))


def test_switched_off_it_warns(tiny: SubjectModel, folder: Path, cache: Path) -> None:
    with pytest.warns(UserWarning, match=r"were not tried on the model .*looks right"):
        SplicedModel(tiny, load_dictionaries(folder, convention=_BARE), check=False)
    assert not cache.exists()


def test_without_text_nothing_can_be_tried(tmp_path: Path, cache: Path) -> None:
    model = load_model(models.hf_model("gpt2", torch.float32))
    path = tmp_path / "mlp.0.safetensors"
    save_dictionary(models.transcoder("relu"), path, layer=0, model="x")
    with pytest.warns(UserWarning, match=r"has no tokenizer: the dictionaries were not tried"):
        SplicedModel(model, load_dictionaries(path))


def test_dictionaries_in_memory_are_the_callers_own(
    tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = _count(monkeypatch)
    SplicedModel(tiny, {0: models.transcoder("relu", d_model=tiny.d_model)})
    SplicedModel(tiny, load_dictionaries("tiny"))
    assert tries == []


def test_upper_layers_of_a_cross_layer_transcoder_are_not_tried(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = _count(monkeypatch)
    for layer in range(models.N_LAYERS):
        part = cross_layer(models.N_LAYERS - layer, seed=layer)
        save_dictionary(part, tmp_path / f"mlp.{layer}.safetensors", layer=layer, model="x")
    model = models.subject("gpt2")
    SplicedModel(model, load_dictionaries(tmp_path, layers=range(1, models.N_LAYERS)))
    assert tries == []
    with pytest.raises(ValueError, match=r"dictionaries do not fit|tokens"):
        SplicedModel(model, load_dictionaries(tmp_path))
    assert tries == [models.N_LAYERS]


def test_commands_refuse_and_can_be_made_to_go_on(
    tmp_path: Path, folder: Path, cache: Path
) -> None:
    whole = load_dictionaries(folder, convention=_BARE, layers=[0])["mlp.0"]
    (tmp_path / "wrong").mkdir()
    save_dictionary(whole, tmp_path / "wrong" / "mlp.0.safetensors", layer=0, model="tiny")
    command = ["attribute", "The war", "--dictionaries", str(tmp_path / "wrong"), "--json"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "do not fit 'tiny' as they are declared" in " ".join(refused.stderr.split())
    forced = CliRunner().invoke(app, [*command, "--no-check"])
    assert forced.exit_code == 0
    assert "were not tried on the model" in forced.stderr
