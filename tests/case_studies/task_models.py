"""Small random models with tokenizers that write names and years in the ways that matter."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from case_studies.tasks.frames import GREATER_THAN_FRAME, STORY_FRAMES
from case_studies.tasks.word_lists import (
    HELD_OUT_NOUNS,
    NOUNS,
    STORY_NAMES,
    STORY_OBJECTS,
    STORY_PLACES,
)
from case_studies.tiny.tokenizer import train_tokenizer
from circuits import SubjectModel, Transcoder, load_model
from circuits.checkpoints import save_dictionary

PROSE = ("When people went to the store they gave a drink to the others and said so.",) * 50
N_LAYERS, D_MODEL, N_FEATURES = 2, 16, 24


@cache
def two_digit_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of `tiny`, on little prose: " 17" and "32", names only after a space."""
    return train_tokenizer(PROSE, 2000)


@cache
def word_tokenizer(numbers: str) -> PreTrainedTokenizerFast:
    """Whole words as tokens, with and without a space in front; `numbers` is a regex for digits."""
    sentences = (GREATER_THAN_FRAME, *STORY_FRAMES)
    words = [word.strip(".,{}") for text in sentences for word in text.split()]
    words += [*NOUNS, *HELD_OUT_NOUNS, *STORY_NAMES, *STORY_PLACES, *STORY_OBJECTS, "a"]
    digits = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
    pieces = ["<unk>", *words, *(f" {w}" for w in words), *digits, ".", ",", " "]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    pattern = Regex(rf"{numbers}| ?\p{{L}}+|\p{{P}}|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def random_gpt2(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=32,
            n_embd=D_MODEL,
            n_layer=N_LAYERS,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@cache
def two_digit_model() -> SubjectModel:
    return load_model(random_gpt2(two_digit_tokenizer()), two_digit_tokenizer())


@cache
def word_model(numbers: str = r"\p{N}") -> SubjectModel:
    """Single digits by default, as SmolLM2 and Llama have them."""
    return load_model(random_gpt2(word_tokenizer(numbers)), word_tokenizer(numbers))


def write_model(folder: Path) -> None:
    """A Hugging Face folder of a random model with the two-digit tokenizer."""
    random_gpt2(two_digit_tokenizer()).save_pretrained(folder)
    two_digit_tokenizer().save_pretrained(folder)


def write_dictionaries(folder: Path, *, d_model: int = D_MODEL) -> None:
    """Random transcoders for both layers."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for layer in range(N_LAYERS):
        transcoder = Transcoder(
            W_enc=random(d_model, N_FEATURES),
            W_dec=random(N_FEATURES, d_model),
            b_enc=random(N_FEATURES),
            b_dec=random(d_model),
        )
        save_dictionary(transcoder, folder / f"mlp.{layer}.safetensors", layer=layer, model="x")
