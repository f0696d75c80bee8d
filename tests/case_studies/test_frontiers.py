"""Frontiers of a task on the shipped model: ends, families, files, and the command."""

import json
import re

import pytest
import torch
import typer
from typer.testing import CliRunner

from attribution.nodes import Node
from case_studies.commands.errors import reporting_errors
from case_studies.commands.frontier import command
from case_studies.frontiers.config import FrontierConfig
from case_studies.frontiers.feature_sweeps import mean_activity
from case_studies.frontiers.files import write_frontiers
from case_studies.frontiers.plain_sweeps import plain_acdc
from case_studies.frontiers.report import COLUMNS, finding, report, rows
from case_studies.frontiers.run import FrontierResult, GroupFrontiers, run_frontiers
from case_studies.frontiers.sweeps import (
    Sweep,
    metric_of,
    numbered,
    random_sweep,
    ranked_sweep,
    stacked,
)
from case_studies.tasks import GreaterThanTask
from circuits import SplicedModel, load_dictionaries, load_model
from circuits.sites import Site
from graphs.frontier import Frontier
from graphs.frontier_shape import FrontierPoint
from graphs.proof import Estimate
from graphs.scorer import CircuitRunner
from graphs.units import UnitTrial
from tests.graphs.spliced_models import mixed_spliced

QUICK = {
    "n_discovery": 2,
    "n_proof": 8,
    "n_random": 2,
    "size_factor": 6.0,
    "steps": 2,
    "node_threshold": 0.6,
    "thresholds": (0.003, 0.03),
}
FEATURES = ("integrated gradients", "attribution", "activity", "influence", "ACDC", "random")
FAMILIES = [
    *(f"features, {method}" for method in FEATURES),
    *(f"neurons, {method}" for method in ("integrated gradients", "attribution", "random")),
    *(f"heads, {method}" for method in ("integrated gradients", "attribution", "ACDC", "random")),
]


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return SplicedModel(load_model("tiny"), load_dictionaries("tiny"))


@pytest.fixture(scope="module")
def config() -> FrontierConfig:
    return FrontierConfig(task="greater-than", **QUICK)


@pytest.fixture(scope="module")
def result(config, spliced) -> FrontierResult:
    seen: list[str] = []
    found = run_frontiers(config, spliced, GreaterThanTask(), lambda what, _: seen.append(what))
    assert {"features: ACDC", "neurons: gradients", "heads: random circuits"} <= set(seen)
    return found


def family(result: FrontierResult, name: str) -> Frontier:
    return next(f for f in result.groups[0].frontiers if f.family == name)


# --- the run ------------------------------------------------------------------------------------


def test_every_family_is_there_under_the_same_choices(result):
    (group,) = result.groups
    assert [f.family for f in group.frontiers] == FAMILIES
    assert len({f.choices for f in group.frontiers}) == 1
    assert len({f.unit for f in group.frontiers}) == 3
    assert {f.n_prompts for f in group.frontiers} == {QUICK["n_proof"]}
    assert [f.intervals == "draws" for f in group.frontiers] == [
        name.endswith("random") for name in FAMILIES
    ]
    assert (result.task, result.model, result.metric_name) == (
        *("greater-than", "tiny"),
        GreaterThanTask.metric_name,
    )
    assert group.metric_model > 0.8
    assert group.metric_empty < 0.5 * group.metric_model


def test_all_units_are_the_model_for_every_kind(result):
    for found in result.groups[0].frontiers:
        if not found.family.endswith("ACDC"):
            last = found.points[-1]
            assert last.size == found.n_units
            assert last.faithfulness.value == pytest.approx(1.0, abs=1e-4)
            assert last.kl.value == pytest.approx(0.0, abs=1e-6)


def test_chosen_circuits_beat_random_ones_of_their_size(result):
    for kind in ("features", "neurons", "heads"):
        chosen, random = (
            family(result, f"{kind}, {name}") for name in ("integrated gradients", "random")
        )
        assert [p.size for p in chosen.points] == [p.size for p in random.points]
        assert chosen.cpr > random.cpr
        gaps = [
            a.faithfulness.value - b.faithfulness.value
            for a, b in zip(chosen.points, random.points, strict=True)
        ]
        assert max(gaps) > 0.1
    for kind in ("features", "heads"):
        acdc = family(result, f"{kind}, ACDC")
        assert [p.size for p in acdc.points] == sorted(p.size for p in acdc.points)
        assert acdc.points[0].threshold == 0.03
        assert acdc.points[-1].faithfulness.value > 0.5


def test_the_same_seed_gives_the_same_numbers_whatever_the_memory(
    config, spliced, result, monkeypatch
):
    monkeypatch.setattr("case_studies.frontiers.run._features", lambda *_: [])
    small = config.model_copy(update={"memory_mib": 16})
    again = run_frontiers(small, spliced, GreaterThanTask()).groups[0].frontiers
    assert [f.family for f in again] == FAMILIES[len(FEATURES) :]
    for one, other in zip(result.groups[0].frontiers[len(FEATURES) :], again, strict=True):
        assert [p.size for p in one.points] == [p.size for p in other.points]
        for a, b in zip(one.points, other.points, strict=True):
            assert a.faithfulness.value == pytest.approx(b.faithfulness.value, abs=1e-4)


# --- files and the command ----------------------------------------------------------------------


def test_files(config, result, tmp_path):
    page = write_frontiers(config, result, GreaterThanTask(), tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"config.json", "frontier.json", "frontier.html", "report.md"}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert FrontierConfig.model_validate(saved["settings"]) == config
    record = json.loads((tmp_path / "frontier.json").read_text())
    assert FrontierResult.model_validate(record) == result
    text = page.read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=.?https?:", text)
    assert text.count('"legendonly"') > 0
    told = (tmp_path / "report.md").read_text()
    for row in rows(result.groups[0]):
        assert "| " + " | ".join(row) + " |" in told
    choices = ("node", "features, neurons or heads", "corrupted", "each", "noising", "outside")
    assert all(choice in told for choice in choices)


def test_further_groups_have_figures_of_their_own(config, result, tmp_path):
    (first,) = result.groups
    two = result.model_copy(
        update={"groups": (first, first.model_copy(update={"group": "the other"}))}
    )
    write_frontiers(config, two, GreaterThanTask(), tmp_path)
    assert (tmp_path / "frontier-the_other.html").exists()
    assert "## the other" in (tmp_path / "report.md").read_text()
    assert ", the other:" in finding(two, two.groups[1])
    assert ", the other:" not in finding(result, first)


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(reporting_errors(command))
    return app


def test_command_refuses_bad_input():
    for flags, message in (
        (["--size-factor", "1"], "greater than 1"),
        (["--model", "no/such/model"], "no/such/model"),
    ):
        run = CliRunner().invoke(_app(), ["ioi", *flags])
        assert run.exit_code == 2, run.output
        assert message in run.output


def test_the_command_of_the_report_has_the_settings_of_the_run(config, result, monkeypatch):
    asked = []

    def run(settings, *_):
        asked.append(settings)
        return result

    monkeypatch.setattr("case_studies.commands.frontier.load_spliced", lambda *_, **__: None)
    monkeypatch.setattr("case_studies.commands.frontier.run_frontiers", run)
    for settings in (config, FrontierConfig(task="ioi", check=False, frames="story")):
        told = report(settings, result, GreaterThanTask())
        words = re.findall(r"^    circuits frontier (.*)$", told, re.MULTILINE)[0].split()
        done = CliRunner().invoke(_app(), words)
        assert done.exit_code == 0, done.output
        assert asked.pop() == settings


def test_command_prints_tables_or_one_json_object(config, result, monkeypatch, tmp_path):
    monkeypatch.setattr("case_studies.commands.frontier.run_frontiers", lambda *_: result)
    run = CliRunner().invoke(_app(), ["greater-than", "--json"])
    assert run.exit_code == 0, run.output
    assert FrontierResult.model_validate_json(run.stdout) == result
    run = CliRunner().invoke(_app(), ["greater-than", "--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert "the smallest circuits found" in run.stdout.replace("\n", " ")
    assert (tmp_path / "frontier.html").exists()


# --- parts --------------------------------------------------------------------------------------


def _point(size: int, value: float) -> FrontierPoint:
    found = Estimate(value=value, low=value - 0.1, high=value + 0.1)
    return FrontierPoint(threshold=size, size=size, faithfulness=found, kl=found)


def _family(kind: str, method: str, points: list[FrontierPoint], **others) -> Frontier:
    return Frontier(
        family=f"{kind}, {method}",
        unit=kind,
        choices="c",
        n_units=1000,
        n_prompts=5,
        points=tuple(points),
        front=tuple(points),
        **{"knee": None, "cpr": 0.25, "cmd": 0.75} | others,
    )


def test_the_finding_is_the_fewest_units_of_any_method_but_chance():
    high, knee = [_point(7, 0.85), _point(9, 0.95)], _point(7, 0.85)
    group = GroupFrontiers(
        group="g",
        example="e",
        n_discovery=3,
        metric_model=1.0,
        metric_empty=0.0,
        frontiers=(
            _family("features", "a", [_point(20, 0.9)]),
            _family("features", "b", high, knee=knee),
            _family("features", "random", [_point(1, 1.0)], intervals="draws"),
            _family("neurons", "a", [_point(5, 0.1), _point(6, 1.5)]),
            _family("heads", "a", [_point(3, 1.1)]),
        ),
    )
    result = FrontierResult(
        task="ioi", model="/x/m/", dictionaries="d", metric_name="n", groups=(group,)
    )
    assert finding(result, group) == (
        "ioi on m: the smallest circuits found that keep 80 % are 7 of 1,000 features, none of "
        "1,000 neurons, 3 of 1,000 heads and MLPs"
    )
    table = rows(group)
    assert table[1] == (
        *("features, b", "1000", "7", "0.850 [0.750, 0.950]"),
        *("7", "9", "0.250", "0.750"),
    )
    assert table[3][2:6] == ("none", "", "not reached", "not reached")
    assert all(len(row) == len(COLUMNS) for row in table)
    told = report(FrontierConfig(task="ioi"), result, GreaterThanTask())
    assert told.rstrip().endswith("circuits frontier ioi")


def test_a_metric_serves_several_runs_of_the_same_prompts(spliced):
    task = GreaterThanTask()
    prompts = task.prompts(spliced.model, 3, seed=0, aligned_group="two-digit")
    clean, corrupted = stacked(prompts)
    assert torch.equal(clean[1], prompts[1].clean_tokens)
    assert torch.equal(corrupted[2], prompts[2].corrupted_tokens)
    with torch.no_grad():
        logits = spliced.model.run(clean)[0][:, -1]
    once = task.metric(logits, prompts)
    assert torch.equal(metric_of(task, prompts)(logits), once)
    assert torch.equal(metric_of(task, prompts)(logits.repeat(2, 1)), once.repeat(2))


def test_sweeps():
    sweep = ranked_sweep("m", torch.tensor([0.1, 3.0, 2.0, 0.0]), factor=2.0)
    assert {size: flags.nonzero().flatten().tolist() for size, flags in sweep.circuits.items()} == {
        1.0: [1],
        2.0: [1, 2],
        4.0: [0, 1, 2, 3],
    }
    place, stay = torch.tensor([0, 1, 1, 1]), torch.tensor([True, False, False, False])
    drawn = random_sweep(sweep, place, stay, n=30, seed=0)
    assert drawn.keys() == sweep.circuits.keys()
    assert drawn[2.0].sum(1).unique().tolist() == [2]
    assert not drawn[2.0][:, 0].any()
    assert len({tuple(row) for row in drawn[1.0].tolist()}) == 3
    assert numbered([("a", 1), ("b", 1), ("a", 1)]).tolist() == [0, 1, 0]


def test_activity_is_the_length_of_what_is_written():
    spliced = mixed_spliced()
    clean = torch.tensor([[1, 2, 3], [1, 4, 3]])
    runner = CircuitRunner.on_prompts(spliced, clean, clean.flip(0))
    state = runner.clean
    write = spliced.write_site("mlp.2")
    active = state.activations[write][:, 2]
    feature = int(active.abs().sum(0).argmax())
    nodes = [
        Node(kind="feature", layer=2, site="mlp", pos=2, feature=feature),
        Node(kind="error", layer=2, site="mlp", pos=1),
        Node(kind="sublayer", layer=1, site="mlp", pos=0),
        Node(kind="token", layer=-1, site="embed", pos=1),
    ]
    row = spliced.placements[write].dictionary.W_dec[feature]
    written = [
        (active[:, feature, None] * row),
        state.errors[write][:, 1],
        state.values[Site("mlp_raw_out", 1)][:, 0],
        spliced.model.W_E[clean[:, 1]],
    ]
    want = torch.stack([vector.norm(dim=-1).mean() for vector in written]).double()
    torch.testing.assert_close(mean_activity(runner, nodes), want)


def test_head_acdc_is_the_loop_over_units_from_the_output_back():
    """One unit at a time, thresholds ascending, each from the circuit of the one before."""
    model = mixed_spliced().model
    clean, corrupted = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 8, 4]])
    trial = UnitTrial.on_prompts(
        "heads", model, clean, corrupted, lambda logits: logits[:, 10] - logits[:, 1]
    )
    config = FrontierConfig(task="ioi", thresholds=(0.3, 0.003))
    sweep: Sweep = plain_acdc(config, trial, trial.units, lambda *_: None, "heads")

    def harm(kept: torch.Tensor) -> float:
        return float(trial.measure(kept[None]).kl.mean())

    kept = torch.ones(len(trial.units), dtype=torch.bool)
    worst, sizes = harm(~kept), []
    for share in (0.003, 0.3):
        now = harm(kept)
        for row in reversed(kept.nonzero().flatten().tolist()):
            tried = kept.clone()
            tried[row] = False
            if (new := harm(tried)) - now < share * worst:
                kept, now = tried, new
        assert torch.equal(sweep.circuits[share], kept)
        sizes.append(int(kept.sum()))
    assert len(trial.units) > sizes[0] > sizes[1] > 0
    elsewhere = [*reversed(trial.units)]
    moved = plain_acdc(config, trial, elsewhere, lambda *_: None, "heads")
    assert torch.equal(moved.circuits[0.3].flip(0), sweep.circuits[0.3])
