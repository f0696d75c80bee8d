"""Records of features made by hand, and a reader of pages that refuses HTML that does not close."""

from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

from case_studies.dashboard.neighbours import Neighbour, Neighbours
from case_studies.dashboard.records import (
    Band,
    CoActive,
    FeatureRecord,
    FeatureWeights,
    Observed,
    Window,
)

_VOID = {"meta", "input", "br"}


@dataclass
class Element:
    """One element: attributes, and the text inside it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[Element] = []
        self.elements: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if self.open:
            self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> inside <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def parse(page: str) -> list[Element]:
    """Every element of a page, in order.

    Raises:
        AssertionError: if elements do not close where they should.
    """
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open, f"<{reader.open[-1].tag}> is left open"
    return reader.elements


def find(page: str, tag: str, **attributes: str) -> list[Element]:
    """Elements of a kind with these attributes (`class_` for one class of several)."""
    kind = attributes.pop("class_", None)
    return [
        e
        for e in parse(page)
        if e.tag == tag
        and (kind is None or kind in e.classes)
        and all(e.attributes.get(k) == v for k, v in attributes.items())
    ]


def section(page: str, title: str) -> Element:
    """The one section under a heading."""
    (found,) = (s for s in find(page, "section") if s.children[0].text == title)
    return found


def window(*tokens: str, values: tuple[float, ...], peak: int) -> Window:
    return Window(tokens, values, peak, row=12, pos=34)


def observed(**changes: Any) -> Observed:
    """A feature that fires on war, with everything there is to see."""
    top = (
        window(" the", " war", " is", values=(0.0, 4.0, 1.0), peak=1),
        window(" a", " war", values=(0.5, 3.0), peak=1),
        window("\n", " peace", values=(0.0, 2.0), peak=1),
    )
    made = Observed(
        n_tokens=10_000,
        n_active=250,
        density=0.025,
        maximum=4.0,
        mean_active=1.5,
        edges=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        counts=(0, 100, 0, 120, 30),
        top=top,
        bands=(
            Band(2.0, 4.0, (window(" wars", values=(2.5,), peak=0),)),
            Band(1.0, 2.0, ()),
        ),
        partners=(CoActive("mlp.0.5", 125, 0.5, 12.0), CoActive("mlp.1.6", 25, 0.1, 3.0)),
    )
    return replace(made, **changes)


def weights(**changes: Any) -> FeatureWeights:
    made = FeatureWeights(
        deembedding=((" peace", 0.5), (" war", 0.25)),
        deembedding_extended=((" army", 2.0), ("Army", 1.5), (" fight", -0.5)),
        promoted=((" 19", 3.0), (" 18", 1.0)),
        suppressed=((" love", -2.0), (" tea", -1.0)),
        logits_note="",
        upstream=Neighbours(
            [Neighbour("mlp.0.5", -0.5, -3.0, 1e-3), Neighbour("mlp.0.9", 0.25, 2.0, 0.05)], 24
        ),
        downstream=Neighbours([Neighbour("mlp.2.7", 0.75, 4.0, 1e-4)], 48),
    )
    return replace(made, **changes)


def record(**changes: Any) -> FeatureRecord:
    made = FeatureRecord("mlp.1.17", "tiny", "tiny", weights(), observed())
    return replace(made, **changes)
