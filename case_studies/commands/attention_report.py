"""How `circuits attention` shows its records: tables on stdout, and a report."""

import re
from itertools import zip_longest
from typing import Any

from case_studies.commands.display import addends, markdown_table, shares

__all__ = ["heading", "remarks", "report", "tables"]

Table = tuple[str, list[str], list[list[str]]]

_HEAD = re.compile(r"sublayer\.head(\d+)\.attn(\d+)")
_PAIRS = (
    "value = prompt part x weights part. The prompt part is activations over norm denominators; "
    "the\nweights part is what the head's query and key matrices make of the two sources."
)
_NOT_INVARIANT = (
    "* Not of model weights alone: what an error or a head writes was itself made by this prompt."
)
_LISTED = 2


def heading(record: dict[str, Any]) -> str:
    """Which head, from where, and what it is asked."""
    at = f"{record['model']}, head {record['layer']}.{record['head']} at " + _at(record, "query")
    match record["kind"]:
        case "score":
            return f"{at} looks at {_looks(record)}"
        case "contrast":
            return (
                f"{at} looks at {_looks(record['here'])}\nrather than at {_looks(record['there'])}"
            )
        case _:
            return at


def _at(record: dict[str, Any], end: str) -> str:
    return f"{record[end]} {record[f'{end}_token']!r}"


def _looks(score: dict[str, Any]) -> str:
    return f"{_at(score, 'key')}: score {score['score']:+.4g}, attention {score['pattern']:.1%}"


def tables(record: dict[str, Any], top: int) -> list[Table]:
    """A title, columns and rows of each table; of a row of attention the `top` keys.

    All columns of values add up to what the record explains.
    """
    if record["kind"] == "row":
        return [_row_table(record, top)]
    return [_sides_table(record), _pairs_table(record)]


def _explained(record: dict[str, Any]) -> tuple[str, float]:
    if record["kind"] == "contrast":
        return "the difference", record["difference"]
    return "the score", record["score"]


def _sides_table(record: dict[str, Any]) -> Table:
    """The strongest sources at the query beside the strongest at the key."""
    sides = [_side(record, "by_query_source"), _side(record, "by_key_source")]
    rows = [[*query, *key] for query, key in zip_longest(*sides, fillvalue=[""] * 3)]
    columns = ["source at the query", "label", "value", "source at the key", "label", "value"]
    return "Each side summed over the other", columns, rows


def _side(record: dict[str, Any], side: str) -> list[list[str]]:
    (name, total), contrast = _explained(record), record["kind"] == "contrast"
    values = [source["value"] for source in record[side]]
    values += [total - sum(values), total]
    names = [
        (
            _called(source["source"], source.get("key", -1), contrast),
            record["labels"].get(source["source"], ""),
        )
        for source in record[side]
    ]
    cells = zip([*names, ("others", ""), (name, "")], addends(values), strict=True)
    return [[*shown, value] for shown, value in cells]


def _pairs_table(record: dict[str, Any]) -> Table:
    (name, total), contrast = _explained(record), record["kind"] == "contrast"
    labels = record["labels"]
    rows = [
        [
            _called(pair["query_source"]),
            labels.get(pair["query_source"], ""),
            _called(pair["key_source"], pair["key"], contrast),
            labels.get(pair["key_source"], ""),
            f"{pair['weights_part']:+.3g}{'' if pair['weights_only'] else ' *'}",
        ]
        for pair in record["pairs"]
    ]
    rows.append([f"{record['n_other_pairs']} others", "", "", "", ""])
    rows.append([name, "", "", "", ""])
    values = [*(pair["value"] for pair in record["pairs"]), record["other_pairs"], total]
    cells = zip(rows, addends(values), shares(values, total), strict=True)
    columns = ["query source", "label", "key source", "label", "weights", "value", "share"]
    return "Pairs of sources", columns, [[*row, value, share] for row, value, share in cells]


def _row_table(record: dict[str, Any], top: int) -> Table:
    keys, others = record["keys"][:top], record["keys"][top:]
    rows = [
        [
            str(key["key"]),
            repr(key["key_token"]),
            f"{key['pattern']:.1%}",
            f"{key['score']:+.3g}",
            ", ".join(
                f"{_called(source['source']).split('@')[0]} {source['value']:+.2g}"
                for source in key["strongest"][:_LISTED]
            ),
        ]
        for key in keys
    ]
    if others:
        rest = sum(key["pattern"] for key in others)
        rows.append([f"{len(others)} others", "", f"{rest:.1%}", "", ""])
    columns = ["key", "token", "attention", "score", "strongest sources at the key"]
    return "What it looks at", columns, rows


def _called(source: str, key: int = -1, contrast: bool = False) -> str:
    """An id as shown: a head's output under the head's usual name; in a contrast with its key."""
    shown = _HEAD.sub(r"head \2.\1", source)
    return f"{shown} at {key}" if contrast and key >= 0 and "@" not in source else shown


def remarks(record: dict[str, Any]) -> list[str]:
    """How to read the tables."""
    if record["kind"] == "row":
        return [
            "Attention is the softmax of the scores; the sources of a key add up to its score.\n"
            "Why one of them: --key."
        ]
    lines = [_PAIRS]
    if any(not pair["weights_only"] for pair in record["pairs"]):
        lines.append(_NOT_INVARIANT)
    return [*lines, *(_of_contrast(record) if record["kind"] == "contrast" else _of_score(record))]


def _of_score(record: dict[str, Any]) -> list[str]:
    lines = [
        "The softmax compares scores: what raises those of all keys alike moves no attention; see\n"
        "--instead-of."
    ]
    if record["softcap"]:
        lines.append(f"The softcap makes the score {record['capped_score']:+.4g}.")
    return lines


def _of_contrast(record: dict[str, Any]) -> list[str]:
    here, there = record["here"], record["there"]
    after = " after the softcap" if here["softcap"] else ""
    return [
        f"log(attention at {here['key']} / attention at {there['key']}) = "
        f"{record['log_ratio']:+.4g}{after}; what is at {there['key']} counts with the opposite "
        "sign."
    ]


def report(record: dict[str, Any], top: int) -> str:
    """The same as Markdown."""
    parts = [f"# {heading(record)}".replace("\n", " "), f"On {record['prompt']!r}."]
    for title, columns, rows in tables(record, top):
        parts += [f"## {title}", markdown_table(columns, rows)]
    return "\n\n".join([*parts, "\n".join(remarks(record))]) + "\n"
