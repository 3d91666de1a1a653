"""Colors of an overlay, and how readable text is on them."""

from __future__ import annotations

Color = tuple[int, int, int]
"""sRGB, 0 to 255."""

GREEN: Color = (0, 220, 0)
RED: Color = (220, 50, 50)
DARK_RED: Color = (200, 30, 30)
"""Behind the labels of points. On the red of their dots, white reaches a contrast of just 4.6."""
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)


def luminance(color: Color) -> float:
    """Return the relative luminance of a color, from 0 to 1, as WCAG 2 defines it."""
    red, green, blue = (_linear(value / 255) for value in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Color, other: Color) -> float:
    """Return the contrast ratio of two colors, from 1 to 21, as WCAG 2 defines it."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def text_color(ground: Color) -> Color:
    """Return black or white, whichever has the higher contrast with ``ground``."""
    return max(BLACK, WHITE, key=lambda color: contrast(color, ground))


def text_opacity(opacity: float) -> float:
    """Return the opacity of text and of what is behind it.

    It falls more slowly than that of shapes: from 0.5 on, text has a contrast of 4.5 on any frame.
    """
    return 1 - (1 - opacity) ** 3


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
