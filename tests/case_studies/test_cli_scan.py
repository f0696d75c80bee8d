"""`circuits scan`: what it leaves and prints."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from case_studies.commands import scan
from case_studies.commands.errors import reporting_errors
from circuits.feature_store import FeatureStore
from tests.case_studies.task_models import N_FEATURES, write_dictionaries, write_model

SIZES = ["--n-tokens", "256", "--context", "16", "--top-k", "3", "--before", "4", "--after", "2"]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    (folder / "dictionaries").mkdir()
    write_dictionaries(folder / "dictionaries")
    return ["--model", str(folder), "--dictionaries", str(folder / "dictionaries")]


def run(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(reporting_errors(scan.command))
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


def test_it_leaves_a_store_and_says_what_is_in_it(there: list[str], tmp_path: Path):
    out = tmp_path / "store"
    done = run(*there, *SIZES, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "mlp.0" in done.stdout
    assert f"The store is in {out}" in done.stdout.replace("\n", "")
    store = FeatureStore.open(out)
    assert store.names == ["mlp.0", "mlp.1"]
    assert store.manifest.settings.top_k == 3
    assert store.manifest.corpus.n_tokens == 256
    assert len(store.feature("mlp.1", 2).top[0].tokens) <= 7
    store.verify()
    again = json.loads(run(*there, *SIZES, "--out", str(out), "--json").stdout)
    assert again["n_tokens"] == store.n_tokens
    record = again["dictionaries"]["mlp.1"]
    assert record["n_features"] == N_FEATURES
    assert record["l0"] == float(store.densities("mlp.1").sum())
    assert record["maximum"] == float(store.maxima("mlp.1").max())


def test_one_layer(there: list[str], tmp_path: Path):
    done = run(*there, *SIZES, "--layers", "1", "--out", str(tmp_path), "--json")
    assert list(json.loads(done.stdout)["dictionaries"]) == ["mlp.1"]


def test_a_dry_run_writes_nothing(
    there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shown = run(*there, *SIZES, "--dry-run", "--out", "here")
    assert shown.exit_code == 0, shown.output
    assert "statistics and contexts" in shown.stdout
    printed = json.loads(run(*there, *SIZES, "--dry-run", "--json").stdout)
    assert printed["at_most_at_a_time_bytes"] > printed["statistics_and_contexts_bytes"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out: want a folder for the feature store"),
        (["--out", "x", "--top-k", "0"], "--top-k: Input should be greater than or equal to 1"),
        (["--out", "x", "--layers", "7"], "holds no dictionary for sites"),
        (["--out", "x", "--text", "nothing.txt"], "no text at 'nothing.txt'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    there: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    refused = run(*there, *SIZES, *arguments)
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("Error: ")
