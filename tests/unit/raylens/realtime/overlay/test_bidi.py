from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from raylens.realtime.overlay.bidi import is_rtl, resolve_levels, visual_order
from raylens.realtime.overlay.fonts import SHIPPED
from raylens.realtime.overlay.typesetting import Typesetter
from raylens.realtime.overlay.wrapping import TextLine


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abc", False), ("אב a", True), ("12 אב", True), ("… ", False), ("", False), ("A: אב", False)],
)
def test_a_paragraphs_direction_is_that_of_its_first_letter(text: str, expected: bool) -> None:
    assert is_rtl(text) is expected


@pytest.mark.parametrize(
    ("text", "base", "seen"),
    [
        ("abc", False, "abc"),
        ("אבג", True, "גבא"),
        ("a אב b", False, "a בא b"),
        ("אב 123 ג", True, "ג 123 בא"),
        ("אב (abc) ג", True, "ג (abc) בא"),
        ("אב.", True, ".בא"),
        ("a אב.", False, "a בא."),
        ("אב 1,5%", True, "1,5% בא"),
        ("אב a-b 12 ג", True, "ג a-b 12 בא"),
        ("سلا 12", True, "12 الس"),
    ],
)
def test_a_line_is_seen_in_the_order_of_the_standard(text: str, base: bool, seen: str) -> None:
    levels = resolve_levels(list(text), base)
    # The brackets' glyphs are mirrored at odd levels, which isn't a matter of order.
    mirrored = str.maketrans("()", ")(")
    characters = [
        character.translate(mirrored) if level % 2 else character
        for character, level in zip(text, levels, strict=True)
    ]
    assert "".join(characters[index] for index in visual_order(levels)) == seen


def test_no_line_is_empty_of_levels() -> None:
    assert resolve_levels([], True) == resolve_levels([], False) == visual_order([]) == []


def test_lines_look_as_fribidi_orders_them(tmp_path) -> None:
    """With one font, Pillow lays out the whole line. Our runs must look the same."""
    if not features.check("raqm"):
        pytest.skip("FriBidi, the reference, is not installed")
    typesetter = Typesetter(folders=[tmp_path])
    font = ImageFont.truetype(SHIPPED, 24)
    rng = random.Random(5)
    for _ in range(400):
        text = " ".join("".join(rng.choices("abאבגשلسب123٤٥ .,:-+%$()[]!? ", k=11)).split())
        for base in (False, True):
            drawn = typesetter.draw(TextLine(text, base), 24, (255, 255, 255)).alpha
            image = Image.new("L", (900, 100))
            ImageDraw.Draw(image).text(
                (300, 60), text, 255, font, "ls", direction="rtl" if base else "ltr"
            )
            expected = np.asarray(image.crop(image.getbbox()), np.float32) / 255
            assert abs(drawn.shape[1] - expected.shape[1]) <= 4
            assert _likeness(drawn, expected) > 0.8, (text, base)


def _likeness(one: Any, other: Any) -> float:
    """Return the correlation of two pictures, which are blurred, since pens start at fractions."""
    small = [
        cv2.blur(cv2.resize(picture, (200, 20), interpolation=cv2.INTER_AREA), (5, 5)).ravel()
        for picture in (one, other)
    ]
    return float(np.corrcoef(*small)[0, 1])
