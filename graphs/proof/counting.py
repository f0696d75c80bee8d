"""How far a proof is, counted in circuits run."""

from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor

from graphs.proof.trial import Measure, Outcome

__all__ = ["Progress", "counting"]

Progress = Callable[[int, int], None]
"""Called with the circuits run so far, and in all."""


def counting(progress: Progress, total: int) -> Callable[[Measure], Measure]:
    """A wrapper of measures that tells `progress` of every call; all it wraps share one count."""
    done = 0

    def counted(measure: Measure) -> Measure:
        def run(kept: Bool[Tensor, "circuit unit"]) -> Outcome:
            nonlocal done
            outcome = measure(kept)
            done += len(kept)
            progress(done, total)
            return outcome

        return run

    return counted
