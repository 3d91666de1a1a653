from __future__ import annotations

from itertools import product

import pytest

from raylens.realtime.overlay.colors import (
    BLACK,
    DARK_RED,
    GREEN,
    WHITE,
    contrast,
    luminance,
    text_color,
    text_opacity,
)


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        # From WCAG's own examples: the lightest gray that passes on white, and its neighbor.
        ((118, 118, 118), WHITE, 4.54),
        ((119, 119, 119), WHITE, 4.48),
        (BLACK, WHITE, 21.0),
        ((255, 0, 0), WHITE, 4.0),
        (GREEN, GREEN, 1.0),
    ],
)
def test_contrast_is_that_of_wcag(one, other, ratio: float) -> None:
    assert contrast(one, other) == pytest.approx(ratio, abs=0.005)
    assert contrast(other, one) == contrast(one, other)


def test_luminance_weighs_green_most() -> None:
    red, green, blue = (luminance(color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert (red, green, blue) == pytest.approx((0.2126, 0.7152, 0.0722))


def test_text_is_black_or_white_and_readable_on_every_color() -> None:
    steps = range(0, 256, 15)
    for color in product(steps, steps, steps):
        chosen = text_color(color)
        assert chosen in (BLACK, WHITE)
        assert contrast(chosen, color) >= 4.5
        assert contrast(chosen, color) == max(contrast(BLACK, color), contrast(WHITE, color))


def test_labels_have_black_on_green_and_white_on_red() -> None:
    assert (text_color(GREEN), text_color(DARK_RED)) == (BLACK, WHITE)


def test_text_fades_later_than_shapes() -> None:
    assert text_opacity(0) == 0
    assert text_opacity(1) == 1
    steps = [text_opacity(share / 20) for share in range(21)]
    assert steps == sorted(steps)
    assert all(text_opacity(share / 20) > share / 20 for share in range(1, 20))
