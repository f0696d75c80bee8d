"""The command line: help without weight, clear refusals, and what each command leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from case_studies.cli import COMMANDS, app
from tests.case_studies.task_models import N_FEATURES, write_dictionaries, write_model
from tests.limits import files_no_larger_than

PROMPT = "When Mary and Peter went to the store, Peter gave a drink to"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dictionaries(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dictionaries")
    write_dictionaries(folder)
    return str(folder)


@pytest.fixture
def places(model: str, dictionaries: str) -> list[str]:
    return ["--model", model, "--dictionaries", dictionaries]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def refused(result: Result) -> str:
    """The one line of a refusal."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom case_studies.cli import main\nsys.argv = ['circuits', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'numpy', 'plotly', 'networkx',"
        " 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_flags(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert "--json" in result.stdout
    assert "--debug" in result.stdout


def test_unknown_command_is_refused() -> None:
    result = run("atribute")
    assert result.exit_code == 2
    assert "attribute" in result.stderr


def test_models_say_whether_they_are_here() -> None:
    result = run("models", "--json")
    records = {r["name"]: r for r in json.loads(result.stdout)["models"]}
    assert records.keys() >= {"tiny", "smollm2", "gpt2"}
    assert all(r["what"] for r in records.values())
    assert all(r["here"] is None or isinstance(r["here"], str) for r in records.values())


def test_attribute_writes_all_five_files(places: list[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    flags = ["--target-correct", " Mary", "--target-wrong", " Peter", "--top", "4"]
    result = run("attribute", PROMPT, *places, *flags, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    files = {"circuit.html", "config.json", "graph.json", "metrics.json", "report.md"}
    assert {path.name for path in out.iterdir()} == files
    printed = json.loads(result.stdout)
    assert json.loads((out / "metrics.json").read_text()) == {"version": 1, **printed}
    assert printed["conservation_error"] < 1e-4
    assert list(printed["target"]) == ["logit difference"]
    assert 0 < len(printed["strongest_nodes"]) <= 4
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert settings["prompt"] == PROMPT
    assert settings["target_wrong"] == [" Peter"]
    assert printed["strongest_nodes"][0]["node"] in (out / "report.md").read_text()


def test_attribute_s_graph_is_the_pruned_one(places: list[str], tmp_path: Path) -> None:
    from graphs import CircuitGraph

    result = run("attribute", PROMPT, *places, "--out", str(tmp_path), "--json")
    printed = json.loads(result.stdout)
    graph = CircuitGraph.load(tmp_path / "graph.json")
    assert (graph.n_nodes, graph.n_edges) == (printed["n_nodes"], printed["n_edges"])
    assert graph.n_nodes < printed["n_nodes_before_pruning"]


def test_attribute_s_direct_effects_are_edges_of_the_graph(
    places: list[str], tmp_path: Path
) -> None:
    from graphs import CircuitGraph

    printed = json.loads(run("attribute", PROMPT, *places, "--out", str(tmp_path), "--json").stdout)
    graph = CircuitGraph.load(tmp_path / "graph.json")
    first = graph.outputs[0].id
    for node in printed["strongest_nodes"]:
        edge = graph.digraph.get_edge_data(node["node"], first, {"attribution": 0.0})
        assert node["direct_effect"] == pytest.approx(edge["attribution"])


def test_attribute_prints_a_table_without_markup_surprises(places: list[str]) -> None:
    result = run("attribute", "Mary [bold] gave", *places)
    assert result.exit_code == 0, result.output
    assert "[bold]" in result.stdout
    assert "Strongest nodes" in result.stdout


def test_feature_agrees_with_the_library(places: list[str], model: str, dictionaries: str) -> None:
    from attribution import deembed_feature, virtual_weights
    from circuits import SplicedModel, load_dictionaries, load_model

    printed = json.loads(run("feature", "mlp.1.3", *places, "--top", "4", "--json").stdout)
    spliced = SplicedModel(load_model(model), load_dictionaries(dictionaries))
    reads = deembed_feature(spliced, "mlp.1", 3, top=4)
    assert [name for name, _ in printed["deembedding"]] == [name for name, _ in reads]
    weights = virtual_weights(spliced, "mlp.1", "mlp.0")
    best = int(weights[3].abs().argmax())
    name, value = printed["upstream"][0]
    assert name == f"mlp.0.{best}"
    assert value == pytest.approx(float(weights[3, best]), rel=1e-5)
    assert printed["downstream"] == []
    below = json.loads(run("feature", "mlp.0.5", *places, "--top", "4", "--json").stdout)
    best = int(weights[:, 5].abs().argmax())
    assert below["downstream"][0][0] == f"mlp.1.{best}"
    assert below["downstream"][0][1] == pytest.approx(float(weights[best, 5]), rel=1e-5)
    assert below["upstream"] == []


def test_train_then_evaluate(model: str, tmp_path: Path) -> None:
    out = tmp_path / "dictionaries"
    sizes = "--n-features 20 --k 4 --n-tokens 512 --n-text-tokens 512 --n-eval-rows 4 --context 16"
    trained = run(
        *("train", "--model", model, "--out", str(out), "--layers", "1", "--batch-size", "64"),
        *sizes.split(),
        "--json",
    )
    assert trained.exit_code == 0, trained.output
    printed = json.loads(trained.stdout)
    assert [d["name"] for d in printed["dictionaries"]] == ["mlp.1"]
    assert (out / "mlp.1.safetensors").exists()
    judged = run(
        *("evaluate", "--model", model, "--dictionaries", str(out), "--n-tokens", "64"),
        *("--context", "16", "--out", str(tmp_path / "judged"), "--json"),
    )
    assert judged.exit_code == 0, judged.output
    report = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    assert report == json.loads(judged.stdout)
    assert report["dictionaries"][0]["l0"] <= 4
    settings = json.loads((tmp_path / "judged" / "config.json").read_text())["settings"]
    assert settings["n_tokens"] == 64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((PROMPT, "--layers", "0,7"), "holds no dictionary mlp.7; of these it holds mlp.0"),
        ((PROMPT, "--sites", "mlp,resid_post"), "holds no dictionary resid_post.0"),
        (("",), "the prompt is empty"),
        (("word " * 99,), "reads at most 32; shorten it"),
        ((PROMPT, "--target-correct", " Mary Peter"), "' Mary Peter' is 2 tokens"),
        ((PROMPT, "--target-wrong", " Mary"), "--target-wrong needs a --target-correct"),
        ((PROMPT, "--node-threshold", "1.5"), "--node-threshold: Input should be less than"),
    ],
)
def test_bad_attribute_input_is_refused(
    places: list[str], flags: tuple[str, ...], message: str
) -> None:
    assert message in refused(run("attribute", *flags, *places))


def test_unknown_model_is_refused(dictionaries: str) -> None:
    line = refused(run("attribute", PROMPT, "--model", "nosuch", "--dictionaries", dictionaries))
    assert "cannot load model 'nosuch'" in line


def test_unknown_dictionaries_are_refused(model: str) -> None:
    line = refused(run("attribute", PROMPT, "--model", model, "--dictionaries", "nosuch"))
    assert "no dictionaries called 'nosuch'" in line


def test_dictionaries_of_another_width_are_refused(model: str, tmp_path: Path) -> None:
    write_dictionaries(tmp_path, d_model=8)
    line = refused(run("attribute", PROMPT, "--model", model, "--dictionaries", str(tmp_path)))
    assert "reads width 8" in line


def test_a_truncated_file_is_refused(model: str, tmp_path: Path) -> None:
    write_dictionaries(tmp_path)
    path = tmp_path / "mlp.1.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    line = refused(run("attribute", PROMPT, "--model", model, "--dictionaries", str(tmp_path)))
    assert "mlp.1.safetensors is not a complete safetensors file" in line


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("mlp.9.3", "no dictionary at 'mlp.9'; there are mlp.0, mlp.1"),
        ("mlp.1.999", f"feature must be in [0, {N_FEATURES}), got 999"),
        ("mlp.1", "want a feature as SITE.LAYER.INDEX, such as mlp.2.345"),
        ("head.1.2", "want a feature as SITE.LAYER.INDEX"),
    ],
)
def test_unknown_features_are_refused(places: list[str], feature: str, message: str) -> None:
    assert message in refused(run("feature", feature, *places))


def test_an_out_that_is_a_file_is_refused(places: list[str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    result = run("attribute", PROMPT, *places, "--out", str(path))
    assert result.exit_code == 2
    assert path.read_text() == "mine"


def test_a_full_disk_leaves_no_half_file(places: list[str], tmp_path: Path) -> None:
    with files_no_larger_than(100_000):
        result = run("attribute", PROMPT, *places, "--out", str(tmp_path))
    message = f"{tmp_path / 'circuit.html'}: could not write the file (File too large)"
    assert message in refused(result)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "graph.json", "metrics.json"}
    assert all(json.loads((tmp_path / name).read_text()) for name in names)


def test_debug_shows_the_traceback(places: list[str]) -> None:
    result = run("attribute", "", *places, "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.rstrip().endswith("write at least one word")
