"""Small random models for the training tests."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from circuits import SubjectModel, load_model


def small_gpt2(seed: int = 0) -> SubjectModel:
    """Two layers of width 16 with weights large enough for ablations to matter."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=40,
        n_positions=24,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return load_model(GPT2LMHeadModel(config))


def small_llama(seed: int = 0) -> SubjectModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return load_model(LlamaForCausalLM(config))


def random_rows(n_rows: int, context: int = 12, seed: int = 0) -> torch.Tensor:
    """Token rows that begin with BOS (0), the others without it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 40, (n_rows, context), generator=generator)
    rows[:, 0] = 0
    return rows
