"""The sentences of the two tasks, as plain strings: no model, no tokenizer."""

import random
from dataclasses import dataclass

from case_studies.tasks.word_lists import OBJECTS, PLACES

__all__ = [
    "GREATER_THAN_FRAME",
    "IOI_FRAMES",
    "STORY_FRAMES",
    "IoiSentence",
    "is_held_out_year",
    "sample_ioi",
]

IOI_FRAMES = (
    "When {A} and {B} went to the {place}, {S} gave a {object} to",
    "When {A} and {B} got a {object} at the {place}, {S} decided to give it to",
    "After {A} and {B} went to the {place}, {S} gave a {object} to",
    "Then, {A} and {B} went to the {place}. {S} gave a {object} to",
    "Then, {A} and {B} had a long argument, and afterwards {S} said to",
    "Then, {A} and {B} were working at the {place}. {S} decided to give a {object} to",
    "While {A} and {B} were working at the {place}, {S} gave a {object} to",
    "While {A} and {B} were commuting to the {place}, {S} gave a {object} to",
    "After the lunch, {A} and {B} went to the {place}. {S} gave a {object} to",
    "The {place} {A} and {B} went to had a {object}. {S} gave it to",
)
"""After Wang et al. 2022: of two people introduced, one (S) gives something "to" the other."""

STORY_FRAMES = (
    "{A} and {B} went to the {place}. {S} gave a {object} to",
    "One day, {A} and {B} were playing in the {place}. {S} gave a {object} to",
    "{A} and {B} were best friends. They went to the {place}. {S} wanted to give a {object} to",
)
"""The same question in the words of a children's story, for models trained on TinyStories."""

GREATER_THAN_FRAME = "The {noun} lasted from the year {start} to the year {century}"
"""Hanna et al. 2023; `start` is a four-digit year, `century` its first two digits."""


@dataclass(frozen=True)
class IoiSentence:
    """One filled frame: the prompt without its answer, and who is who in it."""

    text: str
    indirect_object: str
    subject: str
    indirect_object_first: bool


def sample_ioi(
    rng: random.Random, names: tuple[str, ...], frames: tuple[str, ...] = IOI_FRAMES
) -> IoiSentence:
    """Fill one frame with two different names in random order, a place and an object."""
    indirect_object, subject = rng.sample(names, 2)
    first = rng.random() < 0.5
    pair = (indirect_object, subject) if first else (subject, indirect_object)
    text = rng.choice(frames).format(
        A=pair[0], B=pair[1], S=subject, place=rng.choice(PLACES), object=rng.choice(OBJECTS)
    )
    return IoiSentence(text, indirect_object, subject, first)


def is_held_out_year(year: int) -> bool:
    """One year in five never starts a task document `tiny` was trained on; every YY is both."""
    return (year // 100 * 7 + year % 100) % 5 == 0
