"""`circuits evaluate`: the table, the record, the page, and refusals."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from case_studies.cli import app
from case_studies.commands.fidelity_page import fidelity_figure
from circuits.fidelity import (
    CrossEntropy,
    Density,
    DictionaryFidelity,
    FidelityReport,
    KLDivergence,
)
from circuits.metrics import LOG10_DENSITY_EDGES
from tests.case_studies.task_models import N_FEATURES, write_dictionaries, write_model
from tests.limits import files_no_larger_than


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model, dictionaries = (tmp_path_factory.mktemp(name) for name in ("model", "dictionaries"))
    write_model(model)
    write_dictionaries(dictionaries)
    return ["--model", str(model), "--dictionaries", str(dictionaries)]


def run(*arguments: str, columns: int = 100) -> Result:
    text = () if "--text" in arguments else ("--n-tokens", "64", "--context", "16")
    return CliRunner().invoke(
        app, ["evaluate", *arguments, *text], env={"COLUMNS": str(columns), "TERM": "dumb"}
    )


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def report(n_layers: int = 3, n_tokens: int = 10**6) -> FidelityReport:
    """A made-up report with the widest names and numbers there are."""
    counts = [0] * (len(LOG10_DENSITY_EDGES) - 1)
    counts[12], counts[20] = 6_000, 18_000
    losses = CrossEntropy(
        clean=3.0,
        spliced=13.5,
        mean_ablated=19.25,
        zero_ablated=12.0,
        recovered_mean=-0.375,
        recovered_zero=None,
    )
    divergences = KLDivergence(
        spliced=12.0,
        mean_ablated=16.0,
        zero_ablated=11.0,
        recovered_mean=0.25,
        recovered_zero=-1 / 11,
    )
    dictionaries = tuple(
        DictionaryFidelity(
            name=f"resid_post.{10 + layer}",
            n_features=131_072,
            l0=1234.56,
            fvu=0.125 + layer,
            explained_variance=0.875 - layer,
            cosine=-0.975,
            l2_ratio=10.5,
            reconstruction_bias=None,
            dead_share=1.0,
            density=Density(
                log10_edges=LOG10_DENSITY_EDGES,
                counts=tuple(counts),
                above_1_percent=1.0,
                above_10_percent=1.0,
            ),
            cross_entropy=losses,
            kl=divergences,
        )
        for layer in range(n_layers)
    )
    return FidelityReport(
        model="x" * 20,
        n_tokens=n_tokens,
        n_predictions=n_tokens - 1,
        dictionaries=dictionaries,
        together={"resid_post": losses},
        together_kl={"resid_post": divergences},
    )


def test_files_and_json_are_one_record(places: list[str], tmp_path: Path) -> None:
    done = run(*places, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "fidelity.html", "metrics.json"),
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == printed
    found = FidelityReport.model_validate_json(done.stdout)
    assert found.version == 2
    assert found.n_tokens == 4 * 15 - _n_bos(found)
    assert [d.name for d in found.dictionaries] == ["mlp.0", "mlp.1"]
    for each in found.dictionaries:
        assert sum(each.density.counts) == round((1 - each.dead_share) * N_FEATURES)
        assert each.density.above_10_percent <= each.density.above_1_percent
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["command"] == "evaluate"
    assert config["settings"]["n_tokens"] == 64


def _n_bos(found: FidelityReport) -> int:
    """BOS the random model sampled inside the rows: at most a few."""
    missing = 4 * 15 - found.n_tokens
    assert 0 <= missing < 10
    return missing


def test_the_page_holds_everything_and_names_the_ablations(
    places: list[str], tmp_path: Path
) -> None:
    assert run(*places, "--out", str(tmp_path)).exit_code == 0
    page = (tmp_path / "fidelity.html").read_text()
    assert "mean ablation" in page
    assert "zero ablation" in page
    assert "plotly.js" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert re.search(r"<title>[^<]*: FVU [0-9.]+ to [0-9.]+, ", page)


def test_tables_say_what_recovered_is_against(places: list[str]) -> None:
    shown = run(*places).stdout
    for words in ("vs mean", "vs zero", "mean-", "zero-", "KL", "cosine", "bias", "> 10 %"):
        assert words in shown, words
    assert "0 is the site ablated to its mean (or to zero)" in shown
    assert "all mlp" in shown


def test_tables_fit_a_hundred_columns(capsys, monkeypatch) -> None:
    from case_studies.commands.fidelity_table import print_fidelity

    monkeypatch.setenv("COLUMNS", "100")
    print_fidelity(report())
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for cell in ("resid_post.12", "131072", "1234.6", "2.125", "-0.975", "10.500", "100.0%"):
        assert cell in shown, cell
    line = next(line for line in shown.splitlines() if "all resid_post" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == [
        *("all resid_post", "13.500", "19.250", "12.000", "-0.375", "-", "12.000", "0.250"),
    ]
    assert "its own CE is 3.000" in shown
    assert "reconstruction on 1,000,000 tokens" in shown
    assert "over 999,999 tokens" in shown


def test_the_figure_shows_the_report_s_numbers() -> None:
    figure = fidelity_figure(report())
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["FVU"].y) == [0.125, 1.125, 2.125]
    names = ["resid_post.10", "resid_post.11", "resid_post.12"]
    assert list(by_name["FVU"].x) == names
    assert list(by_name["mean ablation"].x) == [*names, "all resid_post"]
    assert list(by_name["mean ablation"].y) == [-0.375] * 4
    assert list(by_name["zero ablation"].y) == [None] * 4
    (density,) = (trace for trace in figure.data if trace.type == "heatmap")
    assert density.x[0] == LOG10_DENSITY_EDGES[12]
    assert len(density.x) == len(density.z[0]) + 1
    assert [n for n in density.customdata[0] if n] == [6_000, 18_000]
    assert density.z[0][8] == 18_000 / 131_072
    assert density.y[1] == "resid_post.11 (100.0% dead)"
    assert "FVU 0.125 to 2.125, CE recovered (mean ablation) -0.375, L0 1234.6" in (
        figure.layout.title.text
    )
    titles = {figure.layout[axis].title.text for axis in ("xaxis3", "yaxis", "yaxis2")}
    assert titles == {
        *("FVU", "CE recovered", "log10 of the share of tokens a feature is active on"),
    }


def test_a_figure_grows_with_its_dictionaries_and_may_lack_living_features() -> None:
    record = report(1).dictionaries[0]
    nothing = record.density.model_copy(update={"counts": (0,) * (len(LOG10_DENSITY_EDGES) - 1)})
    dead = report(1).model_copy(
        update={"dictionaries": (record.model_copy(update={"density": nothing}),)}
    )
    small, large = fidelity_figure(dead), fidelity_figure(report(60))
    assert large.layout.height > small.layout.height + 800


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layers", "0,7"), "holds no dictionary mlp.7; of these it holds mlp.0"),
        (("--sites", "resid_post"), "holds no dictionary for sites ('resid_post',)"),
        (("--n-tokens", "0"), "--n-tokens: Input should be greater than or equal to 1, got 0"),
        (("--context", "2"), "position and its next token are both kept"),
        (("--context", "64"), "context 64 is longer than"),
        (("--text", "nosuch.txt"), "no text at 'nosuch.txt'"),
        (("--model", "nosuch"), "cannot load model 'nosuch'"),
    ],
)
def test_bad_input_is_refused(places: list[str], flags: tuple[str, ...], message: str) -> None:
    arguments = ["evaluate", *places, "--n-tokens", "64", "--context", "16", *flags]
    assert message in refused(CliRunner().invoke(app, arguments))


def test_an_empty_text_is_refused(places: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    line = refused(run(*places, "--text", str(tmp_path / "empty.txt"), "--context", "16"))
    assert "position and its next token are both kept" in line


def test_a_folder_that_cannot_be_made_is_refused_before_measuring(
    places: list[str], tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "file").write_text("mine")

    def measure(*_: object, **__: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr("case_studies.commands.evaluate.evaluate", measure)
    assert "file" in refused(run(*places, "--out", str(tmp_path / "file" / "out")))


def test_a_full_disk_leaves_no_half_page(places: list[str], tmp_path: Path) -> None:
    with files_no_larger_than(100_000):
        result = run(*places, "--out", str(tmp_path))
    assert "fidelity.html: could not write the file (File too large)" in refused(result)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "metrics.json"}
