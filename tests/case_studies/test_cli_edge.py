"""`circuits edge`: paths that multiply and add up to the library's edge, and clear refusals."""

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from attribution import FeatureTarget, LogitDifference, Trace, attribute, virtual_weights
from case_studies.cli import app
from circuits import SplicedModel, load_dictionaries, load_model
from circuits.checkpoints import save_dictionary
from circuits.sites import Site
from tests import models
from tests.case_studies.task_models import write_dictionaries, write_model

PROMPT = "When Mary and Peter went to the store, Peter gave a drink to"
TARGETS = ["--target-correct", " Mary", "--target-wrong", " Peter"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    write_model(folder / "model")
    (folder / "dictionaries").mkdir()
    write_dictionaries(folder / "dictionaries")
    return folder


@pytest.fixture(scope="module")
def spliced(folder: Path) -> SplicedModel:
    return SplicedModel(
        load_model(str(folder / "model")), load_dictionaries(str(folder / "dictionaries"))
    )


@pytest.fixture(scope="module")
def trace(spliced: SplicedModel) -> Trace:
    return attribute(spliced, PROMPT, LogitDifference(" Mary", " Peter"))


def run(folder: Path, *arguments: str) -> Result:
    places = ["--model", str(folder / "model"), "--dictionaries", str(folder / "dictionaries")]
    return CliRunner().invoke(app, ["edge", *arguments, *places], env={"COLUMNS": "200"})


def printed(folder: Path, *arguments: str) -> dict[str, Any]:
    result = run(folder, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def cells(output: str) -> list[list[str]]:
    """Rows of the one table on stdout, its heading first."""
    lines = [line for line in output.splitlines() if line.startswith(("┃", "│"))]
    return [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]


def strongest(trace: Trace, row: int, kind: str) -> str:
    """Id of the source of a kind with the largest edge into a row."""
    columns = trace.sources.where(kind=kind)
    return trace.sources[max(columns, key=lambda c: abs(float(trace.edges[row, c])))].id


@pytest.mark.parametrize("kind", ["feature", "token", "position", "error"])
@pytest.mark.parametrize("of_feature", [False, True])
def test_factors_multiply_and_paths_add_up_to_the_library_s_edge(
    folder: Path, trace: Trace, kind: str, of_feature: bool
) -> None:
    row = trace.targets.where(kind="feature", layer=1)[-1] if of_feature else 0
    source = strongest(trace, row, kind)
    flags = [] if of_feature else TARGETS
    record = printed(folder, PROMPT, trace.targets[row].id, source, *flags)
    expected = float(trace.edges[row, trace.sources.row(source)])
    assert record["edge"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert record["target_value"] == pytest.approx(float(trace.target_values[row]), rel=1e-4)
    for path in record["paths"]:
        factors = path["activation"] * path["attention"] / prod(path["norms"].values())
        assert path["value"] == pytest.approx(factors * path["virtual_weight"], rel=1e-6)
        assert path["share"] == pytest.approx(path["value"] / record["edge"], rel=1e-6)
        assert path["weights_only"] is (kind != "error")
    total = sum(path["value"] for path in record["paths"]) + record["remainder"]
    assert total == pytest.approx(record["edge"], rel=1e-5)
    assert {"target_unit": record["target_unit"], "mode": record["mode"]} == {
        "target_unit": "pre-activation" if of_feature else "logits",
        "mode": "exact",
    }


def test_each_factor_is_the_one_its_column_names(
    folder: Path, spliced: SplicedModel, trace: Trace
) -> None:
    row = trace.targets.where(kind="feature", layer=1)[-1]
    target = trace.targets[row]
    column = trace.sources.where(kind="feature", layer=0, pos=target.pos)[0]
    source = trace.sources[column]
    record = printed(folder, PROMPT, target.id, source.id)
    paths = {None if p["head"] is None else tuple(p["head"]): p for p in record["paths"]}
    weights = virtual_weights(spliced, "mlp.1", "mlp.0")[target.feature, source.feature]
    assert paths[None]["virtual_weight"] == pytest.approx(float(weights), rel=1e-4)
    assert paths[None]["activation"] == pytest.approx(source.activation, rel=1e-5)
    weights = virtual_weights(spliced, "mlp.1", "mlp.0", head=(1, 1))
    through = paths[(1, 1)]
    expected = float(weights[target.feature, source.feature])
    assert through["virtual_weight"] == pytest.approx(expected, rel=1e-4)
    state = spliced.state(trace.tokens[None])
    pattern = state.values[Site("pattern", 1)][0, 1, target.pos, source.pos]
    assert through["attention"] == pytest.approx(float(pattern), rel=1e-5)
    scales = {
        f"ln2.1@{target.pos}": float(state.values[Site("ln2_scale", 1)][0, target.pos, 0]),
        f"ln1.1@{source.pos}": float(state.values[Site("ln1_scale", 1)][0, source.pos, 0]),
    }
    assert through["norms"] == pytest.approx(scales, rel=1e-5)


def test_the_printed_values_add_up_to_the_last_row(folder: Path, trace: Trace) -> None:
    source = "token@2"
    result = run(folder, PROMPT, "output", source, *TARGETS, "--top", "1")
    assert result.exit_code == 0, result.output
    columns, *rows = cells(result.stdout)
    assert columns[-2:] == ["value", "share"]
    assert re.fullmatch(r"head [01]\.[01]", rows[0][0])
    assert [row[0] for row in rows[1:]] == ["3 more", "several heads", "the edge"]
    values = [float(row[-2]) for row in rows]
    decimals = len(rows[-1][-2].split(".")[1])
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=len(values) * 10.0**-decimals)
    expected = float(trace.edges[0, trace.sources.row(source)])
    assert values[-1] == pytest.approx(expected, rel=1e-3)
    assert rows[-1][-1] == "100.0%"
    assert float(rows[2][-2]) != 0.0
    assert f"{source} ' Mary' -> output" in result.stdout.splitlines()[0]
    assert "value = activation x attention / norms x weight" in result.stdout
    assert "*" not in result.stdout


def test_output_is_the_first_of_what_is_explained(folder: Path, trace: Trace) -> None:
    source = strongest(trace, 0, "token")
    short = printed(folder, PROMPT, "output", source, *TARGETS)
    assert short == printed(folder, PROMPT, "output.logit difference", source, *TARGETS)
    assert short["target"] == "output.logit difference"
    likeliest = printed(folder, PROMPT, "output", source)
    assert re.fullmatch(r"output\.'.+' \(\d+\)", likeliest["target"])
    assert likeliest["target_unit"] == "logit minus mean"
    second = printed(folder, PROMPT, "output.logit difference", source, *TARGETS)
    assert second["edge"] == short["edge"]


def test_another_output_than_the_first_by_name(folder: Path, spliced: SplicedModel) -> None:
    trace = attribute(spliced, PROMPT, feature_rows=False)
    name, source = trace.targets[3].id, "token@2"
    record = printed(folder, PROMPT, name, source)
    assert record["target"] == name
    expected = float(trace.edges[3, trace.sources.row(source)])
    assert record["edge"] == pytest.approx(expected, rel=1e-4)


def test_what_a_prompt_has_made_is_marked(folder: Path, trace: Trace) -> None:
    result = run(folder, PROMPT, "output", strongest(trace, 0, "error"), *TARGETS)
    assert cells(result.stdout)[1][-3].endswith(" *")
    assert "* Not of model weights alone" in result.stdout


def test_a_bias_is_said_to_be_whole(folder: Path, trace: Trace) -> None:
    result = run(folder, PROMPT, "output", "bias.mlp0", *TARGETS)
    columns, *rows = cells(result.stdout)
    assert columns == ["path", "value", "share"]
    assert [row[0] for row in rows] == ["not split", "the edge"]
    expected = float(trace.edges[0, trace.sources.row("bias.mlp0")])
    assert float(rows[0][1]) == pytest.approx(expected, rel=1e-3)
    assert "not split over paths" in result.stdout


def test_a_later_token_leads_nowhere(folder: Path, trace: Trace) -> None:
    target = trace.targets[trace.targets.where(kind="feature", layer=1, pos=3)[0]].id
    result = run(folder, PROMPT, target, "token@5")
    assert f"Nothing leads from token@5 to {target}" in result.stdout
    record = printed(folder, PROMPT, target, "token@5")
    assert (record["edge"], record["paths"]) == (0.0, [])


def test_an_inactive_feature_has_edges_into_it(folder: Path, spliced: SplicedModel) -> None:
    state = spliced.state(spliced.model.tokenize(PROMPT)[None])
    inactive = int((state.activations[Site("mlp_raw_out", 1)][0, 4] == 0).nonzero()[0])
    expected = attribute(spliced, PROMPT, FeatureTarget("mlp.1", inactive, 4), feature_rows=False)
    record = printed(folder, PROMPT, f"mlp1.{inactive}@4", "token@4")
    column = expected.sources.row("token@4")
    assert record["edge"] == pytest.approx(float(expected.edges[0, column]), rel=1e-4)
    assert record["target_value"] <= 0


def test_mode_replace_is_the_library_s(folder: Path, spliced: SplicedModel, trace: Trace) -> None:
    replaced = attribute(spliced, PROMPT, LogitDifference(" Mary", " Peter"), mode="replace")
    record = printed(folder, PROMPT, "output", "token@2", *TARGETS, "--mode", "replace")
    expected = float(replaced.edges[0, replaced.sources.row("token@2")])
    assert record["mode"] == "replace"
    assert record["edge"] == pytest.approx(expected, rel=1e-4)
    assert record["edge"] != pytest.approx(
        float(trace.edges[0, trace.sources.row("token@2")]), rel=1e-2
    )


def test_out_leaves_three_files(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "edge"
    result = run(folder, PROMPT, "output", "token@2", *TARGETS, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.json", "report.md"}
    record = json.loads(result.stdout)
    assert json.loads((out / "metrics.json").read_text()) == {"version": 1, **record}
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["target"], settings["source"]) == ("output", "token@2")
    report = (out / "report.md").read_text()
    assert "| the edge |" in report
    assert report.startswith("# token@2 ' Mary' -> output.logit difference: ")


@pytest.mark.parametrize(
    ("target", "source", "messages"),
    [
        ("output", "token@99", ["no node is called 'token@99'", "the nearest are token@9"]),
        ("output", "mlp7.3@2", ["no node is called 'mlp7.3@2'", "only where it is active", "@2"]),
        ("output.' Mary'", "token@2", ["no node is called", "nearest are output.logit difference"]),
        ("token@2", "token@1", ["no node is called 'token@2'"]),
        ("mlp1.3@99", "token@1", ["pos must be in [-15, 15), got 99"]),
        ("mlp1.999@3", "token@1", ["feature must be in [0, 24), got 999"]),
        ("mlp5.3@3", "token@1", ["no dictionary at 'mlp.5'; there are mlp.0, mlp.1"]),
    ],
)
def test_unknown_ends_are_refused(
    folder: Path, target: str, source: str, messages: list[str]
) -> None:
    line = refused(run(folder, PROMPT, target, source, *TARGETS))
    assert all(message in line for message in messages), line


def test_every_norm_on_the_way_has_a_column(tmp_path: Path) -> None:
    """Gemma 2 has a norm on either side of both sublayers."""
    models.hf_model("gemma2").save_pretrained(tmp_path / "model")
    models.word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "dictionaries").mkdir()
    for layer in range(models.N_LAYERS):
        path = tmp_path / "dictionaries" / f"mlp.{layer}.safetensors"
        save_dictionary(models.transcoder("relu", seed=layer), path, layer=layer, model="x")
    prompt = " the war gave Mary"
    library = SplicedModel(
        load_model(str(tmp_path / "model")), load_dictionaries(str(tmp_path / "dictionaries"))
    )
    trace = attribute(library, prompt, feature_rows=False)
    columns = trace.sources.where(kind="feature", layer=0, pos=2)
    source = trace.sources[columns[0]]
    result = run(tmp_path, prompt, "output", source.id)
    heading = cells(result.stdout)[0]
    norms = ["/ ln2_post", "/ ln1", "/ ln1_post", "/ final"]
    assert heading == ["path", "activation", "attention", *norms, "weight", "value", "share"]
    record = printed(tmp_path, prompt, "output", source.id)
    values = torch.tensor([path["value"] for path in record["paths"]])
    products = torch.tensor(
        [
            p["activation"] * p["attention"] / prod(p["norms"].values()) * p["virtual_weight"]
            for p in record["paths"]
        ]
    )
    torch.testing.assert_close(values, products, rtol=1e-5, atol=1e-8)
    row = next(r for r in cells(result.stdout) if r[0].startswith("head"))
    factors = [float(cell) for cell in row[1:8]]
    value = factors[0] * factors[1] / prod(factors[2:6]) * factors[6]
    assert float(row[8]) == pytest.approx(value, rel=0.05)


def test_a_skip_is_named_in_the_remainder(folder: Path, tmp_path: Path) -> None:
    skipping = models.transcoder("relu", skip=True, n_features=24, d_model=16)
    save_dictionary(skipping, tmp_path / "mlp.0.safetensors", layer=0, model="x")
    places = ["--model", str(folder / "model"), "--dictionaries", str(tmp_path)]
    arguments = ["edge", PROMPT, "output", "token@2", *places]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert "several heads, skips" in result.stdout
