"""The tokenizer of `tiny`: byte-level BPE in which every two-digit number is one token."""

import random
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from case_studies.tasks.word_lists import (
    HELD_OUT_NAMES,
    HELD_OUT_NOUNS,
    NAMES,
    NOUNS,
    OBJECTS,
    PLACES,
)
from case_studies.tiny.corpus import ioi_document

__all__ = ["train_tokenizer"]

BOS = "<|endoftext|>"
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _must_be_tokens() -> Iterator[str]:
    """Text in which every word the tasks need is frequent enough to become one token."""
    words = (*NAMES, *HELD_OUT_NAMES, *PLACES, *OBJECTS, *NOUNS, *HELD_OUT_NOUNS)
    numbers = [f"{n:02d}" for n in range(100)]
    for _ in range(3000):
        yield "".join(f" {word}" for word in words)
        yield "".join(f" {n}{n}" for n in numbers)
    rng = random.Random(0)
    for _ in range(2000):
        yield "".join(ioi_document(rng))


def train_tokenizer(prose: Iterable[str], d_vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `d_vocab` tokens; digits come in pairs, and encoding prepends BOS.

    Every name, place, object and noun of the tasks is a single token after a space, and
    every two-digit number is one both with and without a leading space.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*prose, *_must_be_tokens()), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS)
