"""The command line: help without weight, clear refusals, and what each command leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from case_studies.cli import COMMANDS, app
from circuits.checkpoints import save_dictionary
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


def test_attribute_explains_a_feature(places: list[str], model: str, dictionaries: str) -> None:
    from attribution import FeatureTarget, attribute
    from circuits import SplicedModel, load_dictionaries, load_model

    flags = ["--target-feature", "mlp.1.3", "--target-pos", "4"]
    printed = json.loads(run("attribute", PROMPT, *places, *flags, "--json").stdout)
    spliced = SplicedModel(load_model(model), load_dictionaries(dictionaries))
    trace = attribute(spliced, PROMPT, FeatureTarget("mlp.1", 3, 4), feature_rows=False)
    assert printed["target"] == {"mlp1.3": pytest.approx(float(trace.target_values[0]), rel=1e-5)}
    assert (printed["target_unit"], printed["target_pos"]) == ("pre-activation", 4)
    assert printed["target_token"] == " Peter"
    for node in printed["strongest_nodes"]:
        column = trace.sources.row(node["node"])
        assert node["direct_effect"] in (
            0.0,
            pytest.approx(float(trace.edges[0, column]), rel=1e-3, abs=1e-6),
        )
        assert trace.sources[column].pos <= 4
    table = run("attribute", PROMPT, *places, *flags).stdout
    assert "at 4 ' Peter' of '" in table.splitlines()[0]
    assert "pre-activation" in table


def test_attribute_s_position_is_of_tokens_too(
    places: list[str], model: str, dictionaries: str
) -> None:
    from attribution import LogitDifference, attribute
    from circuits import SplicedModel, load_dictionaries, load_model

    flags = ["--target-correct", " Mary", "--target-pos", "5"]
    printed = json.loads(run("attribute", PROMPT, *places, *flags, "--json").stdout)
    spliced = SplicedModel(load_model(model), load_dictionaries(dictionaries))
    trace = attribute(spliced, PROMPT, LogitDifference(" Mary", pos=5), feature_rows=False)
    value = pytest.approx(float(trace.target_values[0]), rel=1e-5)
    assert printed["target"] == {"logit difference": value}
    assert (printed["target_unit"], printed["target_pos"]) == ("logits", 5)
    likeliest = json.loads(run("attribute", PROMPT, *places, "--target-pos", "5", "--json").stdout)
    assert (likeliest["target_unit"], likeliest["target_pos"]) == ("logit minus mean", 5)


def test_attribute_in_mode_replace(places: list[str], model: str, dictionaries: str) -> None:
    from attribution import LogitDifference, attribute
    from circuits import SplicedModel, load_dictionaries, load_model

    flags = ["--target-correct", " Mary", "--mode", "replace"]
    printed = json.loads(run("attribute", PROMPT, *places, *flags, "--json").stdout)
    spliced = SplicedModel(load_model(model), load_dictionaries(dictionaries))
    target, value = LogitDifference(" Mary"), printed["target"]["logit difference"]
    of = {
        mode: float(
            attribute(spliced, PROMPT, target, mode=mode, feature_rows=False).target_values[0]
        )
        for mode in ("exact", "replace")
    }
    assert printed["mode"] == "replace"
    assert value == pytest.approx(of["replace"], rel=1e-5)
    assert value != pytest.approx(of["exact"], rel=1e-2)
    assert "Mode replace" in run("attribute", PROMPT, *places, *flags).stdout


def test_attribute_with_fewer_rows_says_what_they_leave_out(
    places: list[str], model: str, dictionaries: str, tmp_path: Path
) -> None:
    from attribution import LogitDifference, attribute
    from circuits import SplicedModel, load_dictionaries, load_model

    flags = ["--target-correct", " Mary", "--max-feature-rows", "5"]
    out = ["--out", str(tmp_path)]
    printed = json.loads(run("attribute", PROMPT, *places, *flags, *out, "--json").stdout)
    spliced = SplicedModel(load_model(model), load_dictionaries(dictionaries))
    trace = attribute(spliced, PROMPT, LogitDifference(" Mary"), max_feature_rows=5)
    assert printed["n_feature_rows"] == 5
    assert printed["left_out"] == pytest.approx(trace.left_out, rel=1e-3)
    assert 0 < printed["left_out"] < 1
    assert printed["n_active_features"] == len(trace.sources.where(kind="feature"))
    line = f"Worked out the causes of 5 of {printed['n_active_features']} active features"
    assert line in run("attribute", PROMPT, *places, *flags).stdout
    assert line in (tmp_path / "report.md").read_text()
    every = json.loads(run("attribute", PROMPT, *places, *flags[:2], "--json").stdout)
    assert (every["left_out"], every["n_feature_rows"]) == (0.0, every["n_active_features"])
    assert "Worked out" not in run("attribute", PROMPT, *places, *flags[:2]).stdout


def test_attribute_without_feature_rows(places: list[str]) -> None:
    result = run("attribute", PROMPT, *places, "--max-feature-rows", "0", "--json")
    printed = json.loads(result.stdout)
    assert printed["n_feature_rows"] == 0
    assert 0 < printed["replacement_score"] < 1


def test_a_score_that_no_row_reaches_is_none(model: str, tmp_path: Path) -> None:
    """All influence waits at residual features that have no row, so none is of tokens or errors."""
    from circuits import SAE
    from tests.models import sae

    made: SAE = sae("resid_post", "relu", n_features=24, d_model=16)
    save_dictionary(made, tmp_path / "resid_post.1.safetensors", layer=1, model="x")
    places = ["--model", model, "--dictionaries", str(tmp_path), "--sites", "resid_post"]
    flags = ["--mode", "replace", "--max-feature-rows", "0", "--json"]
    result = run("attribute", PROMPT, *places, *flags)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["replacement_score"] is None


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


def test_feature_s_extended_deembedding_is_the_library_s(
    places: list[str], model: str, dictionaries: str
) -> None:
    from attribution.invariant.extended import deembed_feature_extended
    from circuits import SplicedModel, load_dictionaries, load_model

    printed = json.loads(run("feature", "mlp.1.3", *places, "--top", "4", "--json").stdout)
    spliced = SplicedModel(load_model(model), load_dictionaries(dictionaries))
    expected = deembed_feature_extended(spliced, "mlp.1", 3, top=4)
    assert [name for name, _ in printed["deembedding_extended"]] == [n for n, _ in expected]
    scores = [score for _, score in printed["deembedding_extended"]]
    assert scores == pytest.approx([score for _, score in expected], rel=1e-4)
    assert scores != pytest.approx([score for _, score in printed["deembedding"]], rel=1e-2)
    below = json.loads(run("feature", "mlp.0.3", *places, "--json").stdout)
    assert "deembedding_extended" not in below


@pytest.mark.parametrize(
    ("feature", "key", "ends"),
    [("mlp.1.3", "upstream", ("mlp.1", "mlp.0")), ("mlp.0.5", "downstream", ("mlp.1", "mlp.0"))],
)
def test_virtual_weights_are_judged_against_random_directions(
    places: list[str], model: str, dictionaries: str, feature: str, key: str, ends: tuple[str, str]
) -> None:
    import torch

    from attribution.invariant.deembedding import effective_encoder
    from circuits import SplicedModel, load_dictionaries, load_model

    printed = json.loads(run("feature", feature, *places, "--top", "3", "--json").stdout)
    spliced = SplicedModel(load_model(model), load_dictionaries(dictionaries))
    reader, writer = (spliced.placements[spliced.write_site(end)] for end in ends)
    encoder, decoder = effective_encoder(spliced.model, reader), writer.dictionary.W_dec
    own = int(feature.rsplit(".", 1)[1])
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(20_000, 16, generator=generator), dim=1)
    assert printed[f"{key}_looked_at"] == N_FEATURES
    assert len(printed[f"{key}_null"]) == len(printed[key]) == 3
    for (name, weight), null in zip(printed[key], printed[f"{key}_null"], strict=True):
        other = int(name.rsplit(".", 1)[1])
        t, s = (own, other) if key == "upstream" else (other, own)
        size = float(decoder[s].norm())
        assert null["z"] == pytest.approx(4 * weight / (float(encoder[t].norm()) * size), rel=1e-4)
        as_large = ((unit @ encoder[t]).abs() * size >= abs(weight)).double().mean()
        assert null["p"] == pytest.approx(float(as_large), abs=0.015)


def test_feature_s_tables_say_out_of_how_many(places: list[str]) -> None:
    shown = run("feature", "mlp.1.3", *places, "--top", "2").stdout
    assert f"features that write into it (virtual weight), strongest of {N_FEATURES}" in shown
    assert "features that read it" not in shown
    assert "extended de-embedding" in shown
    assert "z and p compare a weight" in shown


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
        ((PROMPT, "--target-feature", "mlp.1"), "want a feature as SITE.LAYER.INDEX"),
        ((PROMPT, "--target-feature", "mlp.1.99"), "feature must be in [0, 24), got 99"),
        ((PROMPT, "--target-feature", "mlp.1.3", "--target-pos", "15"), "pos must be in [-15, 15)"),
        ((PROMPT, "--target-pos", "-16"), "pos must be in [-15, 15), got -16"),
        (
            (PROMPT, "--target-feature", "mlp.1.3", "--target-correct", " Mary"),
            "give one or the other",
        ),
        ((PROMPT, "--max-feature-rows", "-1"), "--max-feature-rows: Input should be greater"),
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
