"""The metrics of the tasks, by hand."""

import torch

from case_studies.tasks.metrics import (
    logit_difference,
    probability_difference,
    probability_of,
    step_in_probability,
)

LOGITS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]).log()
"""Row 0 has probabilities 0.1, 0.2, 0.3, 0.4; row 1 is made uniform below."""
LOGITS[1] = 0.0


def _ids(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


def test_logit_difference_averages_each_side() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0, -1.0]])
    found = logit_difference(logits, _ids([1, 2]), _ids([0, 3]))
    torch.testing.assert_close(found, torch.tensor([4.0 - 0.0]))


def test_probabilities_are_of_the_full_vocabulary() -> None:
    found = probability_of(LOGITS, _ids([1, 3], [0]))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.25]))


def test_probability_difference_leaves_other_tokens_out() -> None:
    found = probability_difference(LOGITS, _ids([3], [1, 2, 3]), _ids([0, 1], [0]))
    torch.testing.assert_close(found, torch.tensor([0.4 - 0.3, 0.75 - 0.25]))


def test_probability_difference_ignores_a_shift_of_all_logits() -> None:
    answers = _ids([3], [2]), _ids([0], [1])
    torch.testing.assert_close(
        probability_difference(LOGITS + 5.0, *answers), probability_difference(LOGITS, *answers)
    )


def test_step_in_probability_takes_one_pair_a_row() -> None:
    found = step_in_probability(LOGITS, torch.tensor([3, 0]), torch.tensor([1, 2]))
    torch.testing.assert_close(found, torch.tensor([0.2, 0.0]))
