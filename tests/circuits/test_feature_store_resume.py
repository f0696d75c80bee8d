"""A scan that stops anywhere, even killed, ends with the bytes of one that never stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from circuits import files
from circuits.feature_store import FeatureStore
from circuits.feature_store import scan as scanning
from circuits.feature_store.scan import scan
from circuits.training.display import Progress
from tests.circuits.feature_stores import CORPUS, SETTINGS, corpus_rows, example_spliced

ROOT = Path(__file__).parents[2]
FEW = SETTINGS.model_copy(update={"coactivation_entries": 600, "partner_tokens": 20})
"""So few entries that tokens are sampled, and the sample shrinks on the way."""


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def run(out: Path, **changes: object) -> FeatureStore:
    arguments = {"rows": corpus_rows(60), "settings": FEW, "save_every": 6, **changes}
    return scan(example_spliced(), CORPUS, out, **arguments)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    store = run(out)
    assert store.manifest.n_coactivation_tokens < store.n_tokens / 2
    return contents(out)


PLACES = {
    "writing config.json": (files, "_write", 1),
    "reading the text": (scanning, "kept_rows", 1),
    "at the first batch": (scanning, "_add_batch", 1),
    "before the first save": (scanning, "save_progress", 1),
    "after two saves": (scanning, "_add_batch", 6),
    "in the last batch": (scanning, "_add_batch", 20),
    "before the last save": (scanning, "save_progress", 10),
    "counting partners": (scanning, "count_partners", 1),
    "between dictionaries": (scanning, "write_tables", 3),
    "before the manifest": (scanning, "write_manifest", 1),
}


@pytest.mark.parametrize("place", PLACES)
def test_killed(
    place: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module, name, call = PLACES[place]
    real: Callable = getattr(module, name)
    calls = 0

    def function(*arguments: object, **settings: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, function)
        with pytest.raises(Killed):
            run(tmp_path)
    with pytest.raises(ValueError, match="no finished feature store"):
        FeatureStore.open(tmp_path)
    # What a kill leaves of a file that was being written.
    (tmp_path / ".progress.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    run(tmp_path)
    assert contents(tmp_path) == whole


def test_it_goes_on_where_it_was_saved(tmp_path: Path):
    """Not from the start: the rows seen after a resume are those after the save."""
    seen: list[int] = []

    def stop(news: Progress) -> None:
        if news.stage.startswith("scanning") and news.done == 33:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, progress=stop)
    run(tmp_path, progress=lambda news: seen.append(news.done) if "scann" in news.stage else None)
    assert seen == list(range(33, 61, 3))


def test_saving_more_often_changes_nothing(whole: dict[str, bytes], tmp_path: Path):
    run(tmp_path, save_every=1)
    assert contents(tmp_path) == whole


def test_a_finished_scan_is_opened_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path)
    monkeypatch.setattr(scanning, "_add_batch", None)
    assert run(tmp_path).n_tokens > 0


def test_another_scan_in_the_folder_is_refused(tmp_path: Path):
    run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(settings"):
        run(tmp_path, settings=SETTINGS)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(dictionaries"):
        scan(example_spliced(seed=1), CORPUS, tmp_path, rows=corpus_rows(60), settings=FEW)
    with pytest.raises(ValueError, match="holds a scan of other rows than these"):
        run(tmp_path, rows=corpus_rows(61))


def test_damaged_progress_is_refused(tmp_path: Path):
    def stop(news: Progress) -> None:
        if news.done == 30:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, progress=stop)
    path = tmp_path / "progress.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"progress\.safetensors is damaged .*delete it"):
        run(tmp_path)
    path.write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(ValueError, match="has version 7, this reads 1; delete it"):
        run(tmp_path)


def test_sigkill(whole: dict[str, bytes], tmp_path: Path):
    """A process of its own, killed after some saves."""
    command = [sys.executable, "-m", "tests.circuits.test_feature_store_resume", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        deadline = time.monotonic() + 240
        while not (tmp_path / "progress.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "manifest.json").exists()
    run(tmp_path)
    assert contents(tmp_path) == whole


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), progress=lambda news: time.sleep(0.05), save_every=3)
