"""`circuits convert`."""

import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from case_studies.cli import app
from circuits import load_dictionaries, save_dictionaries
from circuits.checkpoints import save_dictionary
from tests import models


def _run(*args: str):
    return CliRunner().invoke(app, list(args))


def _made(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for layer, name in enumerate(names):
        path = folder / f"mlp.{layer}.safetensors"
        save_dictionary(models.transcoder("relu", seed=layer), path, layer=layer, model=name)
    return folder


def test_to_another_format_and_back(tmp_path: Path) -> None:
    source = _made(tmp_path / "own", "toy", "toy")
    for to in ("circuit-tracer", "saelens"):
        done = _run("convert", str(source), "--to", to, "--out", str(tmp_path / to), "--json")
        assert done.exit_code == 0, done.output
        record = json.loads(done.stdout)
        assert record["dictionaries"] == ["mlp.0", "mlp.1"]
        assert record["model"] == "toy"
        own, other = load_dictionaries(source), load_dictionaries(tmp_path / to)
        assert list(other) == ["mlp.0", "mlp.1"]
        x = torch.randn(6, models.D_MODEL, generator=torch.Generator().manual_seed(0))
        for name in own:
            torch.testing.assert_close(other[name](x), own[name](x))
            assert other[name].convention.norm == "gain and bias"
    done = _run("convert", str(source), "--to", "saelens", "--out", str(tmp_path / "some"))
    assert "wrote mlp.0, mlp.1 for toy" in done.stdout


def test_some_layers_and_another_name(tmp_path: Path) -> None:
    source, out = _made(tmp_path / "own", "toy", "toy"), tmp_path / "new"
    flags = ("--layers", "1", "--model", "gpt2")
    done = _run("convert", str(source), "--to", "circuitloom", "--out", str(out), *flags)
    assert done.exit_code == 0, done.output
    found = load_dictionaries(out)
    assert list(found) == ["mlp.1"]
    assert found.entries["mlp.1"].model == "gpt2"


def test_kinds_are_chosen_by_site(tmp_path: Path) -> None:
    flags = ("--to", "saelens", "--sites", "resid_post", "--layers", "2")
    done = _run("convert", "tiny", *flags, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert list(load_dictionaries(tmp_path / "out")) == ["resid_post.2"]
    refused = _run("convert", "tiny", "--to", "saelens", "--out", str(tmp_path / "none"))
    assert refused.exit_code == 2
    assert "mlp.0 is a TopK transcoder, which SAELens has no class for" in refused.output
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    source, out = _made(tmp_path / "own", "toy", "other"), tmp_path / "new"
    wrong = _run("convert", str(source), "--to", "pickle", "--out", str(out), "--model", "toy")
    assert wrong.exit_code == 2
    assert "cannot write the format 'pickle'; want one of circuitloom, saelens" in wrong.output
    unnamed = _run("convert", str(source), "--to", "saelens", "--out", str(out))
    assert unnamed.exit_code == 2
    assert "name other, toy; say which with --model" in " ".join(unnamed.output.split())
    holes = {"mlp.0": models.transcoder("relu"), "mlp.2": models.transcoder("relu")}
    save_dictionaries(holes, tmp_path / "holes", format="circuitloom", model="toy")
    done = _run("convert", str(tmp_path / "holes"), "--to", "circuit-tracer", "--out", str(out))
    assert done.exit_code == 2
    assert not out.exists()
