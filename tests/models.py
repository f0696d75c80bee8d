"""Small random models on every architecture, a tokenizer, and random dictionaries.

All norm gains and biases are non-trivial, so that a term that is left out shows.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from circuits import SAE, Dictionary, SplicedModel, SubjectModel, Transcoder, load_model

ARCHITECTURES = ("gpt2", "neox_parallel", "neox_sequential", "llama_gqa", "qwen2", "gemma2")
DTYPES = (torch.float32, torch.float64)
D_MODEL, D_VOCAB, N_CTX, N_LAYERS, N_FEATURES = 32, 50, 24, 3, 40
TOKENS = torch.tensor([3, 17, 5, 5, 42, 9, 30])
WORDS = ("<bos>", " the", " a", " Mary", " John", " gave", " to", " war", " 17", "45", "46")

_SHAPE: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": N_CTX,
}
_GROUPED: dict[str, Any] = _SHAPE | {"num_key_value_heads": 2}


def _config(architecture: str) -> transformers.PretrainedConfig:
    match architecture:
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=D_VOCAB,
                n_embd=D_MODEL,
                n_layer=N_LAYERS,
                n_head=4,
                n_positions=N_CTX,
                bos_token_id=0,
                eos_token_id=0,
            )
        case "neox_parallel":
            return transformers.GPTNeoXConfig(use_parallel_residual=True, **_SHAPE)
        case "neox_sequential":
            return transformers.GPTNeoXConfig(use_parallel_residual=False, **_SHAPE)
        case "llama_gqa":
            return transformers.LlamaConfig(tie_word_embeddings=False, **_GROUPED)
        case "qwen2":
            return transformers.Qwen2Config(**_GROUPED)
        case "gemma2":
            return transformers.Gemma2Config(
                head_dim=12, attn_logit_softcapping=4.0, final_logit_softcapping=9.0, **_GROUPED
            )
        case "opt":
            return transformers.OPTConfig(
                vocab_size=D_VOCAB,
                hidden_size=D_MODEL,
                num_hidden_layers=2,
                ffn_dim=48,
                num_attention_heads=4,
                max_position_embeddings=N_CTX,
                word_embed_proj_dim=D_MODEL,
            )
        case _:
            raise ValueError(f"no architecture {architecture!r}; want one of {ARCHITECTURES}")


def hf_model(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A fresh transformers model, the same each time, eager attention, nothing left at 0 or 1."""
    config = _config(architecture)
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


@cache
def subject(architecture: str, dtype: torch.dtype = torch.float32) -> SubjectModel:
    """The architecture's model behind our adapter (shared: never change its weights)."""
    tied = hf_model(architecture, dtype)
    return load_model(tied, word_tokenizer(), dtype=dtype)


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words with their leading space as tokens, `<bos>` as BOS, `<unk>` for anything else."""
    vocab = {word: i for i, word in enumerate((*WORDS, "<unk>"))}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.Digits(), _pairs()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>")


def _pairs() -> Any:
    from tokenizers import Regex

    return pre_tokenizers.Split(Regex(r"\d\d"), "isolated")


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def _tensors(seed: int, n_features: int, d_model: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "W_enc": _normal(generator, d_model, n_features),
        "W_dec": 0.3 * _normal(generator, n_features, d_model),
        "b_enc": 0.1 * _normal(generator, n_features),
        "b_dec": 0.1 * _normal(generator, d_model),
    }


def _act(activation: str, n_features: int) -> dict[str, Any]:
    threshold = torch.full((n_features,), 0.5) if activation == "jumprelu" else None
    return {
        "activation": activation,
        "threshold": threshold,
        "k": 5 if activation == "topk" else None,
    }


def transcoder(
    activation: str = "jumprelu",
    *,
    skip: bool = False,
    seed: int = 0,
    n_features: int = N_FEATURES,
    d_model: int = D_MODEL,
) -> Transcoder:
    """A random transcoder."""
    generator = torch.Generator().manual_seed(seed + 1000)
    W_skip = 0.1 * _normal(generator, d_model, d_model) if skip else None
    tensors = _tensors(seed, n_features, d_model)
    return Transcoder(**tensors, **_act(activation, n_features), W_skip=W_skip)


def sae(
    site: str,
    activation: str = "topk",
    *,
    seed: int = 0,
    n_features: int = N_FEATURES,
    d_model: int = D_MODEL,
) -> SAE:
    """A random SAE."""
    tensors = _tensors(seed, n_features, d_model)
    return SAE(**tensors, **_act(activation, n_features), site=site)


def perfect_sae(site: str, d_model: int = D_MODEL) -> SAE:
    """An SAE that gives back its input: `relu(x) - relu(-x) = x`."""
    eye = torch.eye(d_model)
    return SAE(
        W_enc=torch.cat([eye, -eye], 1),
        W_dec=torch.cat([eye, -eye], 0),
        b_enc=torch.zeros(2 * d_model),
        b_dec=torch.zeros(d_model),
        site=site,
    )


MIXTURES: dict[str, Mapping[str, Dictionary]] = {
    "none": {},
    "transcoders": {f"mlp.{layer}": transcoder("relu", seed=layer) for layer in range(N_LAYERS)},
    "skip": {
        "mlp.0": transcoder(skip=True),
        "mlp.1": transcoder("topk", skip=True, seed=1),
        "mlp.2": transcoder("jumprelu", skip=True, seed=2),
    },
    "residual": {
        "resid_pre.0": sae("resid_pre", seed=3),
        "resid_post.0": sae("resid_post", "jumprelu", seed=4),
        "resid_post.2": sae("resid_post", "relu", seed=5),
    },
    "mixed": {
        "mlp.0": transcoder(skip=True),
        "attn_out.0": sae("attn_out", seed=6),
        "resid_pre.1": sae("resid_pre", seed=7),
        "attn_out.1": sae("attn_out", "relu", seed=8),
        "mlp_out.1": sae("mlp_out", seed=9),
        "mlp.2": transcoder("topk", seed=10),
    },
}
"""Dictionaries of every kind at every site, in combinations that test how they cut the stream."""


def spliced(
    architecture: str, mixture: str = "mixed", dtype: torch.dtype = torch.float32
) -> SplicedModel:
    """A shared model with one of `MIXTURES` in it."""
    return SplicedModel(subject(architecture, dtype), MIXTURES[mixture])
