"""A run that stops anywhere, even killed, ends with the bytes of one that never stopped."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from circuits import files
from circuits.training import TrainingConfig, loop, one_pass, train, trainer
from circuits.training.display import Progress
from tests.circuits.training_models import small_gpt2

ROOT = Path(__file__).parents[2]
CONFIG = TrainingConfig(
    model="small",
    sites=("mlp", "resid_post"),
    architecture="jumprelu",
    n_features=48,
    k=4,
    n_tokens=20 * 64,
    batch_size=64,
    n_text_tokens=40 * 12,
    context=12,
    n_eval_rows=8,
    model_batch_rows=3,
    buffer_tokens=150,
    activation_cache_gb=0.0,
    lr=1e-2,
    clip_norm=1.0,
    dead_after_tokens=300,
    checkpoint_every=3,
)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    train(CONFIG, small_gpt2(), out=out, progress=False)
    assert len(contents(out)) == 4 + 3
    return contents(out)


def killing(module: object, name: str, monkeypatch: pytest.MonkeyPatch, *, call: int) -> None:
    """Let call number `call` (from 1) of a function in `module` be the last thing that happens."""
    real: Callable = getattr(module, name)
    calls = 0

    def function(*arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*arguments, **settings)

    monkeypatch.setattr(module, name, function)


PLACES = {
    "writing config.json": (files, "_write", 1),
    "reading the text": (one_pass, "text_rows", 1),
    "at the first step": (loop, "_learn_one", 1),
    "in the middle": (loop, "_learn_one", 9),
    "at a checkpoint": (loop, "save_checkpoint", 3),
    "before the last checkpoint": (loop, "save_checkpoint", 7),
    "writing the third dictionary": (one_pass, "save_dictionary", 3),
    "between dictionaries and metrics": (one_pass, "evaluate_many", 1),
    "writing metrics.json": (one_pass, "write_json", 1),
    "before the checkpoint is removed": (trainer, "CHECKPOINT_NAME", 0),
}


@pytest.mark.parametrize("place", PLACES)
def test_killed(
    place: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, call = PLACES[place]
    with monkeypatch.context() as patch:
        if call:
            killing(module, name, patch, call=call)
        else:  # `tmp_path / 0` is an error
            patch.setattr(module, name, 0)
        with pytest.raises((Killed, TypeError)):
            train(CONFIG, small_gpt2(), out=tmp_path, progress=False)
    assert contents(tmp_path) != whole
    # What a kill leaves of a file that was being written.
    (tmp_path / ".checkpoint.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    assert train(CONFIG, small_gpt2(), out=tmp_path, progress=False) is not None
    assert contents(tmp_path) == whole


def test_killed_while_sampling(whole: dict[str, bytes], tmp_path: Path) -> None:
    def watch(news: Progress) -> None:
        if news.stage.startswith("reading"):
            raise Killed

    with pytest.raises(Killed):
        train(CONFIG, small_gpt2(), out=tmp_path, progress=watch)
    assert set(contents(tmp_path)) == {"config.json"}
    train(CONFIG, small_gpt2(), out=tmp_path, progress=False)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "gated", "relu", "matryoshka"])
def test_every_architecture_resumes(architecture: str, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"architecture": architecture, "layers": (0,)})
    train(config, small_gpt2(), out=tmp_path / "whole", progress=False)
    assert (
        train(config, small_gpt2(), out=tmp_path / "parts", progress=False, stop_after=11) is None
    )
    train(config, small_gpt2(), out=tmp_path / "parts", progress=False)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_real_kills_end_with_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kills", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["kills"] == 3
    assert record["identical"] is True
    assert record["files"] == 12
