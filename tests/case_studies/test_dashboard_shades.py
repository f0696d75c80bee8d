"""Colours of activations: monotone, and readable with and without colour vision."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from case_studies.dashboard.shades import N_STEPS, THEMES, contrast, shade, step, step_rules

STEPS = range(N_STEPS + 1)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_a_larger_activation_never_has_a_lower_step(a: float, b: float, maximum: float) -> None:
    low, high = sorted((a, b))
    assert step(low, maximum) <= step(high, maximum)
    assert (step(low, maximum) == 0) == (low == 0)
    assert step(maximum, maximum) == N_STEPS


def test_steps_split_the_range_evenly() -> None:
    assert [step(i / 80 * 5.0, 5.0) for i in (1, 10, 11, 40, 41, 79)] == [1, 1, 2, 4, 5, 8]
    assert step(1.0, 0.0) == 0
    assert step(-1.0, 2.0) == 0


@pytest.mark.parametrize("theme", THEMES)
def test_every_step_is_further_from_the_page_in_lightness(theme: str) -> None:
    page = THEMES[theme]["page"]
    distances = [contrast(shade(theme, at), page) for at in STEPS]
    assert distances[0] == 1.0
    assert all(high > low * 1.02 for low, high in pairwise(distances))
    assert shade(theme, N_STEPS) == THEMES[theme]["full"]


@pytest.mark.parametrize("theme", THEMES)
def test_text_keeps_its_contrast_on_every_step(theme: str) -> None:
    for at in STEPS:
        assert contrast(THEMES[theme]["text"], shade(theme, at)) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_lines_grow_with_the_step_and_are_seen_on_it(theme: str) -> None:
    rules = re.findall(r"\.s(\d+)\{.*?inset 0 -([\d.]+)px", step_rules(theme))
    assert [int(at) for at, _ in rules] == list(STEPS)[1:]
    widths = [float(width) for _, width in rules]
    assert all(high > low for low, high in pairwise(widths))
    assert contrast(THEMES[theme]["line"], shade(theme, N_STEPS)) > 2.5


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21.0)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)
    assert contrast((10, 20, 30), (10, 20, 30)) == 1.0
