"""Puts a page together: the HTML, its style, its script, Plotly's script, and the record."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

__all__ = ["fill_page"]


def fill_page(title: str, record: Mapping[str, Any]) -> str:
    """The whole page as one string.

    Args:
        title: of the window; escaped here.
        record: what `page.js` reads; JSON without NaN.
    """
    plotly, script = _plotly(), _asset("page.js")
    return Template(_asset("page.html")).substitute(
        title=html.escape(title, quote=False),
        hashes=f"'{_hash(plotly)}' '{_hash(script)}'",
        style=_asset("page.css"),
        record=_inert(json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":"))),
        plotly=plotly,
        script=script,
    )


def _inert(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _hash(script: str) -> str:
    """A script as a Content-Security-Policy names it."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


@cache
def _plotly() -> str:
    """Plotly's script as an HTML parser will read it: line ends are one character."""
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")


@cache
def _asset(name: str) -> str:
    return files("graphs.page").joinpath(name).read_text(encoding="utf-8")
