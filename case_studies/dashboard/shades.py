"""How strongly a feature is active, as colour: steps of one hue, with a line that grows along.

Readable in print and without colour vision: lightness and the width of the line both grow with the
step, and the value is there on hover and on focus. Text keeps its contrast on every step.
"""

import math

__all__ = ["N_STEPS", "THEMES", "Theme", "contrast", "shade", "step", "step_rules"]

N_STEPS = 8

Theme = str
Colour = tuple[int, int, int]

THEMES: dict[Theme, dict[str, Colour]] = {
    "light": {
        "page": (255, 255, 255),
        "text": (26, 26, 26),
        "full": (104, 176, 224),
        "line": (0, 90, 145),
    },
    "dark": {
        "page": (20, 23, 26),
        "text": (236, 236, 236),
        "full": (8, 96, 152),
        "line": (86, 180, 233),
    },
}
"""Page, text, the shade of the largest activation, and the line under active tokens."""


def step(value: float, maximum: float) -> int:
    """Which step an activation is: 0 where it is not active, `N_STEPS` at the maximum.

    Example:
        >>> [step(value, 4.0) for value in (0.0, 0.01, 2.0, 4.0, 5.0)]
        [0, 1, 4, 8, 8]
    """
    if value <= 0 or maximum <= 0:
        return 0
    return min(N_STEPS, max(1, math.ceil(value / maximum * N_STEPS)))


def shade(theme: Theme, at: int) -> Colour:
    """The background of step `at`: from the page's own colour to the full shade."""
    page, full = THEMES[theme]["page"], THEMES[theme]["full"]
    low, mid, high = (round(p + (f - p) * at / N_STEPS) for p, f in zip(page, full, strict=True))
    return low, mid, high


def contrast(one: Colour, other: Colour) -> float:
    """The contrast ratio of two colours (WCAG 2, 1.4.3): 1 to 21; 4.5 is enough for text.

    Example:
        >>> contrast((0, 0, 0), (255, 255, 255))
        21.0
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Colour) -> float:
    def linear(channel: int) -> float:
        c = channel / 255
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    red, green, blue = map(linear, colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def step_rules(theme: Theme) -> str:
    """CSS of the steps: background and width of the line under the token."""
    line = _css(THEMES[theme]["line"])
    return "\n".join(
        f".s{at}{{background:{_css(shade(theme, at))};"
        f"box-shadow:inset 0 -{at / N_STEPS * 4:g}px {line}}}"
        for at in range(1, N_STEPS + 1)
    )


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
