"""The page of a circuit in headless Chromium: click, search, filter, slide, fold, theme, export."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attribution.factors import EdgeFactors, PathFactors
from graphs.circuit_graph import CircuitGraph
from graphs.influence import edge_influence, node_influence, normalise_rows, propagate
from graphs.node_notes import NodeNotes
from graphs.page import CircuitPage, ShownContext, circuit_page
from graphs.proof.estimates import Estimate
from tests.graphs.conftest import build, build_random

_BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next((path for path in _BROWSERS if path is not None), "")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright for Python")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium or Chrome on the path")

EVIL = "<img src=x onerror=window.hacked=1></script><script>window.hacked=1</script>"
VIEW = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """A page opened in the browser, and what happened in it."""

    def __init__(self, browser: Any, page: CircuitPage, path: Path, scheme: str = "light") -> None:
        page.write_html(path)
        self.tab = browser.new_page(viewport=VIEW, color_scheme=scheme, accept_downloads=True)
        self.requests: list[str] = []
        self.failed: dict[str, str] = {}
        self.errors: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on(
            "requestfailed", lambda request: self.failed.update({request.url: request.failure})
        )
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on(
            "console",
            lambda said: self.errors.append(said.text) if said.type == "error" else None,
        )
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("body[data-ready]")

    def ask(self, what: str) -> Any:
        return self.tab.evaluate(f"window.circuit.{what}")

    def place(self, node_id: str) -> tuple[float, float]:
        return tuple(self.tab.evaluate("(id) => window.circuit.place(id)", node_id))

    def click(self, node_id: str) -> None:
        was = self.ask("selected()")
        self.tab.mouse.click(*self.place(node_id))
        state = "detached" if was == node_id else "attached"
        self.tab.wait_for_selector("#edges-in", state=state)
        self.tab.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        return self.tab.inner_text(selector)

    def opacity(self) -> dict[str, float]:
        """Of every node's marker as drawn."""
        return self.tab.evaluate(
            """() => Object.fromEntries(
                [...document.querySelectorAll("#plot path.point")].map((p) => [
                    p.closest("g.trace").__data__[0].trace.customdata[p.__data__.i],
                    Number(getComputedStyle(p).opacity)]))"""
        )

    def ink(self) -> int:
        """Pixels of the edges' canvas that are drawn on."""
        return self.tab.evaluate(
            """() => {
                const c = document.getElementById("edges");
                const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
                let n = 0;
                for (let i = 3; i < data.length; i += 4) n += data[i] > 90;
                return n;
            }"""
        )

    def slide(self, share: int) -> None:
        self.tab.locator("#threshold").fill(str(share))


CHAIN = (
    "t0 t1 e0 f1.3 o.logit",
    {
        ("t0", "f1.3"): 3.0,
        ("e0", "f1.3"): -1.0,
        ("f1.3", "o.logit"): 1.5,
        ("t1", "o.logit"): 0.5,
    },
)
FEATURE = "mlp1.3@1"


def chain_page() -> CircuitPage:
    graph = build(*CHAIN)
    path = PathFactors((0, 3), 1.5, 0.5, {"ln1.1@1": 2.0}, 3.5, True)
    return circuit_page(
        graph,
        title="The feature decides",
        notes={FEATURE: NodeNotes(label="years", promoted=("33",), deembedding=(" seventeen",))},
        contexts={FEATURE: [ShownContext(tokens=(" in", " 1917"), values=(0.0, 2.5))]},
        edge_details=[EdgeFactors(graph.nodes[4], graph.nodes[3], 1.5, (path,), 0.125)],
        faithfulness_at={
            0.5: Estimate(value=0.75, low=0.7, high=0.8),
            1.0: Estimate(value=0.93, low=0.9, high=0.95),
        },
        proof={"faithfulness": "0.93", "dictionaries": "FVU 0.2"},
        command="circuits study toy",
    )


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory) -> Iterator[tuple[Reader, Reader]]:
    folder = tmp_path_factory.mktemp("pages")
    chain = Reader(browser, chain_page(), folder / "chain.html")
    groups = {"pair": ["mlp0.0@1", "mlp0.1@1"], "top": ["mlp2.8@1", "mlp2.9@1", "mlp2.10@1"]}
    wide = Reader(browser, circuit_page(GRAPH, groups=groups), folder / "wide.html")
    yield chain, wide
    for reader in (chain, wide):
        assert reader.errors == []
        assert all(re.match("file:|data:|blob:", url) for url in reader.requests)


@pytest.fixture
def chain(opened) -> Reader:
    opened[0].tab.click("#reset")
    return opened[0]


@pytest.fixture
def wide(opened) -> Reader:
    opened[1].tab.click("#reset")
    return opened[1]


def shuffled(graph: CircuitGraph) -> CircuitGraph:
    """The same graph with its edges in no order."""
    order = torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(0))
    return CircuitGraph(
        graph.nodes,
        graph.edge_target[order],
        graph.edge_source[order],
        graph.edge_attribution[order],
        graph.metadata,
    )


GRAPH = shuffled(build_random(7))
IDS = [node.id for node in GRAPH.nodes]


def test_the_first_sight_says_what_was_found_and_proved(chain):
    assert chain.tab.title() == "The feature decides"
    assert chain.text("h1") == "The feature decides"
    assert "toy reads: “<|bos|> The year" in chain.text("#prompt")
    assert chain.text("#status") == "5 of 5 nodes, 4 of 4 edges shown"
    for part in ("faithfulness", "0.93", "dictionaries", "FVU 0.2", "circuits study toy"):
        assert part in chain.text("#proof")
    share = float(node_influence(build(*CHAIN))[2])
    assert share == 0.1875
    assert "carry 18.8 % of the influence" in chain.text("#errors")


def test_a_click_lights_what_feeds_a_node_and_what_it_feeds(chain):
    chain.click(FEATURE)
    assert chain.ask("feeds()") == pytest.approx({"token@0": 0.75, "error.mlp0@1": 0.25})
    assert chain.ask("fed()") == pytest.approx({"output.logit": 0.75})
    lit = {(source, target): strength for source, target, strength in chain.ask("litEdges()")}
    assert lit == pytest.approx(
        {
            ("token@0", FEATURE): 0.75,
            ("error.mlp0@1", FEATURE): 0.25,
            (FEATURE, "output.logit"): 0.75,
        }
    )
    seen = chain.opacity()
    assert seen["token@1"] < 0.2
    assert seen[FEATURE] == 1
    assert seen["token@0"] > seen["error.mlp0@1"] > 0.5
    assert chain.text("#status").endswith("years: 2 nodes feed it, it feeds 1")


def label_ink(reader: Reader) -> list[str]:
    return reader.tab.eval_on_selector_all(
        "#plot .textpoint text", "(all) => all.map((text) => getComputedStyle(text).fill)"
    )


def test_labels_fade_with_their_nodes(chain):
    assert label_ink(chain) == ["rgb(28, 28, 28)"] * 2
    chain.click("token@1")
    assert label_ink(chain) == ["rgba(128, 128, 128, 0.35)", "rgb(28, 28, 28)"]


def test_a_zoomed_picture_is_hit_where_it_is_drawn(chain):
    before = chain.place(FEATURE)
    whole = chain.tab.evaluate("document.getElementById('plot')._fullLayout.xaxis.range.slice()")
    zoom = "(range) => Plotly.relayout('plot', { 'xaxis.range': range }).then(() => null)"
    chain.tab.evaluate(zoom, [whole[0], 0.7 * whole[1]])
    assert chain.place(FEATURE)[0] > before[0] + 20
    chain.click(FEATURE)
    assert chain.ask("selected()") == FEATURE
    chain.tab.evaluate(zoom, whole)


def test_a_second_click_and_escape_clear(chain):
    for clear in (lambda: chain.click(FEATURE), lambda: chain.tab.keyboard.press("Escape")):
        chain.click(FEATURE)
        clear()
        assert chain.ask("selected()") is None
        assert chain.ask("litEdges()") == []
        assert set(chain.opacity().values()) == {1}


def test_the_panel_tells_all_and_its_edges_can_be_followed(chain):
    chain.click(FEATURE)
    chain.tab.eval_on_selector_all("#selected details", "(all) => all.forEach((d) => (d.open = 1))")
    panel = chain.text("#selected")
    for part in (
        "mlp1.3@1",
        "feature 3 of mlp in layer 1, token 1 “ The”",
        "1.500",
        "75.0 % of the output",
        "seventeen",
        "33",
        "1917",
        "head 0.3",
        "+3.500",
    ):
        assert part in panel
    rows = [row.split() for row in chain.tab.locator("#edges-in button").all_inner_texts()]
    assert [(row[0], row[-1]) for row in rows] == [("token", "+3.000"), ("error", "−1.000")]
    chain.tab.click("#edges-out button")
    assert chain.ask("selected()") == "output.logit"


def test_strengths_are_influence_over_all_paths(wide):
    """`propagate` with all weight on the node, and the same on the graph turned round."""
    normalised = normalise_rows(GRAPH.edge_attribution, GRAPH.edge_target, GRAPH.n_nodes)
    for chosen in ("mlp1.5@1", "output.a", "mlp0.2@1"):
        wide.tab.click("#reset")
        wide.tab.fill("#search", chosen)
        wide.tab.keyboard.press("Enter")
        weights = torch.zeros(GRAPH.n_nodes, dtype=torch.float64)
        weights[IDS.index(chosen)] = 1.0
        up = propagate(weights, normalised, GRAPH.edge_target, GRAPH.edge_source)
        down = propagate(weights, normalised, GRAPH.edge_source, GRAPH.edge_target)
        for name, strengths in (("feeds()", up), ("fed()", down)):
            wanted = {i: v for i, v in zip(IDS, strengths.tolist(), strict=True) if v > 0}
            assert wide.ask(name) == pytest.approx(wanted, rel=1e-5)


def kept(score: torch.Tensor, share: float) -> list[bool]:
    """Fewest, strongest first, that carry `share`."""
    order = score.argsort(descending=True, stable=True)
    before = score[order].cumsum(0) - score[order]
    keep = torch.zeros(len(score), dtype=torch.bool)
    keep[order] = before / score.sum() < share - 1e-12
    return keep.tolist()


def test_the_slider_keeps_the_strongest_and_every_error(wide):
    wide.slide(40)
    always = GRAPH.is_kind("token", "error", "output").tolist()
    strong = kept(node_influence(GRAPH), 0.4)
    wanted = [i for i, a, s in zip(IDS, always, strong, strict=True) if a or s]
    assert wide.ask("shown()") == wanted
    assert 5 < len(wanted) < len(IDS)
    strong_edges = kept(edge_influence(GRAPH), 0.4)
    pairs = {
        (IDS[s], IDS[t])
        for s, t, keep in zip(
            GRAPH.edge_source.tolist(), GRAPH.edge_target.tolist(), strong_edges, strict=True
        )
        if keep and IDS[s] in wanted and IDS[t] in wanted
    }
    assert {(s, t) for s, t, *_ in wide.ask("edges()")} == pairs
    assert f"{len(wanted)} of {len(IDS)} nodes" in wide.text("#status")
    assert set(wide.opacity()) == set(wanted)
    wide.slide(100)
    assert wide.ask("shown()") == IDS


def test_stops_print_the_faithfulness_measured_there(chain):
    assert chain.text("#threshold-text") == "100.0 %: faithfulness 0.930 [0.900, 0.950]"
    chain.slide(0)
    assert chain.text("#threshold-text") == "50.0 %: faithfulness 0.750 [0.700, 0.800]"
    assert len(chain.ask("edges()")) < 4


def test_filters_combine(wide):
    wide.tab.uncheck("#kind-bias")
    wide.tab.select_option("#layer-from", "0")
    wide.tab.select_option("#layer-to", "1")
    wanted = [n.id for n in GRAPH.nodes if n.kind != "bias" and 0 <= n.layer <= 1]
    assert wide.ask("shown()") == wanted
    wide.tab.uncheck("#sign1")
    edges = wide.ask("edges()")
    assert edges
    assert all(a < 0 for _, _, a, _ in edges)
    assert wide.text("#count-sign1") == "0"
    assert wide.text("#count-sign-1") == str(len(edges))
    assert f"{len(wanted)} of {len(IDS)} nodes, {len(edges)} of {GRAPH.n_edges} edges shown" in (
        wide.text("#status")
    )
    n_features = sum(n.kind == "feature" for n in GRAPH.nodes)
    n_kept = sum(i.startswith("mlp") for i in wanted)
    assert wide.text("#count-feature") == f"{n_kept} of {n_features}"
    wide.tab.select_option("#pos-from", "3")
    assert wide.ask("shown()") == []
    wide.tab.click("#reset")
    wide.tab.select_option("#pos-to", "0")
    assert wide.ask("shown()") == [n.id for n in GRAPH.nodes if n.pos <= 0]


def test_paths_are_lit_within_what_is_shown(wide):
    wide.tab.uncheck("#kind-feature")
    wide.tab.check("#kind-feature")
    wide.tab.select_option("#layer-from", "2")
    wide.click("output.a")
    shown = set(wide.ask("shown()"))
    assert set(wide.ask("feeds()")) <= shown
    direct = {s: i for s, t, _, i in wide.ask("edges()") if t == "output.a"}
    normalised = normalise_rows(GRAPH.edge_attribution, GRAPH.edge_target, GRAPH.n_nodes).tolist()
    rows = zip(GRAPH.edge_source.tolist(), GRAPH.edge_target.tolist(), normalised, strict=True)
    wanted = {IDS[s]: n for s, t, n in rows if IDS[t] == "output.a" and IDS[s] in direct}
    assert wide.ask("feeds()") == pytest.approx(wanted, rel=1e-5)


def test_paths_run_over_edges_of_the_chosen_sign(wide):
    wide.click("output.a")
    before = wide.ask("feeds()")
    wide.tab.uncheck("#sign1")
    reached, edges = {"output.a"}, wide.ask("edges()")
    for _ in IDS:
        reached |= {source for source, target, *_ in edges if target in reached}
    after = wide.ask("feeds()")
    assert set(after) == reached - {"output.a"}
    assert sum(after.values()) < sum(before.values())


def test_only_the_reader_hides_errors(wide):
    wide.slide(1)
    assert {i for i in wide.ask("shown()") if i.startswith("error")} == {
        "error.mlp0@1",
        "error.mlp1@1",
    }
    wide.tab.uncheck("#kind-error")
    assert not [i for i in wide.ask("shown()") if i.startswith("error")]
    assert "hidden by you" in wide.text("#errors")


def test_search_finds_ids_labels_and_tokens(chain):
    for query, found in (
        ("MLP1.3", [FEATURE]),
        ("years", [FEATURE]),
        ("sevent", [FEATURE]),
        ("the", ["token@1", "error.mlp0@1", FEATURE]),
        ("nothing at all", []),
    ):
        chain.tab.fill("#search", query)
        assert chain.ask("found()") == found
        assert chain.text("#matches") == f"{len(found)} found"
        seen = chain.opacity()
        assert {i for i, opacity in seen.items() if opacity == 1} == set(found)
    chain.tab.fill("#search", "years")
    chain.tab.keyboard.press("Enter")
    assert chain.ask("selected()") == FEATURE


def test_groups_fold_with_their_edges_summed(wide):
    before = {(s, t): (a, i) for s, t, a, i in wide.ask("edges()")}
    members = ["mlp0.0@1", "mlp0.1@1"]
    middle = [sum(wide.place(m)[k] for m in members) / 2 for k in (0, 1)]
    wide.tab.check("#group-0")
    shown = wide.ask("shown()")
    assert "group pair" in shown
    assert not set(members) & set(shown)
    assert wide.place("group pair") == pytest.approx(middle, abs=0.01)
    after = {(s, t): (a, i) for s, t, a, i in wide.ask("edges()")}
    for target in {t for s, t in before if s in members}:
        for k in (0, 1):
            total = sum(before[m, target][k] for m in members if (m, target) in before)
            assert after["group pair", target][k] == pytest.approx(total, rel=1e-6, abs=1e-12)
    assert sum(i for _, i in after.values()) == pytest.approx(
        sum(i for pair, (_, i) in before.items()), rel=1e-6
    )
    wide.click("output.a")
    folded = wide.ask("feeds()")
    wide.tab.uncheck("#group-0")
    open_ = wide.ask("feeds()")
    assert folded["group pair"] == pytest.approx(sum(open_[m] for m in members if m in open_))
    assert set(wide.ask("shown()")) == set(IDS)


def test_a_folded_group_can_be_selected(wide):
    wide.tab.check("#group-1")
    wide.click("group top")
    normalised = normalise_rows(GRAPH.edge_attribution, GRAPH.edge_target, GRAPH.n_nodes)
    weights = torch.zeros(GRAPH.n_nodes, dtype=torch.float64)
    for member in ("mlp2.8@1", "mlp2.9@1", "mlp2.10@1"):
        weights[IDS.index(member)] = 1 / 3
    up = propagate(weights, normalised, GRAPH.edge_target, GRAPH.edge_source)
    wanted = {i: v for i, v in zip(IDS, up.tolist(), strict=True) if v > 0}
    assert wide.ask("feeds()") == pytest.approx(wanted, rel=1e-5)
    assert "group\n3 nodes" in wide.text("#selected")


def test_an_edge_tells_its_factors(chain):
    (x0, y0), (x1, y1) = chain.place(FEATURE), chain.place("output.logit")
    chain.tab.mouse.move((x0 + x1) / 2, (y0 + y1) / 2)
    chain.tab.wait_for_selector("#tip:not([hidden])")
    tip = chain.text("#tip")
    for part in ("years → logit", "attribution +1.500 (raises", "head 0.3", "0.3750", "+3.500"):
        assert part in tip
    assert "several heads, skips\t\t\t+0.1250" in tip
    chain.tab.mouse.move(x0, y0)
    chain.tab.wait_for_timeout(100)
    assert "promotes: “33”" in chain.text("#tip")


def test_keys_move_along_edges_and_between_nodes(chain):
    chain.tab.focus("#plot")
    press = chain.tab.keyboard.press
    press("ArrowUp")
    assert chain.ask("cursor()") == "output.logit"
    assert chain.ask("selected()") is None
    press("ArrowDown")
    assert chain.ask("cursor()") == FEATURE
    press("Enter")
    assert chain.ask("selected()") == FEATURE
    press("ArrowDown")
    assert chain.ask("selected()") == "token@0"
    press("ArrowRight")
    assert chain.ask("selected()") == "token@1"
    press("ArrowLeft")
    assert chain.ask("selected()") == "token@0"
    press("Escape")
    assert chain.ask("selected()") is None
    press("/")
    assert chain.tab.evaluate("document.activeElement.id") == "search"
    assert chain.tab.input_value("#search") == ""


def test_every_control_has_a_name(wide):
    unnamed = wide.tab.evaluate(
        """() => [...document.querySelectorAll("main button, main input, main select")]
            .filter((e) => !e.textContent.trim() && !(e.labels && e.labels.length)
                && !e.getAttribute("aria-label")).map((e) => e.id)"""
    )
    assert unnamed == []
    assert wide.tab.get_attribute("#plot", "aria-label").startswith("Circuit")


def luminance(reader: Reader) -> float:
    color = reader.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


def test_themes_follow_the_system_and_the_button(browser, tmp_path, chain):
    assert luminance(chain) > 200
    light = chain.tab.evaluate("document.getElementById('plot')._fullLayout.font.color")
    chain.tab.click("#theme")
    assert luminance(chain) < 60
    dark = chain.tab.evaluate("document.getElementById('plot')._fullLayout.font.color")
    assert (light, dark) == ("#1c1c1c", "#e9e9e9")
    chain.tab.click("#theme")
    assert luminance(chain) > 200
    reader = Reader(browser, chain_page(), tmp_path / "dark.html", scheme="dark")
    assert luminance(reader) < 60
    assert reader.errors == []
    reader.tab.close()


def test_edges_are_drawn_and_fade(wide):
    everything = wide.ink()
    assert everything > 1000
    wide.click("mlp0.2@1")
    assert 0 < wide.ink() < everything
    wide.tab.click("#reset")
    assert wide.ink() == everything
    for sign in ("#sign1", "#sign-1"):
        wide.tab.uncheck(sign)
    assert wide.ink() == 0


def test_pictures_hold_what_is_shown(wide):
    wide.click("output.a")
    with wide.tab.expect_download() as png:
        wide.tab.click("#png")
    data = Path(png.value.path()).read_bytes()
    assert png.value.suggested_filename == "circuit.png"
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000
    with wide.tab.expect_download() as svg:
        wide.tab.click("#svg")
    picture = Path(svg.value.path()).read_text()
    assert svg.value.suggested_filename == "circuit.svg"
    assert picture.count("<path") >= len(IDS)
    assert "What drives logit in toy" in picture
    assert "lowers its target" in picture
    assert "stroke-dasharray: 5px, 3px" in picture


def test_hostile_text_stays_text(browser, tmp_path):
    graph = build(*CHAIN)
    metadata = graph.metadata.model_copy(
        update={"tokens": (EVIL,) * 4, "prompt": EVIL, "model": EVIL, "target": EVIL}
    )
    graph = CircuitGraph(
        graph.nodes, graph.edge_target, graph.edge_source, graph.edge_attribution, metadata
    )
    notes = {FEATURE: NodeNotes(label=EVIL, deembedding=(EVIL,), promoted=(EVIL,))}
    page = circuit_page(
        graph,
        notes=notes,
        contexts={FEATURE: [ShownContext(tokens=(EVIL,), values=(1.0,))]},
        title=EVIL,
        proof={EVIL: EVIL},
        command=EVIL,
        groups={EVIL: ["token@0", "token@1"]},
    )
    reader = Reader(browser, page, tmp_path / "evil.html")
    reader.click(FEATURE)
    assert reader.text("h1") == EVIL
    assert EVIL in reader.text("#selected")
    assert EVIL in reader.text("#proof")
    reader.tab.mouse.move(*reader.place(FEATURE))
    reader.tab.wait_for_selector("#tip:not([hidden])")
    assert EVIL in reader.text("#tip")
    reader.tab.check("#group-0")
    reader.tab.fill("#search", "img")
    with reader.tab.expect_download() as svg:
        reader.tab.click("#svg")
    picture = Path(svg.value.path()).read_text()
    assert "<img" not in picture
    assert reader.tab.evaluate("window.hacked") is None
    assert reader.tab.locator("img").count() == 0
    assert reader.errors == []
    reader.tab.close()


def test_no_request_could_leave_the_page(browser, tmp_path):
    reader = Reader(browser, chain_page(), tmp_path / "shut.html")
    blocked = reader.tab.evaluate(
        """async () => {
            const seen = [];
            document.addEventListener(
                "securitypolicyviolation", (e) => seen.push(e.effectiveDirective));
            await fetch("https://example.invalid/").catch(() => 0);
            const image = new Image(); image.src = "https://example.invalid/x.png";
            const script = document.createElement("script"); script.textContent = "window.ran = 1";
            document.body.append(script);
            await new Promise((f) => setTimeout(f, 200));
            return [seen.sort(), window.ran ?? null];
        }"""
    )
    assert blocked == [["connect-src", "img-src", "script-src-elem"], None]
    tried = [url for url in reader.requests if url.startswith("http")]
    assert [reader.failed[url] for url in tried] == ["csp"] * len(tried)
    reader.tab.close()


def test_a_notebooks_frame_works_the_same(browser, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><body>{chain_page()._repr_html_()}", encoding="utf-8")
    tab = browser.new_page(viewport=VIEW)
    tab.goto(path.as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    inner = tab.frames[1]
    inner.fill("#search", "years")
    inner.press("#search", "Enter")
    assert inner.evaluate("window.circuit.selected()") == FEATURE
    assert json.dumps(inner.evaluate("window.circuit.fed()")) == '{"output.logit": 0.75}'
    tab.close()
