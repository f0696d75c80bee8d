"""Every word in the circuit figure: labels, hovers, captions. Plain strings in, Plotly HTML out."""

import html
import textwrap
from collections.abc import Mapping, Sequence

from attribution.nodes import Node
from graphs.circuit_graph import GraphMetadata
from graphs.node_notes import NodeNotes

__all__ = [
    "default_title",
    "edge_hover",
    "escape",
    "node_hover",
    "node_name",
    "proof_lines",
    "quote_token",
    "shorten",
    "show_token",
    "wrap",
]

_N_TOKENS = 8
_PROOF_WIDTH = 33


def escape(text: str) -> str:
    """Make `text` safe inside Plotly's HTML."""
    return html.escape(text, quote=False)


def shorten(text: str, width: int) -> str:
    """Cut `text` to at most `width` characters, the last one an ellipsis if any is lost."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def show_token(token: str, width: int = 14) -> str:
    """A token as an axis label: no outer spaces, line breaks made visible, escaped."""
    visible = token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return escape(shorten(visible.strip() or "␣", width))


def quote_token(token: str) -> str:
    """A token in quotation marks, spaces kept."""
    visible = token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return escape(f"“{visible}”")


def wrap(text: str, width: int) -> list[str]:
    """Break `text` into lines of at most about `width` characters, each escaped."""
    return [escape(line) for line in textwrap.wrap(text, width)] or [""]


def node_name(node: Node, notes: NodeNotes | None) -> str:
    """The label of `notes`, or a short name such as `mlp2.345`; not escaped."""
    if notes is not None and notes.label:
        return notes.label
    match node.kind:
        case "output":
            return node.site
        case "error" | "sublayer":
            return f"{node.kind} {node.site}{node.layer}"
        case _:
            return node.id.split("@")[0]


def node_hover(
    node: Node, notes: NodeNotes | None, influence: float, metadata: GraphMetadata
) -> str:
    """Kind, place, activation, influence (a share of the outputs, in percent) and top tokens."""
    lines = [f"<b>{escape(node_name(node, notes))}</b>", _place(node, metadata)]
    if node.kind in ("feature", "output"):
        word = "activation" if node.kind == "feature" else "value"
        lines.append(f"{word} {node.activation:.4g}")
    if node.kind != "output":
        lines.append(f"influence {influence:.2%} of the output")
    if notes is not None:
        lists = {
            "reads (de-embedding)": notes.deembedding,
            "promotes": notes.promoted,
            "suppresses": notes.suppressed,
        }
        lines += [_token_line(name, tokens) for name, tokens in lists.items() if tokens]
    return "<br>".join(lines)


def edge_hover(
    source: Node, target: Node, names: tuple[str, str], attribution: float, influence: float
) -> str:
    """Both ends, the signed attribution in the target's units, and the influence in percent."""
    source_name, target_name = (escape(name) for name in names)
    return (
        f"<b>{source_name}</b> → <b>{target_name}</b><br>"
        f"{escape(source.id)} → {escape(target.id)}<br>"
        f"attribution {attribution:+.4g}<br>influence {influence:.2%} of the output"
    )


def default_title(metadata: GraphMetadata) -> str:
    """What stands over a figure without a finding; not escaped."""
    return f"What drives {metadata.target} in {metadata.model}"


def proof_lines(proof: Mapping[str, str]) -> list[str]:
    """The proof panel: one `name: value` an entry, long ones broken."""
    lines = ["<b>Proof</b>"]
    for name, value in proof.items():
        first, *rest = wrap(f"{name}: {value}", _PROOF_WIDTH)
        lines += [first, *(f"   {line}" for line in rest)]
    return lines


def _place(node: Node, metadata: GraphMetadata) -> str:
    parts = [f"{node.kind} {escape(node.id)}"]
    if node.kind == "feature":
        parts = [f"feature {node.feature} of {escape(node.site)} in layer {node.layer}"]
    if 0 <= node.pos < len(metadata.tokens):
        parts.append(f"at token {node.pos} {quote_token(metadata.tokens[node.pos])}")
    return " ".join(parts)


def _token_line(name: str, tokens: Sequence[str]) -> str:
    return f"{name}: " + " ".join(quote_token(token) for token in tokens[:_N_TOKENS])
