"""The sections of a feature's page, each from its part of the record to HTML."""

from collections.abc import Container, Sequence
from functools import lru_cache

from case_studies.dashboard.histogram import histogram
from case_studies.dashboard.markup import Html, join, link, number, tag, text, visible, visible_all
from case_studies.dashboard.neighbours import Neighbours
from case_studies.dashboard.records import Band, CoActive, Missing, Observed, TokenScores, Window
from case_studies.dashboard.shades import step

__all__ = [
    "activity_section",
    "contexts_section",
    "facts",
    "neighbours_section",
    "partners_section",
    "tokens_section",
]


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """Names and values, side by side."""
    rows = (tag("div", tag("dt", text(name)), tag("dd", text(value))) for name, value in pairs)
    return tag("dl", *rows)


def contexts_section(seen: Observed | Missing) -> Html:
    """The strongest windows, then samples from every band of activation."""
    if isinstance(seen, Missing):
        return _section("Contexts", _note(seen.reason))
    if not seen.top:
        return _section("Contexts", _note(f"Not active on any of {seen.n_tokens:,} tokens."))
    how = _note(
        "Each token is shaded and underlined by the activation there, from none to the maximum of "
        f"{number(seen.maximum)}; the number in front is that of the outlined token. Hover over a "
        "token, or focus a line, for its value."
    )
    top = (_window(window, seen.maximum) for window in seen.top)
    bands = (part for band in seen.bands for part in _band(band, seen.maximum))
    return _section("Contexts", how, tag("h3", text("Strongest")), *top, *bands)


def _band(band: Band, maximum: float) -> list[Html]:
    if not band.windows:
        return []
    title = tag("h3", text(f"Sampled, activation {number(band.low)} to {number(band.high)}"))
    return [title, *(_window(window, maximum) for window in band.windows)]


def _window(window: Window, maximum: float) -> Html:
    tokens = (
        _token(token, value, step(value, maximum), i == window.peak)
        for i, (token, value) in enumerate(zip(window.tokens, window.values, strict=True))
    )
    place = f"row {window.row}, position {window.pos}"
    value = tag("b", text(number(window.values[window.peak])), title=place)
    return tag("div", value, tag("div", *tokens), class_="w", tabindex=0)


def _token(token: str, value: float, at: int, is_peak: bool) -> Html:
    if not at and not is_peak:
        return _plain_token(token)
    classes = " ".join(([f"s{at}"] if at else []) + (["peak"] if is_peak else []))
    return tag("i", text(visible(token)), class_=classes, title=number(value))


@lru_cache(maxsize=2**16)
def _plain_token(token: str) -> Html:
    """Most tokens of a site, and each many times."""
    return tag("i", text(visible(token)))


def activity_section(seen: Observed | Missing) -> Html:
    """How large its activations are, as a histogram."""
    if isinstance(seen, Missing):
        return _section("Activations", _note(seen.reason))
    if seen.n_active == 0:
        return _section("Activations", _note(f"Zero on all {seen.n_tokens:,} tokens."))
    about = _note(
        f"Number of tokens by activation, on a logarithmic scale: {seen.n_active:,} tokens it is "
        f"active on, out of {seen.n_tokens:,}."
    )
    return _section("Activations", about, histogram(seen.edges, seen.counts))


def tokens_section(title: str, about: str, found: TokenScores | Missing) -> Html:
    """A list of tokens with scores, as bars."""
    if isinstance(found, Missing):
        return _section(title, _note(f"None to show: {found.reason}."))
    largest = max((abs(score) for _, score in found), default=0.0)
    rows = [
        tag(
            "tr",
            tag("td", text(visible_all(token)), class_="t"),
            _bar(score, largest),
            tag("td", text(_signed(score)), class_="n"),
        )
        for token, score in found
    ]
    return _section(title, _note(about), _table(("token", "", "score"), rows))


def neighbours_section(title: str, about: str, near: Neighbours, made: Container[str]) -> Html:
    """Features with their virtual weights, as bars, and how these stand against chance."""
    why = [_note(f"Left out: {reason}.") for reason in near.obstacles]
    if not near.n_looked_at:
        none = _note("None: there is no other dictionary of this site on that side.")
        return _section(title, *(why or [none]))
    largest = max(abs(n.weight) for n in near.strongest)
    rows = [
        tag(
            "tr",
            tag("td", link(n.name, made), class_="t f"),
            _bar(n.weight, largest),
            *(tag("td", text(x), class_="n") for x in (_signed(n.weight), f"{n.z:+.1f}")),
            tag("td", text(f"{n.p:.0e}"), class_="n"),
        )
        for n in near.strongest
    ]
    head = _note(f"{about} Strongest of {near.n_looked_at:,}.")
    return _section(title, head, _table(("feature", "", "weight", "z", "p"), rows), *why)


def partners_section(seen: Observed | Missing, made: Container[str]) -> Html:
    """Features that are active on the same tokens."""
    title = "Active together with"
    if isinstance(seen, Missing):
        return _section(title, _note(seen.reason))
    if not seen.partners:
        return _section(title, _note("No other feature was found active on its tokens."))
    about = _note(
        "Share: of the tokens this feature is active on. Lift: how many times more often than if "
        "the two were independent. " + seen.partners_note
    )
    rows = [_partner(partner, made) for partner in seen.partners]
    return _section(title, about, _table(("feature", "", "share", "lift", "tokens"), rows))


def _partner(partner: CoActive, made: Container[str]) -> Html:
    numbers = (f"{partner.share:.1%}", number(partner.lift), f"{partner.n_together:,}")
    return tag(
        "tr",
        tag("td", link(partner.name, made), class_="t f"),
        _bar(partner.share, 1.0),
        *(tag("td", text(x), class_="n") for x in numbers),
    )


def _bar(value: float, largest: float) -> Html:
    """A bar as long as the value's size; one for less than zero has another colour."""
    width = 100 * min(1.0, abs(value) / largest) if largest else 0.0
    sign = {"class_": "minus"} if value < 0 else {}
    return tag("td", tag("i", style=f"width:{width:.0f}%", **sign), class_="bar")


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + number(abs(value))


def _table(columns: Sequence[str], rows: Sequence[Html]) -> Html:
    numeric = {"score", "weight", "z", "p", "share", "lift", "tokens"}
    head = (
        tag("th", text(c), scope="col", **({"class_": "n"} if c in numeric else {}))
        for c in columns
    )
    return tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))


def _note(content: str) -> Html:
    return tag("p", text(content), class_="note")


def _section(title: str, *parts: Html) -> Html:
    return tag("section", tag("h2", text(title)), join(*parts))
