"""Indirect object identification (Wang et al. 2022): who was the thing given to?"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.targets import LogitDifference
from case_studies.tasks.frames import IOI_FRAMES, STORY_FRAMES
from case_studies.tasks.metrics import logit_difference, probability_of
from case_studies.tasks.task import Split, Task, TaskPrompt, check_request, single_token_words
from case_studies.tasks.word_lists import (
    HELD_OUT_NAMES,
    NAMES,
    OBJECTS,
    PLACES,
    STORY_NAMES,
    STORY_OBJECTS,
    STORY_PLACES,
)
from circuits.subject import SubjectModel

__all__ = ["FrameSet", "IoiTask", "Order"]

FrameSet = Literal["plain", "story"]

Order = Literal["ABBA", "BABA"]
"""ABBA introduces the indirect object first, BABA the subject."""

_FRAMES: dict[FrameSet, tuple[str, ...]] = {"plain": IOI_FRAMES, "story": STORY_FRAMES}
_PLACES: dict[FrameSet, tuple[str, ...]] = {"plain": PLACES, "story": STORY_PLACES}
_OBJECTS: dict[FrameSet, tuple[str, ...]] = {"plain": OBJECTS, "story": STORY_OBJECTS}
_NAMES: dict[Split, tuple[str, ...]] = {
    "held_out": HELD_OUT_NAMES,
    "seen": NAMES,
    "all": (*NAMES, *HELD_OUT_NAMES),
}
_ORDERS: tuple[Order, ...] = ("ABBA", "BABA")
_MIN_NAMES = 8
_MAX_MISSES = 100  # prompts drawn again in a row, before the words are taken to be exhausted


@dataclass(frozen=True)
class _Scene:
    """A frame with its place and object: all but the names."""

    frame: int
    template: str
    place: str
    object: str
    order: Order

    def text(self, indirect_object: str, first_subject: str, second_subject: str) -> str:
        pair = (indirect_object, first_subject)
        a, b = pair if self.order == "ABBA" else pair[::-1]
        return self.template.format(
            A=a, B=b, S=second_subject, place=self.place, object=self.object
        )


@dataclass(frozen=True)
class IoiTask(Task):
    """Prompts of both orders over several frames, each order and frame equally often.

    Args:
        frames: `plain`, ten sentences after the paper; or `story`, three in the words and names
            of a children's story, for models that know little else. Said, never found out: the
            wording must not be picked by the score it gives. `stories15m` prefers the indirect
            object in 77% of plain held-out prompts and in 99.7% of story prompts (300 of each).
        corruption: `abc` puts three fresh names in the three places (the paper's p_ABC; the logit
            difference of the clean names is then about 0); `flip` puts the indirect object in
            the subject's second place, which turns the answer round.
        aligned_frame: the one frame of aligned prompts.

    Raises:
        ValueError: if a choice does not exist.
    """

    name = "ioi"
    metric_name = "logit difference"
    question = "Of two people, one gives something: which feature path names the other?"
    expected = "The logit of the indirect object exceeds that of the subject, in both orders."

    frames: FrameSet = "plain"
    corruption: Literal["abc", "flip"] = "abc"
    aligned_frame: int = 0

    def __post_init__(self) -> None:
        for value, choices in (
            (self.frames, tuple(_FRAMES)),
            (self.corruption, ("abc", "flip")),
        ):
            if value not in choices:
                raise ValueError(f"want one of {', '.join(choices)}, got {value!r}")
        n_frames = len(_FRAMES[self.frames])
        if not 0 <= self.aligned_frame < n_frames:
            raise ValueError(f"aligned_frame must be in [0, {n_frames}), got {self.aligned_frame}")

    def groups(self, model: SubjectModel) -> tuple[str, ...]:
        """The two orders of names."""
        return _ORDERS

    def prompts(
        self,
        model: SubjectModel,
        n: int,
        *,
        seed: int,
        split: Split = "held_out",
        aligned_group: str | None = None,
    ) -> list[TaskPrompt]:
        """As `Task.prompts`; `split` is about the plain names, story names are all alike."""
        check_request(n, aligned_group, _ORDERS)
        rng = random.Random(seed)
        kinds = self._kinds(aligned_group)
        scenes = self._scenes(model, rng, kinds)
        names = STORY_NAMES if self.frames == "story" else _NAMES[split]
        names = _usable_names(model, names, _FRAMES[self.frames])
        drawn: dict[str, TaskPrompt] = {}
        misses = 0
        while len(drawn) < n:
            prompt = self._prompt(model, next(scenes), rng.sample(names, 5))
            misses = misses + 1 if prompt.clean in drawn else 0
            drawn.setdefault(prompt.clean, prompt)
            if misses == _MAX_MISSES:
                raise ValueError(
                    f"found only {len(drawn)} different prompts, want {n}; ask for fewer"
                )
        return list(drawn.values())

    def _kinds(self, aligned_group: str | None) -> list[tuple[int, Order]]:
        if aligned_group is None:
            return list(product(range(len(_FRAMES[self.frames])), _ORDERS))
        return [(self.aligned_frame, order) for order in _ORDERS if order == aligned_group]

    def _scenes(
        self, model: SubjectModel, rng: random.Random, kinds: Sequence[tuple[int, Order]]
    ) -> Iterator[_Scene]:
        """Scenes without end: each round, every kind once, in a new order."""
        places = single_token_words(model, _PLACES[self.frames], "places")
        objects = single_token_words(model, _OBJECTS[self.frames], "objects")
        while True:
            for frame, order in rng.sample(kinds, len(kinds)):
                text = _FRAMES[self.frames][frame]
                yield _Scene(frame, text, rng.choice(places), rng.choice(objects), order)

    def _prompt(self, model: SubjectModel, scene: _Scene, names: Sequence[str]) -> TaskPrompt:
        """The pair of prompts from five different names: indirect object, subject, three spare."""
        indirect_object, subject, *spare = names
        clean = scene.text(indirect_object, subject, subject)
        if self.corruption == "abc":
            corrupted = scene.text(*spare)
        else:
            corrupted = scene.text(indirect_object, subject, indirect_object)
        tokens = model.tokenize(clean)
        (io,) = _places(model, tokens, indirect_object, 1)
        s1, s2 = _places(model, tokens, subject, 2)
        return TaskPrompt(
            clean=clean,
            corrupted=corrupted,
            clean_tokens=tokens,
            corrupted_tokens=model.tokenize(corrupted),
            correct=torch.tensor([model.single_token(f" {indirect_object}")], device=model.device),
            wrong=torch.tensor([model.single_token(f" {subject}")], device=model.device),
            group=scene.order,
            frame=scene.frame,
            roles={"io": io, "s1": s1, "s1+1": s1 + 1, "s2": s2, "end": len(tokens) - 1},
        )

    def metric(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> Float[Tensor, " batch"]:
        """Logit of the indirect object minus logit of the subject."""
        return logit_difference(logits, [p.correct for p in prompts], [p.wrong for p in prompts])

    def succeeds(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> Bool[Tensor, " batch"]:
        """Whether the indirect object is likelier than the subject."""
        return self.metric(logits, prompts) > 0

    def target(self, prompt: TaskPrompt) -> LogitDifference:
        return LogitDifference(prompt.correct.tolist(), prompt.wrong.tolist())

    def further_metrics(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """The probability of the indirect object."""
        return {"probability_of_io": probability_of(logits, [p.correct for p in prompts])}


def _usable_names(
    model: SubjectModel, names: Sequence[str], frames: Sequence[str]
) -> tuple[str, ...]:
    """Names that are one token wherever the frames put them: after a space, and at the start.

    Raises:
        ValueError: if fewer than 8 are.
    """
    kept = single_token_words(model, names, "names", at_least=_MIN_NAMES)
    if any(frame.startswith("{") for frame in frames):
        kept = tuple(name for name in kept if len(_at_start(model, name)) == 1)
    if len(kept) < _MIN_NAMES:
        raise ValueError(
            f"only {len(kept)} of {len(names)} names are single tokens for {model.name!r} at the "
            f"start of a text, where story frames put them; want at least {_MIN_NAMES}, so use "
            "plain frames"
        )
    return kept


def _at_start(model: SubjectModel, name: str) -> list[int]:
    """Token ids of `name` as the first word of a text, without BOS."""
    assert model.tokenizer is not None, "single_token_words has refused a model without one"
    return model.tokenizer(name, add_special_tokens=False).input_ids


def _places(model: SubjectModel, tokens: Tensor, name: str, n: int) -> list[int]:
    """The `n` positions of `name` in `tokens`."""
    ids = {model.single_token(f" {name}"), *_at_start(model, name)[:1]}
    found = [position for position, token in enumerate(tokens.tolist()) if token in ids]
    if len(found) != n:
        raise ValueError(
            f"{name!r} should be {n} single tokens of {model.token_strings(tokens)}, found "
            f"{found}; the tokenizer of {model.name!r} splits it here"
        )
    return found
