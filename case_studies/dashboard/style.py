"""The frame and the look of every page: no request leaves it, light and dark as the reader has it.

The hues are those of the circuit figure: blue raises, vermilion lowers.
"""

from case_studies.dashboard.markup import Html, join, tag, text
from case_studies.dashboard.shades import THEMES, step_rules
from graphs.figure_style import SIGN_STYLES

__all__ = ["document"]


def document(title: str, *body: Html, script: Html | None = None) -> Html:
    """A whole HTML page; with `script`, elements that go at its end."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", text(title)),
        tag("style", Html(_STYLE)),
    )
    page = tag("html", head, tag("body", *body, script or Html("")), lang="en")
    return join(Html("<!doctype html>\n"), page, Html("\n"))


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses what a page should never do: load anything."""


def _variables(theme: str) -> str:
    colours = {name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in THEMES[theme].items()}
    soft, rule, link = _GREYS[theme]
    return (
        f":root{{--page:{colours['page']};--text:{colours['text']};--line:{colours['line']};"
        f"--soft:{soft};--rule:{rule};--link:{link}}}\n{step_rules(theme)}"
    )


_GREYS = {
    "light": ("#595f66", "#d5dade", "#00588f"),
    "dark": ("#a6aeb6", "#3a4148", "#7cc4ee"),
}
"""Text of less weight, rules, links."""

_STYLE = f"""
{_variables("light")}
@media (prefers-color-scheme:dark){{
{_variables("dark")}
}}
:root{{--raises:{SIGN_STYLES[1].color};--lowers:{SIGN_STYLES[-1].color}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:70rem;padding:1rem 1.25rem 3rem;background:var(--page);
color:var(--text);font:15px/1.5 system-ui,sans-serif}}
h1{{font-size:1.4rem;line-height:1.3;margin:.6rem 0 .4rem;overflow-wrap:anywhere}}
h2{{font-size:1.05rem;margin:0 0 .35rem}}
h3{{font-size:.9rem;font-weight:600;margin:.9rem 0 .2rem;color:var(--soft)}}
a{{color:var(--link)}}
:focus-visible{{outline:2px solid var(--link);outline-offset:2px}}
nav{{display:flex;gap:1.2rem;flex-wrap:wrap;font-size:.9rem}}
section{{border-top:1px solid var(--rule);padding-top:.7rem;margin-top:1.1rem;min-width:0}}
.note{{color:var(--soft);font-size:.88rem;margin:.2rem 0 .5rem;max-width:46rem}}
.grid{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));column-gap:2rem}}
dl{{display:flex;flex-wrap:wrap;gap:.3rem 1.6rem;margin:.3rem 0}}
dt{{color:var(--soft);font-size:.8rem}}
dd{{margin:0;font-variant-numeric:tabular-nums}}
code,.w,.t{{font-family:ui-monospace,monospace;font-size:.86rem}}
code{{overflow-wrap:anywhere}}
.w{{display:flex;gap:.8rem;margin:0;padding:.15rem .2rem;border-bottom:1px solid var(--rule)}}
.w b{{flex:0 0 4.2rem;text-align:right;font-weight:600}}
.w div{{white-space:pre-wrap;overflow-wrap:anywhere;min-width:0;line-height:1.75}}
.w i{{font-style:normal;padding:.1rem 0 .2rem}}
.w .peak{{font-weight:700;outline:1px solid var(--line)}}
.w:focus i[title]::after{{content:" "attr(title)" ";font-weight:400;font-size:.72rem}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
th{{text-align:left;font-weight:600;font-size:.8rem;color:var(--soft);padding:.1rem .4rem .1rem 0}}
td{{padding:.1rem .4rem .1rem 0;vertical-align:top;overflow-wrap:anywhere}}
tr{{border-bottom:1px solid var(--rule)}}
.t a,td.f{{white-space:nowrap}}
.n{{text-align:right;white-space:nowrap}}
.bar{{width:38%;min-width:4rem}}
.bar i{{display:block;height:.65rem;margin-top:.4rem;background:var(--raises);border-radius:1px}}
.bar .minus{{background:var(--lowers)}}
svg{{max-width:46rem;width:100%;height:auto;display:block}}
svg rect{{fill:var(--raises)}}
svg text{{fill:var(--soft);font:11px system-ui,sans-serif}}
svg line{{stroke:var(--rule)}}
form{{display:flex;flex-wrap:wrap;gap:.6rem;align-items:end;margin:.8rem 0}}
label{{font-size:.85rem;color:var(--soft);display:grid;gap:.15rem}}
input,select,button{{font:inherit;color:var(--text);background:var(--page);
border:1px solid var(--soft);border-radius:3px;padding:.25rem .5rem}}
input{{width:min(26rem,80vw)}}
th button{{border:0;padding:0;font-weight:600;color:var(--link);cursor:pointer}}
td small{{display:block;color:var(--soft)}}
th[aria-sort=descending] button::after{{content:" ↓"}}
th[aria-sort=ascending] button::after{{content:" ↑"}}
footer{{margin-top:1.5rem;border-top:1px solid var(--rule);padding-top:.6rem;font-size:.88rem}}
"""
