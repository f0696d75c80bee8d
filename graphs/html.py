"""One HTML file that holds a figure and all it needs: it opens offline, without a server."""

import html
import re
from pathlib import Path

import plotly.graph_objects as go

from circuits.files import write_text

__all__ = ["write_html"]

_TAG = re.compile(r"<[^>]*>")


def write_html(figure: go.Figure, path: str | Path) -> None:
    """Write `figure` with Plotly's script inside, whole or not at all.

    The same figure gives the same bytes. The page is named after the first line of the title.

    Raises:
        OSError: if the file cannot be written; an older file is then untouched.
    """
    page = figure.to_html(
        include_plotlyjs=True,
        full_html=True,
        div_id="circuit",
        config={
            "displaylogo": False,
            "modeBarButtonsToRemove": ["select2d", "lasso2d"],
            "plotlyServerURL": "",
            "scrollZoom": True,
            "showSendToCloud": False,
        },
    )
    first_line = (figure.layout.title.text or "circuit").split("<br>")[0]
    name = html.escape(html.unescape(_TAG.sub("", first_line)), quote=False)
    head = f'<head><meta name="viewport" content="width=device-width"><title>{name}</title>'
    write_text(path, page.replace("<head>", head, 1))
