from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.pocket.drawing import draw, encode
from models.pocket.scenes import random_scene
from preprocessing.crop import Window, content_window, salient_window
from testing.pictures import encode_picture

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def full_window(pixels: Pixels) -> Window:
    return 0, 0, pixels.shape[1], pixels.shape[0]


def landscape(width: int = 320, height: int = 200, seed: int = 0) -> Pixels:
    """Soft blotches over the full range of a photograph."""
    coarse = np.random.default_rng(seed).integers(40, 230, (6, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def barred(
    pixels: Pixels, left: int, top: int, right: int, bottom: int, color: tuple[int, int, int]
) -> Pixels:
    height, width = pixels.shape[:2]
    framed = np.empty((height + top + bottom, width + left + right, 3), np.uint8)
    framed[:] = color
    framed[top : top + height, left : left + width] = pixels
    return framed


def through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(encode_picture(pixels, "JPEG", quality=quality))))


def add_noise(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    noisy: Pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return noisy


def document() -> Image.Image:
    """Lines of small text, a filled table head and a rule, on white."""
    page = Image.new("RGB", (600, 800), "white")
    canvas = ImageDraw.Draw(page)
    canvas.rectangle((30, 60, 570, 90), fill=(40, 60, 120))
    canvas.line((0, 120, 600, 120), fill="black", width=3)
    for row in range(30):
        canvas.text(
            (40, 140 + 20 * row), "the quick brown fox jumps over the lazy dog " * 2, fill="black"
        )
    return page


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (16, 16, 16), (20, 60, 90)])
@pytest.mark.parametrize(
    "bars",
    [
        (0, 40, 0, 40),
        (60, 0, 60, 0),
        (0, 0, 25, 0),
        (0, 31, 0, 0),
        (200, 0, 200, 0),
        (20, 15, 20, 15),
        (0, 0, 30, 20),
    ],
)
@pytest.mark.parametrize("quality", [None, 75])
def test_bars_are_trimmed_to_the_line(color, bars, quality) -> None:
    left, top, right, bottom = bars
    framed = barred(landscape(), left, top, right, bottom, color)
    tolerance = 0
    if quality is not None:
        framed = through_jpeg(framed, quality)
        tolerance = 8
    expected = (left, top, left + 320, top + 200)
    assert np.abs(np.subtract(content_window(framed), expected)).max() <= tolerance


def test_a_noisy_scanner_bar_beside_a_page_is_trimmed() -> None:
    page = barred(np.asarray(document()), 60, 0, 0, 0, (22, 20, 24))
    assert content_window(add_noise(page, 3, seed=1)) == (60, 0, 660, 800)


def test_drawn_scenes_are_not_cropped() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        data, _ = encode(draw(random_scene(rng), rng), rng)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert content_window(pixels) == full_window(pixels), seed


def test_a_picture_s_own_background_is_not_a_bar() -> None:
    product = barred(landscape(120, 90), 100, 60, 100, 60, (250, 250, 250))
    stripes = np.array([[0, 0, 0], [220, 0, 0], [255, 200, 0]], np.uint8)
    flag = np.repeat(stripes, 60, axis=0)[:, None].repeat(300, 1)
    blank = np.full((100, 150, 3), 200, np.uint8)
    for pixels in (
        landscape(),
        np.asarray(document()),
        product,
        flag,
        add_noise(flag, 3, seed=2),
        flag.transpose(1, 0, 2),
        blank,
    ):
        assert content_window(pixels) == full_window(pixels)


def test_the_most_salient_window_holds_the_object_that_stands_out() -> None:
    pixels = np.full((100, 400, 3), 128, np.uint8)
    pixels[40:60, 310:340] = (230, 30, 30)
    left, top, right, bottom = salient_window(pixels, (64, 64))
    assert (top, bottom, right - left) == (0, 100, 100)
    assert left <= 310
    assert right >= 340
    tall = salient_window(pixels.transpose(1, 0, 2), (64, 64))
    assert tall == (0, left, 100, right)


def test_the_middle_wins_if_nothing_stands_out() -> None:
    assert salient_window(np.full((100, 400, 3), 90, np.uint8), (10, 10)) == (150, 0, 250, 100)


@pytest.mark.parametrize("size", [(16, 4096), (4096, 16), (100, 100)])
def test_a_window_is_never_empty(size) -> None:
    left, top, right, bottom = salient_window(landscape(40, 5), size)
    assert 0 <= left < right <= 40
    assert 0 <= top < bottom <= 5
