"""The whole study on the shipped model: files, numbers, controls, and the words of its proof."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from case_studies.cli import app
from case_studies.study import run_study
from case_studies.study_config import StudyConfig
from case_studies.study_files import metrics_record, write_study
from case_studies.study_proof import ALL_FOUND, prove_circuit
from case_studies.study_proof_text import percent, proof_in_words, proof_numbers, worst_knockout
from case_studies.study_report import report, study_command
from case_studies.tasks import GreaterThanTask, IoiTask
from circuits import SplicedModel, load_dictionaries, load_model
from circuits.patching import mean_values, zero_values
from graphs import CircuitGraph, CircuitRunner, ProofChoices, faithfulness
from graphs.proof import Estimate
from graphs.proof.beside import MOST_ACTIVE, RANDOM, TOKENS_ONLY

QUICK = {"n_behaviour": 40, "n_discovery": 4, "n_proof": 16, "n_random": 4}
QUICK |= {"n_knockouts": 2, "n_contexts": 0}


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return SplicedModel(load_model("tiny"), load_dictionaries("tiny"))


@pytest.fixture(scope="module")
def greater_than(spliced):
    config = StudyConfig(task="greater-than", **QUICK)
    seen = []
    result = run_study(config, spliced, GreaterThanTask(), lambda *at: seen.append(at))
    assert [share for what, share in seen if what == "proof"][-1] == 1.0
    assert [share for what, share in seen if what == "controls"][-1] == 1.0
    return config, result


def _prompts(spliced, config):
    task = GreaterThanTask()
    (group,) = task.groups(spliced.model)
    n = config.n_discovery + config.n_proof
    prompts = task.prompts(spliced.model, n, seed=config.seed + 1, aligned_group=group)
    return prompts[: config.n_discovery], prompts[config.n_discovery :]


def _stacked(prompts, field):
    return torch.stack([getattr(prompt, field) for prompt in prompts])


def test_greater_than_circuit_beats_its_controls(greater_than):
    _, result = greater_than
    (group,) = result.groups
    proof, control = group.proof, group.table.control
    assert proof.metric_model.value > 0.8
    assert proof.faithfulness.value > 0.5
    assert proof.faithfulness.value > control(RANDOM).faithfulness_range[1]
    assert proof.faithfulness.value > control(MOST_ACTIVE).faithfulness.value
    found, tokens = control(ALL_FOUND), control(TOKENS_ONLY)
    assert found.faithfulness.value > proof.faithfulness.value > tokens.faithfulness.value
    assert found.size > proof.size == control(RANDOM).size > tokens.size
    assert (control(RANDOM).n_circuits, proof.n_prompts) == (4, 16)
    assert group.conservation_error < 1e-4
    assert group.nodes_by_kind["feature"] > 0
    assert sum(group.nodes_by_kind.values()) == group.n_nodes == group.graph.n_nodes
    assert {k.search: k.n_sets for k in proof.knockouts}["random"] == 2
    assert proof.minimality.n_contexts == 0


def test_the_proof_is_on_the_prompts_that_did_not_choose(greater_than, spliced):
    """Against `graphs.faithfulness` of the saved nodes, on prompts drawn again."""
    config, result = greater_than
    (group,) = result.groups
    _, proving = _prompts(spliced, config)
    runner = CircuitRunner.on_prompts(
        spliced, _stacked(proving, "clean_tokens"), _stacked(proving, "corrupted_tokens")
    )
    known = faithfulness(
        runner, group.graph.nodes, lambda logits: GreaterThanTask().metric(logits, proving)
    )
    assert group.proof.faithfulness.value == pytest.approx(known.faithfulness, abs=1e-5)
    assert group.proof.faithfulness.low == pytest.approx(known.interval[0], abs=1e-5)
    assert group.proof.faithfulness.high == pytest.approx(known.interval[1], abs=1e-5)
    assert group.proof.metric_empty.value == pytest.approx(known.metric_empty, abs=1e-5)
    assert group.proof.kl_circuit.value == pytest.approx(known.kl, abs=1e-5)


@pytest.mark.parametrize("value", ["mean", "zero"])
def test_other_ablations_carry_what_they_say(greater_than, spliced, value):
    """The empty circuit against a runner whose values are set by hand; tokens stay clean."""
    config, result = greater_than
    nodes = result.groups[0].graph.nodes
    choosing, proving = _prompts(spliced, config)
    table = prove_circuit(
        ProofChoices(value=value, errors="dropped", component=("features", "MLPs")),
        spliced,
        GreaterThanTask(),
        choosing=choosing,
        proving=proving,
        nodes=nodes,
        kept=torch.ones(len(nodes), dtype=torch.bool),
        n_random=1,
        n_knockouts=1,
        n_contexts=0,
        seed=0,
        progress=lambda what, share: None,
    )
    clean = spliced.state(_stacked(proving, "clean_tokens"))
    values = zero_values(spliced, clean)
    if value == "mean":
        reference = spliced.state(_stacked(choosing, "corrupted_tokens"))
        values = mean_values(spliced, reference, clean)
    runner = CircuitRunner(spliced, clean, values, clean.logits[:, -1])
    empty = runner.logits([], torch.zeros(1, 0, dtype=torch.bool))[0]
    expected = float(GreaterThanTask().metric(empty, proving).mean())
    assert table.circuit.metric_empty.value == pytest.approx(expected, abs=1e-5)
    assert abs(expected - table.circuit.metric_model.value) > 0.01
    assert table.circuit.choices.errors == "dropped"
    # Without errors in any run, the circuit of these nodes alone is that of its features.
    features = torch.tensor([node.kind == "feature" for node in nodes])
    logits = runner.logits(nodes, features[None])[0]
    of_features = float(GreaterThanTask().metric(logits, proving).mean())
    assert table.circuit.metric_circuit.value == pytest.approx(of_features, abs=1e-5)


def test_settings_become_choices():
    assert StudyConfig(task="ioi").choices == ProofChoices(value="corrupted", errors="as chosen")
    config = StudyConfig(task="ioi", value="mean", errors="kept")
    assert config.choices == ProofChoices(
        value="mean", errors="kept", component=("features", "MLPs")
    )
    assert StudyConfig(task="ioi", direction="denoising").choices.direction == "denoising"
    with pytest.raises(ValueError, match="denoising starts from a corrupted prompt, got value 'ze"):
        StudyConfig(task="ioi", value="zero", direction="denoising")


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
    (group,) = result.groups
    proof = group.proof
    assert metrics["circuit"] == proof.metric_circuit.value
    assert metrics["faithfulness"] == proof.faithfulness.value
    assert metrics["random_circuit"] == group.table.control(RANDOM).metric.value
    assert metrics["faithfulness_interval"] == [proof.faithfulness.low, proof.faithfulness.high]
    assert (metrics["necessity"], metrics["completeness"], metrics["choices"]) == (
        proof.necessity.value,
        proof.completeness.value,
        str(proof.choices),
    )
    assert metrics["groups"][0]["table"] == group.table.model_dump(mode="json")
    graph = CircuitGraph.load(tmp_path / "graph.json")
    assert (graph.n_nodes, graph.n_edges) == (metrics["n_nodes"], metrics["n_edges"])
    choosing, _ = _prompts(spliced, config)
    assert json.loads(graph.metadata.notes["roles"]) == choosing[0].roles
    assert all(prompt.roles == choosing[0].roles for prompt in choosing)
    assert graph.metadata.notes["group"] == group.group
    saved = json.loads((tmp_path / "config.json").read_text())
    assert StudyConfig.model_validate(saved["settings"]) == config
    text = page.read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=.?https?:", text)
    panel = dict(json.loads(re.search(r'"proof":(\[\[.*?\]\])', text)[1]))
    assert panel["faithfulness"].startswith(f"{proof.faithfulness.value:.1%} (")
    controls = {"most active": MOST_ACTIVE, "tokens alone": TOKENS_ONLY}
    for name, control in controls.items():
        assert panel[name] == f"{group.table.control(control).faithfulness.value:.1%}"
    assert f'"command":{json.dumps(study_command(config))}' in text
    text = (tmp_path / "report.md").read_text()
    assert group.table.markdown() in text
    assert proof_numbers(proof) in text
    assert proof_in_words(group.table) in text
    assert all(line in text for line in proof.lines())
    assert "circuits study greater-than" in text


def test_the_command_in_the_report_repeats_the_settings(greater_than):
    _, result = greater_than
    config = StudyConfig(
        task="greater-than", check=False, errors="kept", model="my models/a", seed=3
    )
    command = report(config, result, GreaterThanTask()).partition("## Command")[2].split("\n")[2]
    assert command == (
        "    circuits study greater-than --model 'my models/a' --no-check --errors kept --seed 3"
    )


def _number(value, low=None, high=None) -> Estimate:
    return Estimate(value=value, low=value if low is None else low, high=high or value)


def test_words_follow_the_numbers(greater_than):
    table = greater_than[1].groups[0].table
    proof = table.circuit

    def words(**changes):
        return proof_in_words(
            table.model_copy(update={"circuit": proof.model_copy(update=changes)})
        )

    every = {"necessity_all_features": _number(0.6)}
    assert "one that suffices" in words(necessity_features=_number(0.2), **every)
    assert "one that suffices" not in words(necessity_features=_number(0.4), **every)
    tokens = table.control(TOKENS_ONLY)
    assert f"alone ablated it loses {1 - tokens.completeness.value:.1%} already" in words()
    none = tokens.model_copy(update={"size": 0.0})
    controls = tuple(none if c is tokens else c for c in table.controls)
    without = proof_in_words(table.model_copy(update={"controls": controls}))
    assert "by construction" not in without
    assert "the tokens stay clean in this proof, or none is in the circuit" in without

    def gaps(*worst):
        found = proof.knockouts[0]
        return {"knockouts": tuple(found.model_copy(update={"worst": w}) for w in worst)}

    assert "others stand in for them" in words(**gaps(_number(-0.5, -0.6, -0.4), _number(0.1)))
    better = gaps(_number(0.1), _number(0.2, 0.1, 0.3))
    assert "does better without them than the model" in words(**better)
    assert worst_knockout(proof.model_copy(update=better)).worst.value == 0.2
    assert "no sure difference" in words(**gaps(_number(0.1, -0.1, 0.3)))
    assert "in use on none" not in words(n_idle=0)
    assert " 7 of its features are in use on none" in words(n_idle=7)
    assert percent(proof.faithfulness) in words()
    four = proof.knockouts[0].model_copy(update={"worst_nodes": tuple("abcd")})
    assert "without a, b, c and 1 more:" in words(knockouts=(four,))


def test_ioi_has_a_circuit_for_each_order(spliced, tmp_path):
    config = StudyConfig(task="ioi", node_threshold=0.7, **QUICK)
    result = run_study(config, spliced, IoiTask())
    assert [group.group for group in result.groups] == ["ABBA", "BABA"]
    write_study(config, spliced, IoiTask(), result, tmp_path)
    assert {"graph-BABA.json", "circuit-BABA.html"} <= {p.name for p in tmp_path.iterdir()}
    text = (tmp_path / "report.md").read_text()
    for group in result.groups:
        assert group.proof.faithfulness.value > group.table.control(RANDOM).faithfulness_range[1]
        assert f"### {group.group}\n" in text
        assert group.table.markdown() in text


def test_the_terminal_shows_the_proof(greater_than, monkeypatch):
    _, result = greater_than
    monkeypatch.setattr("case_studies.commands.study.run_study", lambda *_: result)
    run = CliRunner().invoke(app, ["study", "greater-than", "--errors", "as chosen"])
    assert run.exit_code == 0, run.output
    proof = result.groups[0].proof
    shown = " ".join(run.stdout.split())
    for number in (proof.faithfulness, proof.necessity, proof.minimality.needed):
        assert f"{number.value:.3f} │ {number.low:.3f} to {number.high:.3f}" in shown
    assert f"proved with: {proof.choices}" in shown


def test_command_prints_one_json_object(greater_than, monkeypatch):
    """The flags reach the study; what it finds is tested above."""
    ran = []

    def run(config, *others):
        ran.append(config)
        return greater_than[1]

    monkeypatch.setattr("case_studies.commands.study.run_study", run)
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in QUICK.items()]
    flags += ["--value=mean", "--errors=kept"]
    shown = CliRunner().invoke(app, ["study", "greater-than", "--json", *flags])
    assert shown.exit_code == 0, shown.output
    assert ran == [StudyConfig(task="greater-than", value="mean", errors="kept", **QUICK)]
    record = json.loads(shown.stdout)
    assert record == json.loads(json.dumps(metrics_record(ran[0], greater_than[1])))


def test_flags_that_cannot_be():
    run = CliRunner().invoke(app, ["study", "ioi", "--value", "mean", "--direction", "denoising"])
    assert run.exit_code == 2
    assert "denoising starts from a corrupted prompt, got value 'mean'" in run.output
