"""`circuits train`: variants, dry run, and what is said at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from case_studies.cli import app
from case_studies.commands.train_plan import duration, size
from case_studies.commands.variants import parse_variants
from circuits.training import TrainingConfig
from tests.case_studies.task_models import write_model

ROOT = Path(__file__).parents[2]
SIZES = [
    *("--n-features", "20", "--k", "4", "--n-tokens", "512", "--n-text-tokens", "512"),
    *("--n-eval-rows", "4", "--context", "16", "--layers", "1", "--batch-size", "64"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return str(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "100"})


def test_variants_leave_a_folder_each_and_say_where(model: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    variants = ("--variant", "k=2", "--variant", "wide: n_features=30,architecture=relu")
    done = run("--model", model, "--out", out, *SIZES, *variants)
    assert done.exit_code == 0, done.output
    for name in ("k2", "wide"):
        folder = tmp_path / "out" / name
        files = {path.name for path in folder.iterdir()}
        assert files == {"mlp.1.safetensors", "config.json", "metrics.json"}
        assert f"{name}: {folder}" in done.stdout.replace("\n", "")
    assert "SITE.LAYER.safetensors" in done.stdout
    metrics = json.loads((tmp_path / "out" / "wide" / "metrics.json").read_text())
    assert metrics["dictionaries"][0]["n_features"] == 30
    again = run("--model", model, "--out", out, *SIZES, *variants, "--json")
    assert json.loads(again.stdout)["variants"]["wide"] == metrics


def test_a_dry_run_needs_no_folder_and_writes_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("--model", model, *SIZES, "--dry-run", "--out", "here", "--variant", "k=2")
    assert shown.exit_code == 0, shown.output
    assert "8 steps, 512 tokens presented" in shown.stdout
    assert "sampling the text" in shown.stdout
    assert "k2" in shown.stdout
    printed = json.loads(run("--model", model, *SIZES, "--dry-run", "--json").stdout)
    assert printed["steps"] == 8
    assert printed["dictionaries"] == {"": 1}
    assert printed["seconds_total"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--out: want a folder for the dictionaries (only --dry-run needs none)"),
        (("--out", "x", "--variant", "k"), "--variant: want SETTING=VALUE,... with NAME: in front"),
        (("--out", "x", "--variant", "kk=3"), "--variant: there is no setting 'kk'"),
        (("--out", "x", "--variant", "k=many"), "--variant 'k=many': k Input should be a valid"),
        (("--out", "x", "--variant", "k=0"), "--variant 'k=0': k Input should be greater than"),
        (("--out", "x", "--variant", "k=2", "--variant", "k=2"), "two are called 'k2'"),
        (("--out", "x", "--variant", "n_tokens=64", "--variant", "k=2"), "share their data, but"),
        (("--out", "x", "--variant", "a/b: k=2"), "becomes a folder, got 'a/b'"),
        (("--out", "x", "--layers", "9"), "has layers 0 to 1, got [9] among the layers"),
        (("--out", "x", "--skip", "--sites", "resid_post"), "only transcoders (site mlp) have a s"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("--model", model, *SIZES, *arguments)
    assert refused.exit_code == 2, refused.output
    assert refused.stderr.startswith("Error: ")
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_values_of_every_kind_can_vary() -> None:
    base = TrainingConfig(model="tiny")
    texts = [
        "layers=0+2,sites=resid_post+attn_out",
        "penalty_weight=none",
        "skip=true",
        "n-features=64",
    ]
    texts += ["architecture=matryoshka,group_shares=0.5+0.5", "layers=none", "lr=3e-4"]
    variants = parse_variants(base, texts)
    assert [*variants] == [
        "layers0+2-sites-resid_post+attn_out",
        "penalty_weight-none",
        "skip-true",
        "n_features64",
        "matryoshka-group_shares0.5+0.5",
        "layers-none",
        "lr3e-4",
    ]
    first, _, third, fourth, fifth, sixth, last = variants.values()
    assert (first.layers, first.sites) == ((0, 2), ("resid_post", "attn_out"))
    assert third.skip
    assert fourth.n_features == 64
    assert fifth.group_shares == (0.5, 0.5)
    assert sixth.layers is None
    assert last.lr == 3e-4


def test_sizes_and_durations_read_like_speech() -> None:
    assert (size(0), size(949_999_999), size(10**9)) == ("0.0 MB", "950.0 MB", "1.0 GB")
    assert (duration(0.4), duration(59.6), duration(3600.0)) == ("0 s", "1 min 0 s", "1 h 0 min")


def test_torchrun_trains_with_two_processes(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "case_studies", "train", "--model", model, "--out", str(tmp_path), "--json"]
    done = subprocess.run(
        [*command, *SIZES],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["out"] == str(tmp_path), "and only one process prints"
    alone = run("--model", model, "--out", str(tmp_path / "alone"), *SIZES, "--json")
    wanted = json.loads(alone.stdout)["dictionaries"][0]["fvu"]
    assert printed["dictionaries"][0]["fvu"] == pytest.approx(wanted, abs=1e-4)
