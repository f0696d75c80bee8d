"""HTML that is escaped by construction: text becomes `Html` here and nowhere else."""

import html
from collections.abc import Container
from typing import NewType

__all__ = ["Html", "join", "link", "number", "tag", "text", "visible", "visible_all"]

Html = NewType("Html", str)

_VOID = ("meta", "input")


def text(content: str) -> Html:
    """`content` with everything escaped that HTML would read."""
    return Html(_escaped(content))


def _escaped(content: str) -> str:
    """Escaped, and without the lone surrogates that no file can hold."""
    return html.escape(content.encode("utf-8", "backslashreplace").decode("utf-8"))


def join(*parts: Html) -> Html:
    """Pieces of HTML, one after another."""
    return Html("".join(parts))


def tag(element: str, /, *children: Html, **attributes: object) -> Html:
    """An element. Attributes are escaped; `class_` is `class`, `data_v` is `data-v`.

    Example:
        >>> tag("a", text("a < b"), href='"x"', class_="y")
        '<a href="&quot;x&quot;" class="y">a &lt; b</a>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for key, value in attributes.items()
    )
    return Html(
        f"<{element}{given}>{''.join(children)}" + ("" if element in _VOID else f"</{element}>")
    )


def link(name: str, made: Container[str]) -> Html:
    """The name of a feature, leading to its page if there is one."""
    return tag("a", text(name), href=f"{name}.html") if name in made else text(name)


def visible(token: str) -> str:
    r"""A token as it reads in running text, with what would not show made to.

    Spaces stay unless there is nothing else; line ends, tabs and characters that print nothing (or
    turn the direction of writing) are written out.

    Example:
        >>> [visible(token) for token in (" war", "\n", "  ", "a\u202eb")]
        [' war', '↵', '␣␣', 'a\\u202eb']
    """
    shown = "".join(_shown(character) for character in token)
    return shown.replace(" ", "␣") if not shown.strip(" ") else shown


def visible_all(token: str) -> str:
    """A token by itself, its spaces shown too.

    Example:
        >>> visible_all(" war")
        '␣war'
    """
    return visible(token).replace(" ", "␣") or "(empty)"


def _shown(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


_NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥", "\N{NO-BREAK SPACE}": "⍽"}


def number(value: float) -> str:
    """Three significant digits, without a power of ten where four digits will do.

    Example:
        >>> [number(x) for x in (0.0, 12.345, 1234.5, 0.00012, 1.5e-9)]
        ['0', '12.3', '1,234', '0.00012', '1.5e-09']
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
