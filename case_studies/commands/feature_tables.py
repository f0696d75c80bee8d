"""A feature's record on the terminal: tables for people, JSON for machines."""

from dataclasses import asdict
from typing import Any

import typer

from case_studies.commands.display import print_table
from case_studies.dashboard.finding import finding
from case_studies.dashboard.markup import number, visible
from case_studies.dashboard.neighbours import Neighbours
from case_studies.dashboard.records import FeatureRecord, FeatureWeights, Missing, Observed, Window

__all__ = ["feature_json", "print_feature"]

_LISTS = {
    "deembedding": "tokens it reads (de-embedding)",
    "deembedding_extended": "tokens it reads once layer 0 has read them (extended de-embedding)",
    "promoted": "logits it raises",
    "suppressed": "logits it lowers",
}
_NEIGHBOURS = {
    "upstream": "features that write into it (virtual weight)",
    "downstream": "features that read it (virtual weight)",
}
_NULL = (
    "z and p compare a weight with that of a random writing direction of the same length: p is\n"
    "the chance of one as large; p times the number looked at is how many chance would give."
)


def feature_json(record: FeatureRecord) -> dict[str, Any]:
    """Lists under their names, reasons of those that are missing under `missing`; what a scan saw
    under `observed`, if there was one.
    """
    out: dict[str, Any] = {"model": record.model, "feature": record.name, "missing": {}}
    for key in _LISTS:
        found = getattr(record.weights, key)
        if isinstance(found, Missing):
            out["missing"][key] = found.reason
        else:
            out[key] = [list(pair) for pair in found]
    if record.weights.logits_note:
        out["logits_note"] = record.weights.logits_note
    for key in _NEIGHBOURS:
        near: Neighbours = getattr(record.weights, key)
        out[key] = [[n.name, n.weight] for n in near.strongest]
        out[f"{key}_null"] = [{"z": n.z, "p": n.p} for n in near.strongest]
        out[f"{key}_looked_at"] = near.n_looked_at
        if near.obstacles:
            out["missing"][key] = list(near.obstacles)
    if isinstance(record.observed, Observed):
        out["observed"] = asdict(record.observed)
    return out


def print_feature(record: FeatureRecord, top: int) -> None:
    """The record as tables, each list cut at `top` rows."""
    typer.echo(finding(record))
    if isinstance(record.observed, Observed):
        _print_observed(record, record.observed, top)
    else:
        typer.echo(record.observed.reason + "\n")
    _print_weights(record.name, record.weights)


def _print_observed(record: FeatureRecord, seen: Observed, top: int) -> None:
    typer.echo(
        f"density {seen.density:.3%} ({seen.n_active:,} of {seen.n_tokens:,} tokens), "
        f"maximum {number(seen.maximum)}, mean where active {number(seen.mean_active)}\n"
    )
    if not seen.n_active:
        return
    rows = [[number(w.values[w.peak]), _marked(w)] for w in seen.top[:top]]
    print_table(f"{record.name}: top contexts", ["activation", "context"], rows)
    partners = [
        [p.name, f"{p.share:.1%}", number(p.lift), f"{p.n_together:,}"] for p in seen.partners[:top]
    ]
    title = f"{record.name}: active together with. {seen.partners_note}".strip()
    print_table(title, ["feature", "share", "lift", "tokens"], partners)


def _marked(window: Window) -> str:
    """A window on one line, its peak between double brackets."""
    shown = [visible(token) for token in window.tokens]
    shown[window.peak] = f"[[{shown[window.peak]}]]"
    return "".join(shown)


def _print_weights(name: str, weights: FeatureWeights) -> None:
    for key, title in _LISTS.items():
        found = getattr(weights, key)
        if isinstance(found, Missing):
            typer.echo(f"{name}: {title}: none to show: {found.reason}\n")
            continue
        rows = [[repr(what), f"{x:+.4g}"] for what, x in found]
        print_table(f"{name}: {title}", ["token", "score"], rows)
    if weights.logits_note:
        typer.echo(weights.logits_note + "\n")
    judged = False
    for key, title in _NEIGHBOURS.items():
        near: Neighbours = getattr(weights, key)
        for reason in near.obstacles:
            typer.echo(f"{name}: {title}: left out: {reason}\n")
        if near.n_looked_at:
            judged = True
            rows = [
                [n.name, f"{n.weight:+.4g}", f"{n.z:+.1f}", f"{n.p:.1e}"] for n in near.strongest
            ]
            full = f"{name}: {title}, strongest of {near.n_looked_at}"
            print_table(full, ["feature", "weight", "z", "p"], rows)
    if judged:
        typer.echo(_NULL)
