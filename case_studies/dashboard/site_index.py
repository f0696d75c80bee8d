"""The first page of a site: every feature in a table that is searched and sorted in the browser.

Search and order are in the address (`index.html#q=war&in=raises&by=density`), so that a search can
be kept and sent. Rows are JSON in the page itself; nothing is loaded.
"""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from case_studies.dashboard.finding import fires_on, reads
from case_studies.dashboard.markup import Html, join, tag, text, visible
from case_studies.dashboard.records import FeatureRecord, Missing, Observed
from case_studies.dashboard.sections import facts
from case_studies.dashboard.style import document

__all__ = ["IndexRow", "embedded_json", "index_page", "index_row"]

_N_TOKENS, _N_CONTEXTS, _REACH = 5, 4, 5


@dataclass(frozen=True)
class IndexRow:
    """One feature as the index knows it; numbers are None where no store was given."""

    name: str
    reads: str
    raises: str
    contexts: str
    fires_on: str
    density: float | None
    maximum: float | None
    mean_active: float | None


def index_row(record: FeatureRecord) -> IndexRow:
    """What the table shows of a feature, and what is searched."""
    seen, promoted = record.observed, record.weights.promoted
    reading = _tokens([token for token, _ in reads(record)])
    raising = "" if isinstance(promoted, Missing) else _tokens([token for token, _ in promoted])
    if not isinstance(seen, Observed):
        return IndexRow(record.name, reading, raising, "", "", None, None, None)
    return IndexRow(
        record.name,
        reading,
        raising,
        " … ".join(dict.fromkeys(_around(w.tokens, w.peak) for w in seen.top[:_N_CONTEXTS])),
        _tokens(fires_on(seen)),
        *(float(f"{x:.4g}") for x in (seen.density, seen.maximum, seen.mean_active)),
    )


def index_page(rows: Sequence[IndexRow], title: str, made_of: Sequence[tuple[str, str]]) -> Html:
    """The index of a site.

    Args:
        rows: one a page.
        title: of the page.
        made_of: names and values shown under it: model, dictionaries, command and so on.
    """
    box = tag("input", id="q", type="search", autocomplete="off")
    where = tag("select", *(_option(*pair) for pair in _SCOPES), id="in")
    columns = (_column(key, label) for key, label in _COLUMNS)
    return document(
        title,
        tag("h1", text(title)),
        facts(made_of),
        tag(
            "form",
            tag("label", text("Search (all words must be there)"), box),
            tag("label", text("in"), where),
            role="search",
        ),
        tag("noscript", tag("p", text(_NO_SCRIPT), class_="note")),
        tag("p", id="status", class_="note", aria_live="polite"),
        tag("table", tag("thead", tag("tr", *columns)), tag("tbody", id="rows")),
        tag("p", tag("button", text("Show more"), id="more", type="button")),
        script=join(
            tag(
                "script",
                embedded_json([astuple(r) for r in rows]),
                type="application/json",
                id="data",
            ),
            tag("script", Html(_SCRIPT)),
        ),
    )


def embedded_json(value: object) -> Html:
    r"""JSON that can stand in a script element: no `<` in it, so no tag can end it or begin.

    Example:
        >>> embedded_json(["</script>"])
        '["\\u003c/script>"]'
    """
    dumped = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return Html("".join(escapes.get(character, character) for character in dumped))


def _tokens(tokens: Sequence[str]) -> str:
    shown = dict.fromkeys(visible(token.strip(" ") or token) for token in tokens)
    return " · ".join(list(shown)[:_N_TOKENS])


def _around(tokens: Sequence[str], peak: int) -> str:
    near = tokens[max(0, peak - _REACH) : peak + 2]
    return "".join(visible(token) for token in near).strip()


def _option(value: str, label: str) -> Html:
    return tag("option", text(label), value=value)


def _column(key: str, label: str) -> Html:
    numeric = {"class_": "n"} if key in ("density", "maximum", "mean") else {}
    if not key:
        return tag("th", text(label), scope="col")
    button = tag("button", text(label), type="button", data_by=key)
    return tag("th", button, scope="col", **numeric)


_SCOPES = (
    ("all", "everything"),
    ("raises", "logits it raises"),
    ("reads", "tokens it reads"),
    ("contexts", "top contexts"),
)
_COLUMNS = (
    ("name", "feature"),
    ("", "fires on, or reads"),
    ("", "raises"),
    ("density", "density"),
    ("maximum", "maximum"),
    ("mean", "mean active"),
)
_NO_SCRIPT = (
    "Search and the table need JavaScript. Without it, open a page by its name, such as "
    "mlp.2.345.html."
)
_SCRIPT = """
"use strict";
const rows = JSON.parse(document.getElementById("data").textContent).map((r, i) => ({
  i, name: r[0], reads: r[1], raises: r[2], contexts: r[3], fires: r[4],
  density: r[5], maximum: r[6], mean: r[7]}));
for (const r of rows) {
  r.contexts_ = (r.fires + "  " + r.contexts).toLowerCase();
  r.reads_ = r.reads.toLowerCase();
  r.raises_ = r.raises.toLowerCase();
  r.all_ = [r.name, r.contexts_, r.reads_, r.raises_].join("  ");
}
const box = document.getElementById("q"), where = document.getElementById("in");
const more = document.getElementById("more"), body = document.getElementById("rows");
const sorts = [...document.querySelectorAll("button[data-by]")];
let by = "name", reverse = false, limit = 100;

function ordered(found) {
  const sign = reverse ? -1 : 1;
  if (by === "name") return reverse ? found.reverse() : found;
  return found.sort((a, b) => {
    if (a[by] === null || b[by] === null) return (a[by] === null) - (b[by] === null);
    return sign * (b[by] - a[by]) || a.i - b.i;
  });
}
function cell(row, content, kind) {
  const td = row.insertCell();
  td.append(content);
  td.className = kind;
  return td;
}
function excerpt(contexts, words) {
  const small = document.createElement("small");
  small.textContent = contexts.find(c => words.some(w => c.toLowerCase().includes(w)))
    || contexts[0];
  return small;
}
function digits(x, percent) {
  if (x === null) return "–";
  return percent ? (100 * x).toPrecision(3) + "%" : String(Number(x.toPrecision(3)));
}
function show() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean), field = where.value + "_";
  const found = ordered(rows.filter(r => words.every(w => r[field].includes(w))));
  body.replaceChildren();
  for (const r of found.slice(0, limit)) {
    const row = body.insertRow(), link = document.createElement("a");
    link.href = r.name + ".html";
    link.textContent = r.name;
    cell(row, link, "t");
    const first = cell(row, r.density === 0 ? "(never active)" : r.fires || r.reads, "t");
    first.append(excerpt(r.contexts.split(" … "), words));
    cell(row, r.raises, "t");
    cell(row, digits(r.density, true), "n");
    cell(row, digits(r.maximum), "n");
    cell(row, digits(r.mean), "n");
  }
  const n = found.length.toLocaleString("en"), all = rows.length.toLocaleString("en");
  const shown = found.length > limit ? ", the first " + limit + " shown" : "";
  document.getElementById("status").textContent = n + " of " + all + " features" + shown;
  more.hidden = found.length <= limit;
  for (const s of sorts) {
    const up = by === "name" ? !reverse : reverse;
    if (s.dataset.by === by)
      s.parentNode.setAttribute("aria-sort", up ? "ascending" : "descending");
    else s.parentNode.removeAttribute("aria-sort");
  }
}
function write() {
  const state = new URLSearchParams();
  if (box.value) state.set("q", box.value);
  if (where.value !== "all") state.set("in", where.value);
  if (by !== "name") state.set("by", by);
  if (reverse) state.set("reverse", "1");
  history.replaceState(null, "", "#" + state);
  limit = 100;
  show();
}
function read() {
  const state = new URLSearchParams(location.hash.slice(1));
  box.value = state.get("q") || "";
  const field = state.get("in"), column = state.get("by");
  where.value = [...where.options].some(o => o.value === field) ? field : "all";
  by = sorts.some(s => s.dataset.by === column) ? column : "name";
  reverse = state.get("reverse") === "1";
  limit = 100;
  show();
}
box.addEventListener("input", write);
where.addEventListener("change", write);
box.form.addEventListener("submit", e => e.preventDefault());
for (const s of sorts) s.addEventListener("click", () => {
  reverse = s.dataset.by === by && !reverse;
  by = s.dataset.by;
  write();
});
more.addEventListener("click", () => { limit += 100; show(); });
addEventListener("hashchange", read);
read();
"""
