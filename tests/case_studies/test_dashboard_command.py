"""`circuits feature`: pages of one feature and of all, with a scan and without."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from case_studies.cli import app
from circuits import SplicedModel, load_dictionaries, load_model
from circuits.checkpoints import save_dictionary
from circuits.feature_store import CorpusSettings, FeatureStore, ScanSettings
from circuits.feature_store.scan import scan
from tests import models
from tests.case_studies.dashboard_pages import find, section
from tests.case_studies.task_models import N_FEATURES, write_dictionaries, write_model


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "model").mkdir()
    (folder / "dictionaries").mkdir()
    write_model(folder / "model")
    write_dictionaries(folder / "dictionaries")
    spliced = SplicedModel(
        load_model(str(folder / "model")), load_dictionaries(folder / "dictionaries")
    )
    rows = torch.randint(1, 500, (8, 12), generator=torch.Generator().manual_seed(0))
    corpus = CorpusSettings(text="given", n_tokens=96, context=12)
    settings = ScanSettings(top_k=5, before=3, after=2, bands=2, per_band=2, partners=3)
    scan(spliced, corpus, folder / "store", rows=rows.to(torch.int32), settings=settings)
    flags = {name: str(folder / name) for name in ("model", "dictionaries", "store")}
    return [part for name, path in flags.items() for part in (f"--{name}", path)]


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["feature", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code in (0, 2), result.output
    return result


def test_two_numbers_are_a_transcoder_s_feature(places: list[str]) -> None:
    short, full = (run(name, *places, "--json").stdout for name in ("1.3", "mlp.1.3"))
    assert short == full
    assert json.loads(short)["feature"] == "mlp.1.3"


def test_what_a_scan_saw_is_printed(places: list[str]) -> None:
    store = FeatureStore.open(places[-1])
    found = store.feature("mlp.1", 3)
    printed = json.loads(run("1.3", *places, "--json").stdout)["observed"]
    assert printed["density"] == found.density
    assert printed["maximum"] == found.maximum
    assert [w["values"] for w in printed["top"]] == [list(c.values) for c in found.top]
    assert [p["name"] for p in printed["partners"]] == [
        f"{p.name}.{p.index}" for p in found.partners
    ]
    shown = run("1.3", *places, "--top", "2").stdout
    assert shown.startswith("mlp.1.3 fires on “")
    assert f"density {found.density:.3%} ({found.n_active:,} of {store.n_tokens:,} tokens)" in shown
    assert shown.count("[[") == shown.count("]]") == 2
    word = load_model(places[1]).token_strings([found.top[0].tokens[found.top[0].peak]])[0]
    assert f"[[{word}]]" in shown
    assert f"{found.partners[0].name}.{found.partners[0].index}" in shown


def test_without_a_scan_it_says_how_to_make_one(places: list[str]) -> None:
    shown = run("1.3", *places[:4])
    model, dictionaries = places[1], places[3]
    how = f"circuits scan --model {model} --dictionaries {dictionaries} --sites mlp --out STORE"
    assert how in shown.stdout.replace("\n", "")
    assert "observed" not in json.loads(run("1.3", *places[:4], "--json").stdout)


def test_a_page_links_to_the_pages_that_are_beside_it(places: list[str], tmp_path: Path) -> None:
    printed = json.loads(run("1.3", *places, "--json", "--out", str(tmp_path)).stdout)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "mlp.1.3.html",
        "mlp.1.3.json",
    }
    assert json.loads((tmp_path / "mlp.1.3.json").read_text()) == {"version": 1, **printed}
    alone = (tmp_path / "mlp.1.3.html").read_text()
    assert find(alone, "a") == []
    above = printed["upstream"][0][0]
    run(above, *places, "--out", str(tmp_path))
    run("1.3", *places, "--out", str(tmp_path))
    links = {a.attributes["href"] for a in find((tmp_path / "mlp.1.3.html").read_text(), "a")}
    assert links == {f"{above}.html"}


def test_the_command_on_a_page_makes_that_page(places: list[str], tmp_path: Path) -> None:
    run("1.3", *places, "--top", "3", "--out", str(tmp_path))
    first = (tmp_path / "mlp.1.3.html").read_text()
    (code,) = find(first, "code")
    program, verb, *arguments = code.text.split()
    assert (program, verb) == ("circuits", "feature")
    (tmp_path / "mlp.1.3.html").unlink()
    run(*arguments)
    assert (tmp_path / "mlp.1.3.html").read_text() == first
    assert len(find(first, "td", class_="bar")) >= 3


def test_all_makes_a_site(places: list[str], tmp_path: Path) -> None:
    result = run("--all", *places, "--out", str(tmp_path), "--json")
    assert json.loads(result.stdout) == {
        "index": str(tmp_path / "index.html"),
        "n_pages": 2 * N_FEATURES,
    }
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert pages == {f"mlp.{i}.{j}" for i in range(2) for j in range(N_FEATURES)} | {"index"}
    made = section((tmp_path / "mlp.1.3.html").read_text(), "Upstream: features that write into it")
    assert made.text.count("mlp.0.") == 10
    (title,) = find((tmp_path / "index.html").read_text(), "title")
    assert title.text == "48 features of model, in 2 dictionaries"
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["all"] is True


def test_a_limit_is_for_each_dictionary(places: list[str], tmp_path: Path) -> None:
    run("--all", *places, "--limit", "2", "--top", "3", "--out", str(tmp_path))
    assert len(list(tmp_path.glob("mlp.0.*.html"))) == len(list(tmp_path.glob("mlp.1.*.html"))) == 2
    (command,) = (
        dl for dl in find((tmp_path / "index.html").read_text(), "dl") if "made by" in dl.text
    )
    assert "--all" in command.text
    assert "--top 3 --sites mlp --limit 2" in command.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "want one feature, such as mlp.2.345, or --all with --out DIR"),
        (("1.3", "--all"), "want one feature, such as mlp.2.345, or --all with --out DIR"),
        (("--all",), "--all writes a site of pages; give its folder with --out DIR"),
        (("1.3", "--limit", "5"), "--limit and --sites choose pages of --all"),
        (("1.3", "--sites", "resid_post"), "--limit and --sites choose pages of --all"),
        (("1.3", "--top", "0"), "--top: Input should be greater"),
        (("1.99",), f"feature must be in [0, {N_FEATURES}), got 99"),
        (("7.3",), "no dictionary at 'mlp.7'"),
        (("1.2.3.4",), "want a feature as SITE.LAYER.INDEX"),
        (("1.3", "--store", "nowhere"), "no finished feature store at nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(
    places: list[str], arguments: tuple[str, ...], message: str
) -> None:
    result = run(*places[:4], *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_scan_of_other_dictionaries_is_refused(places: list[str], tmp_path: Path) -> None:
    for layer in range(2):
        made = models.transcoder(seed=5, d_model=16, n_features=N_FEATURES)
        save_dictionary(made, tmp_path / f"mlp.{layer}.safetensors", layer=layer, model="x")
    result = run("1.3", *places, "--dictionaries", str(tmp_path))
    assert result.exit_code == 2
    assert "is a scan of another dictionary mlp.1" in result.stderr


def test_places_with_two_names_are_one_dictionary_a_site(tmp_path: Path, places: list[str]) -> None:
    for site, layer in (("resid_pre", 1), ("resid_post", 0)):
        made = models.sae(site, d_model=16, n_features=8)
        save_dictionary(made, tmp_path / f"{site}.{layer}.safetensors", layer=layer, model="x")
    flags = ("--model", places[1], "--dictionaries", str(tmp_path), "--out", str(tmp_path / "out"))
    both = run("--all", *flags, "--sites", "resid_pre,resid_post")
    assert both.exit_code == 2
    assert "resid_pre.1 is the same place as resid_post.0" in both.stderr
    one = run("resid_pre.1.3", *flags, "--json")
    assert json.loads(one.stdout)["feature"] == "resid_post.0.3"
