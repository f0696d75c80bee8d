"""The command line: `circuits VERB`. Importing it loads no command, no torch and no model."""

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "study": "Find and prove the circuit of a task: greater-than or ioi.",
    "frontier": "Size against faithfulness: features, neurons, heads and random circuits.",
    "overlap": "Compare circuits: what they share, against chance, by layer and role.",
    "intervene": "Change nodes on the real model, see metric and text; test a graph.",
    "attribute": "Explain a model's next token, or a feature, on one prompt; draw the circuit.",
    "edge": "Split one edge of a prompt's graph over paths, and every path into factors.",
    "attention": "Show why a head looks where it looks, as pairs of sources that add up.",
    "feature": "Show what features read and write, and when they are active; write their pages.",
    "train": "Train transcoders and SAEs for a model, resumably.",
    "evaluate": "Measure the fidelity of dictionaries: L0, FVU, CE recovered, KL, density.",
    "compare": "Compare kinds of dictionaries at equal L0, with seeds and intervals.",
    "scan": "Record when every feature of every layer is active, in one pass over a corpus.",
    "convert": "Write dictionaries in the format of another program.",
    "exchange": "Hand a circuit on to another program, or take one from it.",
    "models": "List models and published dictionaries, and whether they are here.",
}
"""Verb -> one line of help. A verb lives in `case_studies.commands.VERB` as `command`."""


class _LazyGroup(TyperGroup):
    """Commands are known by name and help alone; the one that is called is imported."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest


def _load(name: str) -> Any:
    from case_studies.commands.errors import reporting_errors
    from circuits.memory import keep_freed_memory

    keep_freed_memory()
    module = importlib.import_module(f"case_studies.commands.{name}")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name)(reporting_errors(module.command))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find, prove and show circuits of features in language models.",
)


@app.callback()
def _group() -> None:
    """Only so that a single verb would still be a verb."""


def _stub() -> None:
    """Never called: `_LazyGroup` puts the real command in its place."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_stub)


def main() -> None:
    """What the script `circuits` runs."""
    app(prog_name="circuits")
