"""What every task has: prompts in pairs, a metric, success, and something to attribute."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.targets import Target
from circuits.subject import SubjectModel

__all__ = ["Split", "Task", "TaskPrompt", "check_request", "single_token_words"]

Split = Literal["held_out", "seen", "all"]
"""Words and years to draw from: those `tiny` never met in a task document, those it did, all."""


@dataclass(frozen=True, eq=False)
class TaskPrompt:
    """One clean prompt, its corrupted twin of the same length, and the answers.

    Args:
        clean: the prompt; the model is to say what comes next.
        corrupted: the same sentence with what decides the answer taken out.
        clean_tokens: `clean` as the model reads it, BOS included where the model uses one.
        corrupted_tokens: likewise.
        correct: ids of the right answers (to the clean prompt).
        wrong: ids of the wrong answers.
        group: what to report apart: the order of names, or the form of the number.
        frame: index of the sentence frame.
        roles: name -> token position, the same in both prompts; always holds `end`.

    Raises:
        ValueError: if the prompts differ in length, there is no answer, an answer is both right
            and wrong, or a role lies outside the prompt.
    """

    clean: str
    corrupted: str
    clean_tokens: Int[Tensor, " pos"]
    corrupted_tokens: Int[Tensor, " pos"]
    correct: Int[Tensor, " n_correct"]
    wrong: Int[Tensor, " n_wrong"]
    group: str
    frame: int
    roles: dict[str, int]

    def __post_init__(self) -> None:
        n_pos = len(self.clean_tokens)
        if len(self.corrupted_tokens) != n_pos:
            raise ValueError(
                f"clean and corrupted prompts must have equally many tokens, got {n_pos} for "
                f"{self.clean!r} and {len(self.corrupted_tokens)} for {self.corrupted!r}; "
                "use words that are single tokens"
            )
        right, wrong = set(self.correct.tolist()), set(self.wrong.tolist())
        if not right or not wrong or right & wrong:
            raise ValueError(
                f"want right and wrong answers that differ, got {sorted(right)} and "
                f"{sorted(wrong)} for {self.clean!r}"
            )
        if self.roles.get("end") != n_pos - 1 or any(
            not 0 <= p < n_pos for p in self.roles.values()
        ):
            raise ValueError(
                f"roles must lie in [0, {n_pos}) and `end` at {n_pos - 1}, got {self.roles} for "
                f"{self.clean!r}"
            )


class Task(ABC):
    """A question put to a language model many times over."""

    name: ClassVar[str]
    metric_name: ClassVar[str]
    question: ClassVar[str]
    """One sentence, for reports."""
    expected: ClassVar[str]
    """One sentence on what a model that can do the task does."""

    @abstractmethod
    def groups(self, model: SubjectModel) -> tuple[str, ...]:
        """The groups that can be asked of this model; positions line up only within one.

        Raises:
            ValueError: if its tokenizer allows none.
        """

    @abstractmethod
    def prompts(
        self,
        model: SubjectModel,
        n: int,
        *,
        seed: int,
        split: Split = "held_out",
        aligned_group: str | None = None,
    ) -> list[TaskPrompt]:
        """Draw `n` different prompts.

        Args:
            model: its tokenizer decides which words fit.
            n: how many.
            seed: the same seed and model give the same prompts.
            split: which words and years to draw from.
            aligned_group: draw from this one of `groups` and one frame alone, so that every
                position means the same in all prompts; None draws from all groups and frames.

        Raises:
            ValueError: if `n` is not positive, there is no such group, the tokenizer leaves too
                few words, or there are fewer than `n` different prompts.
        """

    @abstractmethod
    def metric(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> Float[Tensor, " batch"]:
        """How strongly right answers are preferred, from the logits at the last position."""

    @abstractmethod
    def succeeds(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> Bool[Tensor, " batch"]:
        """Whether each prompt is answered rightly."""

    @abstractmethod
    def target(self, prompt: TaskPrompt) -> Target:
        """What to attribute at the last position of `prompt`."""

    def further_metrics(
        self, logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[TaskPrompt]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Other numbers of the literature, by name; none unless a task has some."""
        return {}


def check_request(n: int, group: str | None, groups: Sequence[str]) -> None:
    """Refuse to draw no prompts, or prompts of a group there is not.

    Raises:
        ValueError: if `n` is not positive or `group` is neither None nor one of `groups`.
    """
    if n < 1:
        raise ValueError(f"want at least one prompt, got n = {n}")
    if group is not None and group not in groups:
        raise ValueError(f"aligned_group must be one of {', '.join(groups)}, got {group!r}")


def single_token_words(
    model: SubjectModel, words: Sequence[str], what: str, at_least: int = 1
) -> tuple[str, ...]:
    """Those `words` that are one token after a space, so that positions line up.

    Raises:
        ValueError: if fewer than `at_least` are.
    """
    kept = tuple(word for word in words if len(model.continuation(f" {word}")) == 1)
    if len(kept) < at_least:
        raise ValueError(
            f"only {len(kept)} of {len(words)} {what} are single tokens for {model.name!r}, want "
            f"at least {at_least}; draw from more words (split 'all') or use another model"
        )
    return kept
