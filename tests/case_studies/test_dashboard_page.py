"""The page of one feature: what it says, what it links to, and that nothing in it escapes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from case_studies.dashboard.finding import finding
from case_studies.dashboard.histogram import histogram
from case_studies.dashboard.markup import visible, visible_all
from case_studies.dashboard.page import Surroundings, feature_page
from case_studies.dashboard.records import FeatureRecord, Missing
from case_studies.dashboard.shades import N_STEPS
from case_studies.dashboard.site_index import index_page, index_row
from tests.case_studies.dashboard_pages import (
    find,
    observed,
    parse,
    record,
    section,
    weights,
    window,
)

COMMAND = "circuits feature mlp.1.17 --model tiny"
ATTACKS = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!--",
    "]]>",
    "</style>",
    "&lt;",
    "&#10;",
    "\x00",
    "\u202ereversed",
    "\ud800",
    "http://elsewhere.example/x.js",
)


def page(of: FeatureRecord | None = None, made: tuple[str, ...] = ()) -> str:
    return feature_page(of or record(), Surroundings(frozenset(made), COMMAND))


def attacked(token: str) -> FeatureRecord:
    """A record with a token wherever there is text."""
    scores = ((token, 1.0), (token, 0.5))
    return FeatureRecord(
        "mlp.1.17",
        token,
        token,
        weights(
            deembedding=scores,
            deembedding_extended=Missing(token),
            promoted=scores,
            suppressed=scores,
            logits_note=token,
        ),
        observed(top=(window(token, token, values=(1.0, 0.0), peak=0),), bands=()),
    )


def test_the_title_is_what_was_found() -> None:
    title = "mlp.1.17 fires on “war”, “peace”, raises “19”, “18”"
    assert finding(record()) == title
    (head,), (heading,) = find(page(), "title")[:1], find(page(), "h1")
    assert (head.text, heading.text) == (title, title)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"observed": Missing("no scan")}, "mlp.1.17 reads “army”, “Army”, raises “19”, “18”"),
        (
            {"observed": observed(n_active=0, top=(), partners=())},
            "mlp.1.17 never fired on 10,000 tokens, raises “19”, “18”",
        ),
        ({"weights": weights(promoted=Missing("x"))}, "mlp.1.17 fires on “war”, “peace”"),
        (
            {
                "observed": Missing("no scan"),
                "weights": weights(
                    deembedding=Missing("x"),
                    deembedding_extended=Missing("x"),
                    promoted=Missing("x"),
                ),
            },
            "mlp.1.17 has no weights-only description",
        ),
    ],
)
def test_what_is_found_is_said_of_what_there_is(changes: dict, expected: str) -> None:
    assert finding(record(**changes)) == expected


def test_contexts_show_every_token_and_how_active_it_is() -> None:
    first, *_ = find(page(), "div", class_="w")
    value, line = first.children
    assert (value.text, value.attributes["title"]) == ("4", "row 12, position 34")
    assert [t.text for t in line.children] == [" the", " war", " is"]
    assert [t.classes for t in line.children] == [[], [f"s{N_STEPS}", "peak"], ["s2"]]
    assert [t.attributes.get("title") for t in line.children] == [None, "4", "1"]
    lines = [w.children[1].text for w in find(page(), "div", class_="w")]
    assert lines == [" the war is", " a war", "↵ peace", " wars"]
    headings = [h.text for h in section(page(), "Contexts").children if h.tag == "h3"]
    assert headings == ["Strongest", "Sampled, activation 2 to 4"]


def test_every_context_can_be_reached_with_the_keyboard() -> None:
    assert {w.attributes["tabindex"] for w in find(page(), "div", class_="w")} == {"0"}


def test_scores_are_shown_with_sign_and_bars_in_proportion() -> None:
    raises, lowers = (section(page(), f"Logits it {way}") for way in ("raises", "lowers"))
    for shown, sign, largest in ((raises, "+", "3"), (lowers, "−", "2")):
        assert f"{sign}{largest}" in shown.text
    bars = [e for e in find(page(), "i") if "style" in e.attributes]
    by_style = {(e.attributes["style"], tuple(e.classes)) for e in bars}
    assert {("width:100%", ()), ("width:33%", ()), ("width:50%", ("minus",))} <= by_style
    assert "␣19" in raises.text


def test_links_lead_to_the_pages_that_were_made_and_to_no_other() -> None:
    links = find(page(made=("mlp.0.5", "mlp.2.7", "mlp.9.9")), "a")
    assert {(a.text, a.attributes["href"]) for a in links} == {
        ("mlp.0.5", "mlp.0.5.html"),
        ("mlp.2.7", "mlp.2.7.html"),
    }
    assert "mlp.1.6" in section(page(), "Active together with").text
    among = Surroundings({"mlp.1.16"}, COMMAND, has_index=True, order=("mlp.1.16", ""))
    (nav,) = find(feature_page(record(), among), "nav")
    assert nav.text == "All featuresPrevious: mlp.1.16"
    assert find(page(), "nav") == []


def test_what_is_there_is_named_and_how_it_was_made() -> None:
    text = " ".join(e.text for e in find(page(), "dl"))
    for fact in ("tiny", "2.500% of 10,000 tokens", "maximum4", "mean where active1.5"):
        assert fact in text
    assert [c.text for c in find(page(), "code")] == [COMMAND]
    assert "Strongest of 48." in section(page(), "Downstream: features that read it").text


def test_without_a_scan_the_sections_say_how_to_make_one() -> None:
    shown = page(record(observed=Missing("Make one with `circuits scan`.")))
    for title in ("Contexts", "Activations", "Active together with"):
        assert section(shown, title).text == f"{title}Make one with `circuits scan`."
    assert "density" not in " ".join(e.text for e in find(shown, "dl"))


def test_a_feature_that_never_fired_has_no_empty_boxes() -> None:
    never = observed(n_active=0, density=0.0, top=(), bands=(), partners=(), counts=(0,) * 5)
    shown = page(record(observed=never))
    assert "Not active on any of 10,000 tokens." in section(shown, "Contexts").text
    assert find(shown, "svg") == []
    assert "Zero on all 10,000 tokens." in section(shown, "Activations").text


def test_what_has_no_weights_only_form_is_said() -> None:
    upstream = replace(weights().upstream, strongest=[], n_looked_at=0, obstacles=("a post-norm",))
    lacking = weights(promoted=Missing("a post-norm"), logits_note="Gain in.", upstream=upstream)
    shown = page(record(weights=lacking))
    assert section(shown, "Logits it raises").text.endswith("None to show: a post-norm.")
    assert "Gain in." in section(shown, "Logits it lowers").text
    assert "Left out: a post-norm." in section(shown, "Upstream: features that write into it").text
    alone = page(record(weights=weights(upstream=replace(upstream, obstacles=()))))
    assert "no other dictionary" in section(alone, "Upstream: features that write into it").text


def test_a_list_of_tokens_that_all_push_it_down_says_so() -> None:
    down = weights(deembedding=((" tea", -0.5), (" cup", -1.0)))
    note = "No token pushes it up this way"
    title = "Tokens it reads: de-embedding"
    assert note in section(page(record(weights=down)), title).text
    assert note not in section(page(), title).text
    assert note not in section(page(), "Logits it lowers").text


def test_the_histogram_draws_what_is_counted() -> None:
    drawn = histogram((0.25, 0.5, 1.0, 2.0, 4.0), (0, 100, 0, 25))
    bars = find(drawn, "rect")
    assert [bar.text for bar in bars] == ["0.5 to 1: 100 tokens", "2 to 4: 25 tokens"]
    full, quarter = (float(bar.attributes["height"]) for bar in bars)
    assert quarter == pytest.approx(full / 4, abs=0.1)
    lefts = [float(bar.attributes["x"]) for bar in bars]
    assert lefts[1] - lefts[0] == pytest.approx(
        2 * (float(bars[0].attributes["width"]) + 1), abs=0.2
    )
    with pytest.raises(ValueError, match="at least one count above 0"):
        histogram((0.0, 1.0), (0,))


@pytest.mark.parametrize("token", ATTACKS)
def test_nothing_gets_out_of_its_place(token: str) -> None:
    shown = page(attacked(token))
    shown.encode("utf-8")
    harmless = page(attacked("x"))
    assert [e.tag for e in parse(shown)] == [e.tag for e in parse(harmless)]
    for mine, other in zip(parse(shown), parse(harmless), strict=True):
        assert mine.attributes.keys() == other.attributes.keys()
    assert find(shown, "div", class_="w")[0].children[1].text == visible(token) * 2


@given(st.text(min_size=1, max_size=8))
def test_any_token_is_shown_as_it_is(token: str) -> None:
    shown = page(attacked(token))
    assert find(shown, "div", class_="w")[0].children[1].children[0].text == visible(token)
    assert find(shown, "td", class_="t")[0].text == visible_all(token)
    assert all(c.isprintable() for c in visible(token))


@pytest.mark.parametrize("token", ["x", *ATTACKS])
def test_no_request_leaves_a_page(token: str) -> None:
    of = attacked(token)
    for shown in (page(of), index_page([index_row(of)], "t", [("model", token)])):
        for element in parse(shown):
            assert element.tag not in ("link", "img", "iframe", "object", "base")
            assert not {"src", "srcset", "data", "action"} & element.attributes.keys()
            assert not any(name.startswith("on") for name in element.attributes)
            for address in (element.attributes.get("href", ""),):
                assert ":" not in address
                assert "//" not in address
        styles = "".join(e.text for e in find(shown, "style"))
        assert "url(" not in styles
        assert "@import" not in styles
        (policy,) = find(shown, "meta", **{"http-equiv": "Content-Security-Policy"})
        assert policy.attributes["content"].startswith("default-src 'none';")


def test_a_full_page_stays_small() -> None:
    """Twice as many and as long contexts as a scan keeps, every token active."""
    long = window(*["\N{SNOWMAN} tokens"] * 50, values=(1.234567,) * 50, peak=20)
    shown = page(record(observed=observed(top=(long,) * 40)))
    assert len(shown.encode()) < 200_000
