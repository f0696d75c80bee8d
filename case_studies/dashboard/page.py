"""The page of one feature: one HTML file that holds all it needs."""

from collections.abc import Container
from dataclasses import dataclass

from case_studies.dashboard.finding import finding
from case_studies.dashboard.markup import Html, link, number, tag, text
from case_studies.dashboard.records import FeatureRecord, Missing, Observed, TokenScores
from case_studies.dashboard.sections import (
    activity_section,
    contexts_section,
    facts,
    neighbours_section,
    partners_section,
    tokens_section,
)
from case_studies.dashboard.style import document

__all__ = ["Surroundings", "feature_page"]


@dataclass(frozen=True)
class Surroundings:
    """What a page stands among.

    Attributes:
        made: names of the features that have pages; links lead to these alone.
        command: how the page was made.
        has_index: whether `index.html` is beside it.
        order: features before and after this one; both may be empty.
    """

    made: Container[str]
    command: str
    has_index: bool = False
    order: tuple[str, str] = ("", "")


def feature_page(record: FeatureRecord, among: Surroundings) -> Html:
    """The page of a feature, its title what was found."""
    title, weights, seen = finding(record), record.weights, record.observed
    logits = "Per unit of activation, before the final norm's division, relative to the mean token."
    logits = f"{logits} {weights.logits_note}".strip()
    return document(
        title,
        *_navigation(among),
        tag("h1", text(title)),
        facts(_facts(record)),
        tag(
            "main",
            contexts_section(seen),
            activity_section(seen),
            _grid(
                tokens_section("Logits it raises", logits, weights.promoted),
                tokens_section("Logits it lowers", logits, weights.suppressed),
                tokens_section(
                    "Tokens it reads: de-embedding",
                    _reading("Straight off the embedding.", weights.deembedding),
                    weights.deembedding,
                ),
                tokens_section(
                    "Tokens it reads: extended de-embedding",
                    _reading("Once layer 0 has read them.", weights.deembedding_extended),
                    weights.deembedding_extended,
                ),
                neighbours_section(
                    "Upstream: features that write into it",
                    "Virtual weights along the residual stream.",
                    weights.upstream,
                    among.made,
                ),
                neighbours_section(
                    "Downstream: features that read it",
                    "Virtual weights along the residual stream.",
                    weights.downstream,
                    among.made,
                ),
            ),
            partners_section(seen, among.made),
        ),
        _footer(among.command),
    )


def _reading(path: str, found: TokenScores | Missing) -> str:
    """How to read a de-embedding."""
    about = f"{path} In pre-activation units before the norm's division; ranks, not sizes, compare."
    if not isinstance(found, Missing) and found and found[0][1] <= 0:
        return f"{about} No token pushes it up this way: these push it down least."
    return about


def _navigation(among: Surroundings) -> list[Html]:
    links = [tag("a", text("All features"), href="index.html")] if among.has_index else []
    for label, name in zip(("Previous: ", "Next: "), among.order, strict=True):
        if name:
            links.append(tag("span", text(label), link(name, among.made)))
    return [tag("nav", *links)] if links else []


def _facts(record: FeatureRecord) -> list[tuple[str, str]]:
    pairs = [
        ("feature", record.name),
        ("model", record.model),
        ("dictionaries", record.dictionaries),
    ]
    seen = record.observed
    if not isinstance(seen, Observed):
        return pairs
    pairs.append(("density", f"{seen.density:.3%} of {seen.n_tokens:,} tokens"))
    if seen.n_active:
        pairs.append(("maximum", number(seen.maximum)))
        pairs.append(("mean where active", number(seen.mean_active)))
    return pairs


def _grid(*sections: Html) -> Html:
    return tag("div", *sections, class_="grid")


def _footer(command: str) -> Html:
    null = (
        "z and p compare a virtual weight with that of a random writing direction of the same "
        "length: p is the chance of one as large, p times the number looked at is how many chance "
        "would give."
    )
    made = tag("p", text("Made by "), tag("code", text(command)), class_="note")
    return tag("footer", tag("p", text(null), class_="note"), made)
