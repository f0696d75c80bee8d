"""Two processes train what one trains."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from circuits.fidelity import FidelityReport
from circuits.training import fit, train
from circuits.training.processes import ALONE, Processes, check_device, joined
from tests.circuits.training_models import small_gpt2
from tests.circuits.training_processes import ARCHITECTURES, CONFIG, ROWS, activations, learned

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes leave."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.circuits.training_processes", str(folder)]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_step_has_the_loss_of_one_process(two: Path, architecture: str) -> None:
    found = torch.load(two / "learned0.pt")[architecture]
    wanted = learned(architecture)
    torch.testing.assert_close(found["numbers"], wanted["numbers"], rtol=1e-5, atol=1e-5)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


def test_some_features_die_in_the_comparison() -> None:
    assert learned("topk")["numbers"][:, 2].max() > 0, "AuxK's dead set is empty in both"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_processes_hold_the_same_bits(two: Path, architecture: str) -> None:
    first, second = (torch.load(two / f"learned{rank}.pt")[architecture] for rank in range(2))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_runs_on_a_model_give_the_dictionaries_of_one_process(two: Path, tmp_path: Path) -> None:
    report = train(CONFIG, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)
    assert report is not None
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(path.name for path in (two / "whole").iterdir())
    for name in (name for name in files if name.count(".") == 2):
        wanted, found = load_file(tmp_path / name), load_file(two / "whole" / name)
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-4)
    found = FidelityReport.model_validate_json((two / "whole" / "metrics.json").read_text())
    assert found.dictionaries[0].fvu == pytest.approx(report.dictionaries[0].fvu, abs=1e-5)


def test_a_resumed_run_of_two_processes_ends_with_the_same_bytes(two: Path) -> None:
    files = {path.name: path.read_bytes() for path in (two / "whole").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (two / "parts").iterdir()}


def test_fitting_to_batches_gives_the_dictionary_of_one_process(two: Path) -> None:
    x, y = activations()
    config = CONFIG.model_copy(update={"n_tokens": 16 * 64})
    wanted = fit(config, [(x, y)], progress=False).W_dec
    for rank in range(2):
        found = torch.load(two / f"fitted{rank}.pt")
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_nothing_holds_the_group_of_processes_at_the_end(two: Path) -> None:
    """What did would keep its threads, which abort a process that is on its way out."""
    assert [(two / f"ended{rank}").read_text() for rank in range(2)] == ["True", "True"]


def test_a_batch_is_shared_without_overlap_or_rest() -> None:
    shares = [Processes(rank, 3).share(12) for rank in range(3)]
    assert [list(range(12))[share] for share in shares] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    with pytest.raises(ValueError, match="batch_size 64 cannot be shared evenly by 3 processes"):
        Processes(0, 3).share(64)


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cpu") as processes:
        assert processes == ALONE


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device cuda is not there"):
        check_device("cuda")
