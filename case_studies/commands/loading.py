"""From the settings of a command to a spliced model."""

from collections.abc import Sequence

from circuits import SplicedModel, load_dictionaries, load_model

__all__ = ["load_spliced"]


def load_spliced(
    model: str,
    dictionaries: str,
    *,
    sites: Sequence[str] = ("mlp",),
    layers: Sequence[int] | None = None,
) -> SplicedModel:
    """The model with the dictionaries asked for, neither more nor fewer.

    Dictionaries are read first: a mistake in them shows before the model takes its time.

    Raises:
        ValueError: if a model, file, site or layer is not there, or widths disagree.
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
    return SplicedModel(load_model(model), found)
