"""The whole study on the shipped model: files, numbers, controls."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from case_studies.cli import app
from case_studies.study import StudyConfig, run_study
from case_studies.study_files import metrics_record, write_study
from case_studies.tasks import GreaterThanTask, IoiTask
from circuits import SplicedModel, load_dictionaries, load_model
from graphs import CircuitGraph

QUICK = {"n_behaviour": 40, "n_discovery": 4, "n_proof": 16, "n_random": 4}


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return SplicedModel(load_model("tiny"), load_dictionaries("tiny"))


@pytest.fixture(scope="module")
def greater_than(spliced):
    config = StudyConfig(task="greater-than", **QUICK)
    return config, run_study(config, spliced, GreaterThanTask())


def test_greater_than_circuit_beats_its_controls(greater_than):
    _, result = greater_than
    (group,) = result.groups
    assert group.circuit.metric_model > 0.8
    assert group.circuit.faithfulness > 0.5
    assert group.circuit.faithfulness > max(group.random_faithfulness)
    assert group.found_nodes.faithfulness > group.tokens_only.faithfulness
    assert group.conservation_error < 1e-4
    assert group.nodes_by_kind["feature"] > 0
    assert sum(group.nodes_by_kind.values()) == group.n_nodes == group.graph.n_nodes


def test_the_same_seed_finds_the_same_circuit(greater_than, spliced):
    config, result = greater_than
    again = run_study(config, spliced, GreaterThanTask())
    assert metrics_record(config, again) == metrics_record(config, result)
    first, second = result.groups[0].graph, again.groups[0].graph
    assert [n.id for n in first.nodes] == [n.id for n in second.nodes]
    assert torch.equal(first.edge_attribution, second.edge_attribution)


def test_files(greater_than, spliced, tmp_path):
    config, result = greater_than
    page = write_study(config, spliced, GreaterThanTask(), result, tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"config.json", "metrics.json", "graph.json", "circuit.html", "report.md"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    wanted = {
        *("model", "task", "behaviour", "spliced", "circuit", "random_circuit", "faithfulness"),
        *("n_nodes", "n_edges", "conservation_error"),
    }
    assert wanted <= metrics.keys()
    graph = CircuitGraph.load(tmp_path / "graph.json")
    assert (graph.n_nodes, graph.n_edges) == (metrics["n_nodes"], metrics["n_edges"])
    saved = json.loads((tmp_path / "config.json").read_text())
    assert StudyConfig.model_validate(saved["settings"]) == config
    text = page.read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=.?https?:", text)
    report = (tmp_path / "report.md").read_text()
    assert f"{result.groups[0].circuit.faithfulness:.3f}" in report
    assert "circuits study greater-than" in report


def test_ioi_has_a_circuit_for_each_order(spliced, tmp_path):
    config = StudyConfig(task="ioi", **QUICK)
    result = run_study(config, spliced, IoiTask())
    assert [group.group for group in result.groups] == ["ABBA", "BABA"]
    write_study(config, spliced, IoiTask(), result, tmp_path)
    assert {"graph-BABA.json", "circuit-BABA.html"} <= {p.name for p in tmp_path.iterdir()}
    for group in result.groups:
        assert group.circuit.faithfulness > max(group.random_faithfulness)


def test_command_prints_one_json_object():
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in QUICK.items()]
    run = CliRunner().invoke(app, ["study", "greater-than", "--json", *flags])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["task"] == "greater-than"
