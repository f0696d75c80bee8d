"""From the settings of a command to a spliced model."""

import warnings
from collections.abc import Sequence

import typer

from circuits import DictionarySet, SplicedModel, SubjectModel, load_dictionaries, load_model

__all__ = ["load_spliced", "splice"]


def load_spliced(
    model: str,
    dictionaries: str,
    *,
    sites: Sequence[str] = ("mlp",),
    layers: Sequence[int] | None = None,
    check: bool,
) -> SplicedModel:
    """The model with the dictionaries asked for, neither more nor fewer.

    Dictionaries are opened first: a mistake in them shows before the model takes its time.

    Raises:
        ValueError: if a model, file, site or layer is not there, widths disagree, or (with `check`)
            a dictionary does not fit the model as it is declared.
    """
    found = load_dictionaries(dictionaries, sites=sites, layers=layers)
    wanted = {f"{site}.{layer}" for site in sites for layer in layers or ()}
    wanted |= {next((key for key in found if key.startswith(f"{s}.")), f"{s}.0") for s in sites}
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(
            f"{dictionaries!r} holds no dictionary {', '.join(missing)}; of these it holds "
            f"{', '.join(found)}"
        )
    return splice(load_model(model), found, check=check)


def splice(model: SubjectModel, dictionaries: DictionarySet, *, check: bool) -> SplicedModel:
    """`SplicedModel`; that its dictionaries were not checked is said in red."""
    if check:
        return SplicedModel(model, dictionaries)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spliced = SplicedModel(model, dictionaries, check=False)
    for warning in caught:
        typer.secho(f"Warning: {warning.message}", fg="red", bold=True, err=True)
    return spliced
