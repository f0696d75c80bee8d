"""Comparisons of dictionaries: equal L0 by hand, and the whole command on the shipped model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from case_studies.cli import app
from case_studies.comparisons.config import ComparisonConfig
from case_studies.comparisons.matched import at_l0, differences, verdict
from case_studies.comparisons.methods import QUESTIONS, middle_level, trials, tuning_trials
from case_studies.comparisons.report import answer, figures, write_report
from case_studies.comparisons.runs import Record, _best

SMALL = {
    "n_text_tokens": 12_000,
    "context": 32,
    "n_tokens": 6_000,
    "batch_size": 256,
    "n_features": 48,
    "levels": (4, 8),
    "sizes": (16, 48),
    "seeds": (0, 1),
    "learning_rates": (2e-3,),
    "n_eval_rows": 4,
}


def _record(
    method: str, level: int, l0: float, fvu: float, seed: int = 0, size: int = 64
) -> Record:
    return Record(
        method=method,
        n_features=size,
        level=level,
        seed=seed,
        lr=1e-3,
        l0=l0,
        fvu=fvu,
        ce_increase=2 * fvu,
        ce_recovered=1 - fvu,
        kl=fvu,
        dead_share=0.0,
        above_1_percent=0.5,
        above_10_percent=0.1,
        cpu_s_per_step=0.01,
    )


def test_metrics_are_read_off_linearly_in_log_l0_and_never_extrapolated() -> None:
    run = [_record("m", 4, 4.0, 0.4), _record("m", 16, 16.0, 0.2)]
    assert at_l0(run, "fvu", 8.0) == pytest.approx(0.3)
    assert at_l0(run, "ce_increase", 4.0) == pytest.approx(0.8)
    assert at_l0(run, "fvu", 3.9) is None
    assert at_l0(run, "fvu", 16.1) is None


def test_differences_are_paired_by_seed() -> None:
    # The method is 0.1 worse at every L0 with every seed; seeds differ by much more.
    records = [
        _record(name, level, l0, fvu + offset + (0.1 if name == "b" else 0), seed)
        for name in ("a", "b")
        for seed, offset in ((0, 0.0), (1, 0.5), (2, 0.9))
        for level, l0, fvu in ((4, 4.0, 0.4), (8, 8.0, 0.3), (16, 16.0, 0.2))
    ]
    found = differences(records, "b", "a", "fvu")
    assert [d.l0 for d in found] == [4, 8, 16, None]
    for difference in found:
        assert difference.value.mean == pytest.approx(0.1)
        assert difference.value.high == pytest.approx(0.1)
    assert verdict(found[-1]) == "worse than a"
    assert verdict(differences(records, "a", "b", "fvu")[-1]) == "better than b"


def test_an_interval_with_zero_in_it_is_a_tie() -> None:
    records = [
        _record(name, level, float(level), 0.3 + (gap if name == "b" else 0), seed)
        for name in ("a", "b")
        for seed, gap in ((0, 0.1), (1, -0.1), (2, 0.02))
        for level in (4, 16)
    ]
    assert verdict(differences(records, "b", "a", "fvu")[-1]) == "tie with a"
    one = [record for record in records if record.seed == 0]
    assert verdict(differences(one, "b", "a", "fvu")[-1]) == "one seed, no interval"


def test_methods_that_meet_at_no_l0_are_not_compared() -> None:
    records = [
        _record(name, level, l0, 0.3)
        for name, l0s in (("a", (4.0, 8.0)), ("b", (20.0, 40.0)))
        for level, l0 in zip((4, 8), l0s, strict=True)
    ]
    assert differences(records, "b", "a", "fvu") == []


def test_every_dictionary_is_trained_once_and_tuning_has_a_seed_of_its_own() -> None:
    config = ComparisonConfig()
    methods = {method.name for c in QUESTIONS.values() for method in c.methods}
    wanted = trials(config, 0, dict.fromkeys(methods, 1e-3))
    keys = [trial.key for trial in wanted]
    assert len(keys) == len(set(keys)) == 9 * 5 + 4  # the middle size is among the frontier
    tuning = tuning_trials(config, 3)
    assert len(tuning) == 9 * 4
    assert {trial.level for trial in tuning} == {middle_level(config)} == {32}
    assert {trial.seed for trial in tuning} == {3}


def test_learning_rates_are_chosen_among_dictionaries_near_the_wanted_l0() -> None:
    dense, near, worse = (
        _record("m", 32, l0, fvu) for l0, fvu in ((70.0, 0.1), (38.0, 0.2), (30.0, 0.3))
    )
    assert _best([dense, near, worse]) is near
    assert _best([dense, _record("m", 32, 5.0, 0.05)]) is dense


def test_the_report_says_what_was_found() -> None:
    config = ComparisonConfig(levels=(4, 16), n_features=64, sizes=(32, 64))
    names = [method.name for method in QUESTIONS["architectures"].methods]
    records = [
        _record(
            name, level, float(level), 0.5 / level + 0.1 * names.index(name) + 0.001 * seed, seed
        )
        for name in names
        for level in (4, 16)
        for seed in (0, 1, 2)
    ]
    found = answer(config, "architectures", records)
    assert [(d.method, d.metric) for d in found.overall] == [
        ("Gated", "fvu"),
        ("Gated", "ce_increase"),
        ("TopK", "fvu"),
        ("TopK", "ce_increase"),
    ]
    text = write_report(config, [found], dict.fromkeys(names, 1e-3), {"model": "small"})
    assert "Gated - JumpReLU, L0 = 0.1000 [0.1000, 0.1000]: **worse than JumpReLU, L0**" in text
    assert len(figures(found)) == 2


def test_compare_writes_report_figures_and_records_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    flags = [
        part
        for name, value in SMALL.items()
        for part in (
            f"--{name.replace('_', '-')}",
            ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
        )
    ]
    command = ["compare", *flags, "--questions", "sites,size", "--out", str(out), "--json"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "config.json",
        "metrics.json",
        "report.md",
        "seed_0.json",
        "seed_1.json",
        "tuning.json",
        "sites_fvu.html",
        "size_ce_increase.html",
    }
    records = json.loads((out / "metrics.json").read_text())["records"]
    assert len(records) == 2 * (3 * 2 + 1)
    exact = [r for r in records if r["method"] == "transcoder" and r["n_features"] == 48]
    assert {(r["level"], r["seed"]) for r in exact} == {(4, 0), (4, 1), (8, 0), (8, 1)}
    assert all(0 < r["l0"] <= r["level"] and 0 < r["fvu"] < 1.5 for r in exact)
    (out / "seed_1.json").unlink()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    made_again = json.loads((out / "metrics.json").read_text())["records"]
    for old, new in zip(records, made_again, strict=True):
        old.pop("cpu_s_per_step")
        new.pop("cpu_s_per_step")
        assert old == new
    other = CliRunner().invoke(app, [*command, "--seeds", "0"])
    assert other.exit_code == 2
    assert "other settings" in other.output
