"""A site of features from a real scan: every page, every link, the index and its search."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from case_studies.dashboard.build import Source, open_source, word_table
from case_studies.dashboard.observed import observe
from case_studies.dashboard.places import in_order
from case_studies.dashboard.records import Missing
from case_studies.dashboard.site import chosen_features, write_site
from case_studies.dashboard.site_index import IndexRow, index_page, index_row
from circuits import SplicedModel
from circuits.feature_store import FeatureStore
from tests.case_studies.dashboard_pages import find, observed, parse, record, section, window
from tests.circuits.feature_stores import F, dictionaries, example_store
from tests.circuits.training_models import small_gpt2

_BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next((path for path in _BROWSERS if path is not None), "")
DEAD = 9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return example_store(tmp_path_factory.mktemp("store"))


def spliced(seed: int = 0) -> dict[str, SplicedModel]:
    model, made = small_gpt2(), dictionaries(seed)
    sites = {name.split(".")[0] for name in made}
    by_site = [
        SplicedModel(model, {n: d for n, d in made.items() if n.startswith(site)})
        for site in sorted(sites)
    ]
    return {p.name: on for on in by_site for p in in_order(on)}


@pytest.fixture(scope="module")
def source(store: FeatureStore) -> Source:
    return open_source(spliced(), "given", store)


@pytest.fixture(scope="module")
def site(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    n = write_site(
        folder,
        source,
        {"mlp.0": [0, 3, DEAD], "mlp.1": range(F), "resid_post.0": [2]},
        top=4,
        command=lambda name: f"circuits feature {name}",
        site_command="circuits feature --all",
    )
    assert n == 3 + F + 1
    return folder


def test_every_link_of_every_page_leads_to_a_page(site: Path) -> None:
    pages = {path.name for path in site.glob("*.html")}
    assert len(pages) == 3 + F + 1 + 1
    linked: set[str] = set()
    for path in site.glob("*.html"):
        targets = {a.attributes["href"] for a in find(path.read_text(), "a")}
        assert targets <= pages
        assert path.name not in targets
        linked |= targets
    assert linked == pages


def test_pages_follow_one_another(site: Path) -> None:
    (nav,) = find((site / "mlp.0.9.html").read_text(), "nav")
    assert nav.text == "All featuresPrevious: mlp.0.3Next: mlp.1.0"
    (first,) = find((site / "mlp.0.0.html").read_text(), "nav")
    assert first.text == "All featuresNext: mlp.0.3"


def test_a_page_shows_what_the_store_has(site: Path, store: FeatureStore) -> None:
    found, shown = store.feature("mlp.1", 4), (site / "mlp.1.4.html").read_text()
    lines = [w.children[1] for w in find(shown, "div", class_="w")]
    contexts = [*found.top, *(c for _, _, band in found.samples for c in band)]
    assert len(contexts) >= 4
    assert [[t.text for t in line.children] for line in lines] == [
        [str(token) for token in context.tokens] for context in contexts
    ]
    peaks = [[i for i, t in enumerate(line.children) if "peak" in t.classes] for line in lines]
    assert peaks == [[context.peak] for context in contexts]
    partners = section(shown, "Active together with").text
    assert found.partners
    assert all(f"{p.name}.{p.index}" in partners for p in found.partners)
    assert f"{found.density:.3%} of {store.n_tokens:,} tokens" in shown
    assert sum(found.histogram.counts) == found.n_active
    assert "never fired on" in (site / f"mlp.0.{DEAD}.html").read_text()


def test_counts_of_partners_that_are_estimates_are_called_so(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    words = word_table(small_gpt2())
    exact = store.feature("mlp.1", 4)
    assert observe(store, "mlp.1", 4, words).partners_note == ""
    part = replace(exact, n_counted=exact.n_active - 1)
    monkeypatch.setattr(FeatureStore, "feature", lambda *_: part)
    note = observe(store, "mlp.1", 4, words).partners_note
    assert note == f"Estimated from {exact.n_active - 1} of its {exact.n_active} active tokens."


def test_a_limit_leaves_out_first_what_never_fired(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = chosen_features(source, None)
    assert every == {name: list(range(F)) for name in ("mlp.0", "mlp.1", "resid_post.0")}
    densities = torch.tensor([0.0, 0.1, 0.0, 0.3, 0.2, 0.0, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(FeatureStore, "densities", lambda *_: densities)
    assert chosen_features(source, 3)["mlp.0"] == [1, 3, 4]
    assert chosen_features(source, 8)["mlp.1"] == [0, 1, 3, 4, 6, 7, 8, 9]
    unseen = Source(source.spliced, "given", Missing("x"), None, source.words)
    assert chosen_features(unseen, 3)["mlp.0"] == [0, 1, 2]


def test_a_store_of_other_dictionaries_is_refused(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match=r"is a scan of another dictionary mlp\.0"):
        open_source(spliced(seed=1), "given", store)


def test_a_store_need_not_have_dictionaries_that_are_not_shown(tmp_path: Path) -> None:
    from circuits.feature_store.scan import scan
    from tests.circuits.feature_stores import CORPUS, SETTINGS, corpus_rows

    made = {"mlp.1": dictionaries()["mlp.1"]}
    alone = SplicedModel(small_gpt2(), made)
    few = scan(alone, CORPUS, tmp_path, rows=corpus_rows(), settings=SETTINGS)
    open_source({"mlp.1": spliced()["mlp.1"]}, "given", few)
    with pytest.raises(ValueError, match=r"has no 'mlp.0'; it has mlp.1"):
        open_source({"mlp.0": spliced()["mlp.0"]}, "given", few)


def test_the_index_holds_what_is_searched_and_sorted() -> None:
    row = index_row(record())
    assert row == IndexRow(
        name="mlp.1.17",
        reads="army · Army",
        raises="19 · 18",
        contexts="the war is … a war … ↵ peace",
        fires_on="war · peace",
        density=0.025,
        maximum=4.0,
        mean_active=1.5,
    )
    unseen = index_row(record(observed=Missing("no scan")))
    assert (unseen.contexts, unseen.density, unseen.maximum) == ("", None, None)


def test_the_index_of_a_site_has_a_row_for_every_page(site: Path, store: FeatureStore) -> None:
    rows = embedded((site / "index.html").read_text())
    assert {f"{row[0]}.html" for row in rows} | {"index.html"} == {
        path.name for path in site.glob("*.html")
    }
    by_name = {row[0]: row for row in rows}
    assert by_name["mlp.1.4"][5] == pytest.approx(float(store.densities("mlp.1")[4]), rel=1e-3)
    assert by_name["mlp.1.4"][6] == pytest.approx(float(store.maxima("mlp.1")[4]), rel=1e-3)
    assert torch.isclose(store.densities("mlp.0")[DEAD], torch.zeros((), dtype=torch.float64))
    assert by_name[f"mlp.0.{DEAD}"][5:] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("token", ["</script><b>", "<!--<script>", "\u2028", "]]>", "\\u003c"])
def test_rows_are_data_whatever_tokens_they_hold(token: str) -> None:
    of = observed(top=(window(token, token, values=(1.0, 0.0), peak=0),))
    row = index_row(record(observed=of))
    shown = index_page([row], "title", [])
    assert embedded(shown)[0][3] == row.contexts
    assert token.strip() in embedded(shown)[0][3] or token == "\u2028"
    scripts = find(shown, "script")
    assert [s.attributes for s in scripts] == [{"type": "application/json", "id": "data"}, {}]
    assert "<" not in scripts[0].text
    assert "b" not in {e.tag for e in parse(shown)}


def embedded(page: str) -> list[list]:
    (data,) = find(page, "script", id="data")
    return json.loads(data.text)


ROWS = (
    IndexRow("mlp.0.0", "army", "19", "the war", "war", 0.5, 1.0, 0.5),
    IndexRow("mlp.0.1", "War", "peace", "all quiet", "quiet", 0.25, 3.0, 1.5),
    IndexRow("mlp.0.2", "x", "Warsaw · 19", "y", "y", 0.75, 2.0, 1.0),
    IndexRow("mlp.0.3", "y", "z", "", "", None, None, None),
    IndexRow("mlp.0.4", "q", "z", "", "", 0.0, 0.0, 0.0),
)


SEARCHES = {
    "q=war": "012",
    "q=war%2019": "02",
    "q=war&in=raises": "2",
    "q=war&in=reads": "1",
    "q=war&in=contexts": "0",
    "q=mlp.0.3": "3",
    "q=%3Cb%3E": "",
    "by=density": "20143",
    "by=density&reverse=1": "41023",
    "by=maximum": "12043",
    "by=mean&q=19": "20",
    "by=nonsense&in=nonsense&reverse=1": "43210",
}
_HARNESS = """<script>
const fragments = %s, seen = {};
function look(fragment) {
  const names = [...document.querySelectorAll("#rows a")].map(a => a.textContent);
  seen[fragment] = [names, document.getElementById("status").textContent];
}
look("");
addEventListener("hashchange", () => { look(location.hash.slice(1)); next(); });
function next() {
  const fragment = fragments.shift();
  if (fragment !== undefined) { location.hash = fragment; return; }
  const all = document.createElement("pre");
  all.id = "seen";
  all.textContent = JSON.stringify(seen);
  document.body.append(all);
}
next();
</script></body>"""
"""Goes through addresses and notes what the table shows at each."""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to run the page's script")
def test_the_address_says_what_is_searched_and_how_it_is_ordered(tmp_path: Path) -> None:
    page = index_page(ROWS, "title", [])
    path = tmp_path / "index.html"
    path.write_text(page.replace("</body>", _HARNESS % json.dumps(list(SEARCHES)), 1))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    shown = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    (seen,) = find(shown, "pre", id="seen")
    assert json.loads(seen.text) == {
        fragment: [[f"mlp.0.{i}" for i in names], f"{len(names)} of 5 features"]
        for fragment, names in {"": "01234", **SEARCHES}.items()
    }
