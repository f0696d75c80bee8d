"""A small GPT-2 in float64 with transcoders, one of them with a skip, and an SAE on attention."""

from typing import Any

import torch
import transformers

from circuits import SAE, Dictionary, SplicedModel, Transcoder, load_model

__all__ = ["N_FEATURES", "mixed_spliced"]

D_MODEL, N_FEATURES = 16, 24


def _dictionary(kind: type[Transcoder] | type[SAE], **extra: Any) -> Dictionary:
    d, f = D_MODEL, N_FEATURES
    parts = torch.randn(d, f), torch.randn(f, d) * 0.2, torch.randn(f) * 0.1, torch.randn(d) * 0.1
    return kind(*parts, **extra)


def mixed_spliced() -> SplicedModel:
    """Layers 0 and 2 have a transcoder, layer 1 an SAE on what attention writes."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20,
        n_embd=D_MODEL,
        n_layer=3,
        n_head=4,
        n_positions=16,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = load_model(transformers.GPT2LMHeadModel(config), dtype=torch.float64)
    dictionaries = {
        "mlp.0": _dictionary(Transcoder),
        "attn_out.1": _dictionary(SAE, site="attn_out", activation="topk", k=6),
        "mlp.2": _dictionary(Transcoder, W_skip=torch.randn(D_MODEL, D_MODEL) * 0.1),
    }
    return SplicedModel(model, dictionaries)
