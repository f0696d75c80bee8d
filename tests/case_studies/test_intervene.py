"""`circuits intervene`: the library's numbers, its files, and clear refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from attribution import LogitDifference, attribute
from case_studies.commands.errors import reporting_errors
from case_studies.commands.intervene import command
from case_studies.intervening_report import effect_rows
from circuits import Intervention, SplicedModel, load_dictionaries, load_model
from graphs import build_graph, prune
from tests.case_studies.task_models import write_dictionaries, write_model

PROMPT = "When Mary and Peter went to the store, Peter gave a drink to"
OTHER = "When Peter and Mary went to the store, Mary gave a drink to"
TARGETS = ["--target-correct", " Mary", "--target-wrong", " Peter"]
FEW = ["--n-tokens", "3"]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command("intervene")(reporting_errors(command))
    return single


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
def tokens(spliced: SplicedModel) -> torch.Tensor:
    return spliced.model.tokenize(PROMPT)


@pytest.fixture(scope="module")
def graph(folder: Path, spliced: SplicedModel) -> Path:
    trace = attribute(spliced, PROMPT, LogitDifference(" Mary", " Peter"))
    circuit = prune(build_graph(trace), node_threshold=0.5, edge_threshold=0.9)
    circuit.save(folder / "graph.json")
    return folder / "graph.json"


@pytest.fixture
def run(app: typer.Typer, folder: Path):
    def invoke(*arguments: str, prompt: str = PROMPT) -> Result:
        places = ["--model", str(folder / "model"), "--dictionaries", str(folder / "dictionaries")]
        return CliRunner().invoke(app, [prompt, *arguments, *places], env={"COLUMNS": "200"})

    return invoke


def printed(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def used(spliced: SplicedModel, tokens: torch.Tensor) -> tuple[int, int]:
    """A position and feature of layer 0 that the prompt uses."""
    (write, *_) = spliced.placements
    a = spliced.state(tokens[None]).activations[write][0]
    pos, index = (a == a.max()).nonzero()[0].tolist()
    return pos, index


def test_one_feature_ablated(run, spliced: SplicedModel, tokens: torch.Tensor) -> None:
    pos, index = used(spliced, tokens)
    name = f"mlp0.{index}@{pos}"
    record = printed(run("--node", name, "--ablate", "--json", *FEW, *TARGETS))
    change = Intervention("mlp.0", index, positions=[pos])
    mary, peter = (spliced.model.single_token(word) for word in (" Mary", " Peter"))
    sides = {
        "before": spliced.run(tokens[None]).logits[0, -1],
        "after": spliced.run(tokens[None], interventions=[change]).logits[0, -1],
    }
    for side, logits in sides.items():
        wanted = float(logits[mary] - logits[peter])
        assert record[f"metric_{side}"] == pytest.approx(wanted, abs=1e-5)
        p, ids = logits.softmax(-1).topk(5)
        top = record[f"top_{side}"]
        assert [entry["token"] for entry in top] == list(spliced.model.token_strings(ids))
        assert [entry["probability"] for entry in top] == pytest.approx(p.tolist(), rel=1e-4)
    (feature,) = record["features"]
    assert feature["node"] == name
    assert feature["before"] > feature["after"] == 0
    assert feature["token"] == spliced.model.token_strings(tokens)[pos]
    assert record["text_before"]
    assert record["text_after"]
    assert record["metric"] == "logit difference"
    assert record["change"] == f"{name} ablated to zero"


def test_steering_shows_tables_and_text(run) -> None:
    result = run("--node", "mlp.1.3", "--steer", "4", "--how", "set", *FEW)
    assert result.exit_code == 0, result.output
    for text in (
        "mlp.1.3: set 4",
        "mlp1.3@2",
        "text before:",
        "text after:",
        "KL(before || after)",
    ):
        assert text in result.stdout
    assert "log-probability of the token likeliest before" in result.stdout


def test_steering_reaches_the_text_at_all_positions(
    run, spliced: SplicedModel, tokens: torch.Tensor
) -> None:
    record = printed(run("--node", "mlp.1.3", "--steer", "500", "--json", *FEW))
    text = tokens
    for _ in range(3):
        steered = [Intervention("mlp.1", 3, "add", 500.0)]
        logits = spliced.run(text[None], interventions=steered).logits[0, -1]
        text = torch.cat([text, logits.argmax()[None]])
    assert record["text_after"] == "".join(spliced.model.token_strings(text[len(tokens) :]))
    assert record["text_after"] != record["text_before"]


def test_swaps_and_other_prompts(run, spliced: SplicedModel, tokens: torch.Tensor) -> None:
    """All tokens on the other prompt: its own next token. Of several prompts, the mean."""
    swapped = printed(
        run("--node", "token", "--ablate", "--other", OTHER, "--json", "--n-tokens", "0")
    )
    logits = spliced.run(spliced.model.tokenize(OTHER)[None]).logits[0, -1]
    best = spliced.model.token_strings(logits.argmax()[None])[0]
    assert swapped["top_after"][0]["token"] == best
    assert swapped["text_before"] is swapped["text_after"] is None
    assert swapped["change"] == f"token ablated to its value on {OTHER!r}"
    mean = run("--node", "token@3", "--ablate", "--other", OTHER, "--other", PROMPT, *FEW)
    assert "token@3 ablated to its mean over other prompts" in mean.stdout
    pair = printed(run("--node", "mlp0.1@3", "--swap", "mlp0.2@3", "--json", *FEW))
    one, two = pair["features"]
    assert one["node"] == "mlp0.1@3"
    assert (one["before"], one["after"]) == pytest.approx((two["after"], two["before"]))


def test_frozen_attention_is_said(run) -> None:
    node = ["--node", "error.mlp0@3", "--ablate", "--json", *FEW]
    live, frozen = (printed(run(*node, "--attention", how)) for how in ("live", "frozen"))
    assert live["metric_after"] != frozen["metric_after"]
    shown = run("--node", "error.mlp0@3", "--ablate", "--attention", "frozen", *FEW)
    assert "The next token is of the frozen model" in shown.stdout


def test_an_idle_feature_is_named(run, spliced: SplicedModel, tokens: torch.Tensor) -> None:
    a = spliced.state(tokens[None]).activations[next(iter(spliced.placements))][0]
    pos, index = (a == 0).nonzero()[-1].tolist()
    shown = run("--node", f"mlp0.{index}@{pos}", "--ablate", *FEW)
    assert f"Nothing changed at mlp0.{index}@{pos}" in shown.stdout


def test_files_of_one_change(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("--node", "mlp0.1@3,token@2", "--ablate", "--out", str(out), *FEW)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "metrics.json", "interventions.json", "report.md")
    }
    config = json.loads((out / "config.json").read_text())
    assert config["command"] == "intervene"
    assert config["settings"]["node"] == ["mlp0.1@3,token@2"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"version", "kl", "metric_before", "metric_after"} <= set(metrics)
    report = (out / "report.md").read_text()
    assert report.startswith("# mlp0.1@3,token@2 ablated to zero\n")
    assert "| mlp0.1@3 |" in report


@pytest.mark.parametrize("other", [(), ("--other", OTHER)], ids=["zero", "corrupted"])
def test_all_nodes_of_a_graph(
    run, graph: Path, tmp_path: Path, spliced: SplicedModel, tokens: torch.Tensor, other
) -> None:
    out = tmp_path / "out"
    every = ["--graph", str(graph), "--all", *TARGETS, *other]
    record = printed(run(*every, "--node", "token@2,token@3", "--out", str(out), "--json"))
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "metrics.json", "interventions.json", "effects.html", "report.md")
    }
    effects = json.loads((out / "interventions.json").read_text())["effects"]
    kept = json.loads(graph.read_text())["nodes"]
    can = [n for n in kept if n["kind"] in ("feature", "error", "sublayer", "token")]
    assert len(effects) == record["n_groups"] == len(can) + 1
    assert effects[-1]["nodes"] == ["token@2", "token@3"]
    assert effects[-1]["kind"] == "group"
    assert set(record["agreement"]) == {
        *("direct_frozen", "total_frozen", "direct_live", "total_live")
    }
    largest = max(abs(effect["frozen"]) for effect in effects)
    assert record["largest_gap_without_switch"] < 1e-5 * largest, "float32"
    assert record["ablation"].startswith("their values" if other else "zero")
    assert json.loads((out / "metrics.json").read_text()) == {"version": 1, **record}
    report = (out / "report.md").read_text()
    assert report.startswith(f"# All-path effects of {record['n_groups']} nodes")
    if other:
        return
    feature = next(e for e in effects if e["kind"] == "feature")
    name, pos = feature["nodes"][0].split("@")
    change = Intervention(f"mlp.{name[3]}", int(name.split(".")[1]), positions=[int(pos)])
    mary, peter = (spliced.model.single_token(word) for word in (" Mary", " Peter"))
    before = spliced.run(tokens[None]).logits[0, -1]
    after = spliced.run(tokens[None], interventions=[change]).logits[0, -1]
    wanted = float((after - before)[mary] - (after - before)[peter])
    assert feature["live"] == pytest.approx(wanted, abs=1e-5)


def test_all_nodes_shown(run, graph: Path) -> None:
    result = run("--graph", str(graph), "--all", *TARGETS, "--top", "2")
    assert result.exit_code == 0, result.output
    assert "Strongest in the real model" in result.stdout
    strongest = result.stdout.partition("Strongest in the real model")[2]
    assert strongest.count("│\n") == 2


def test_a_feature_of_the_graph_at_all_its_positions(run, graph: Path) -> None:
    kept = [n for n in json.loads(graph.read_text())["nodes"] if n["kind"] == "feature"]
    first = kept[0]
    mine = [n for n in kept if (n["layer"], n["feature"]) == (first["layer"], first["feature"])]
    name = f"mlp.{first['layer']}.{first['feature']}"
    record = printed(run("--graph", str(graph), "--node", name, "--ablate", "--json", *FEW))
    assert sorted(f["node"] for f in record["features"]) == sorted(
        f"mlp{n['layer']}.{n['feature']}@{n['pos']}" for n in mine
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ablate"], "at least one --node"),
        (["--node", "mlp0.1@3"], "one of --ablate, --steer and --swap"),
        (["--node", "mlp0.1@3", "--ablate", "--steer", "1"], "one of --ablate, --steer and --swap"),
        (["--all"], "--all ablates the nodes of a --graph"),
        (["--node", "L2.F17", "--ablate"], "no node that can be changed is called 'L2.F17'"),
        (["--node", "mlp0.99@3", "--ablate"], "has features 0 to 23, got 99"),
        (["--node", "mlp0.1@99", "--ablate"], "mlp0.1@99 is at position 99"),
        (["--node", "mlp7.1@3", "--ablate"], "no dictionary at 'mlp.7'"),
        (["--node", "mlp0.1@3,mlp.0.1", "--ablate"], "mlp0.1 is also in mlp0.1@3"),
        (["--node", "token@3", "--steer", "1"], "token@3 is a vector"),
        (["--node", "token@3", "--ablate", "--mode", "replace"], "--mode: interventions are made"),
        (["--node", "token@3", "--ablate", "--other", "a"], "must line up"),
        (["--node", "token@3", "--ablate", "--target-correct", " Mary"], "logit difference"),
        (["--node", "token@3", "--ablate", "--target-feature", "mlp.0.1"], "is for --all"),
        (["--node", "token@3", "--ablate", "--n-tokens", "30"], "tokens after a prompt"),
    ],
)
def test_clear_refusals(run, arguments: list[str], message: str) -> None:
    assert message in refused(run(*arguments))


def test_a_graph_of_another_prompt_is_refused(run, graph: Path) -> None:
    every = ["--graph", str(graph), "--all", *TARGETS]
    assert "the graph is of" in refused(run(*every, prompt=OTHER))
    assert "tokens); give the prompt" in refused(run(*every, prompt=PROMPT + " the"))
    missing = run("--graph", str(graph), "--node", "mlp0.23@0", "--ablate")
    assert "nodes is called 'mlp0.23@0'; the nearest are" in refused(missing)
    two = [*every, "--other", OTHER, "--other", PROMPT]
    assert "--all takes values from one --other prompt" in refused(run(*two))
    assert "leave out --steer" in refused(run(*every, "--steer", "1"))


def test_the_strongest_in_the_real_model_come_first() -> None:
    effects = [
        {"nodes": [name], "direct": 9.0, "total": 8.0, "frozen": 7.0, "live": live, "switched": 1.5}
        for name, live in (("a", 0.5), ("b", -3.0), ("c", 2.0))
    ]
    rows = effect_rows(effects, 2)
    assert [row[0] for row in rows] == ["b", "c"]
    assert rows[0][1:] == ["+9", "+8", "+7", "-3", "1.5"]
