from __future__ import annotations

import io
import random

import cv2
import numpy as np
import pytest
from PIL import Image

from models.pocket.drawing import draw, encode
from models.pocket.scenes import random_scene
from preprocessing.color import balance
from raylens.core.recipe import ColorBalance
from tests.unit.preprocessing.test_crop import document, landscape
from tests.unit.preprocessing.test_denoise import mean_difference

AUTO = ColorBalance("auto")
FAULTS = {
    "warm": lambda pixels: pixels * np.array((1.25, 1.0, 0.7)),
    "cold": lambda pixels: pixels * np.array((0.75, 0.95, 1.3)),
    "dark": lambda pixels: pixels * 0.3,
    "low contrast": lambda pixels: 128 + (pixels - 128.0) * 0.2,
}


def degrade(pixels, fault: str):
    return np.clip(FAULTS[fault](pixels), 0, 255).astype(np.uint8)


def scenes(count: int):
    for seed in range(count):
        rng = random.Random(seed)
        data, _ = encode(draw(random_scene(rng, 400), rng), rng)
        yield np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_auto_leaves_pictures_without_faults_alone() -> None:
    for pixels in (
        *scenes(60),
        landscape(),
        np.asarray(document()),
        np.full((60, 60, 3), 128, np.uint8),
    ):
        assert balance(pixels, AUTO) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_auto_corrects_a_fault_and_names_it(fault) -> None:
    corrected = improved = 0
    for pixels in scenes(40):
        degraded = degrade(pixels, fault)
        result = balance(degraded, AUTO)
        if result is None:
            continue
        balanced, description = result
        corrected += 1
        improved += mean_difference(balanced, pixels) < mean_difference(degraded, pixels)
        assert ("cast" in description) == (fault in ("warm", "cold"))
    assert corrected >= 28
    assert improved >= 0.85 * corrected


def test_auto_leaves_a_brown_plank_and_a_blue_wall_beside_something_gray_alone() -> None:
    grain = np.random.default_rng(0).normal(0, 6, (80, 90, 1))
    plank = np.clip(np.array((150, 110, 70)) * (1 + grain / 60), 0, 255).astype(np.uint8)
    wall = np.full((100, 100, 3), (90, 120, 160), np.uint8)
    wall[40:60, 40:60] = (128, 128, 128)
    wall[70:90, 10:30] = (200, 40, 40)
    for pixels in (plank, wall, np.full((50, 50, 3), (0, 0, 255), np.uint8)):
        assert balance(pixels, AUTO) is None


def test_lab_boosts_lightness_and_color_around_gray() -> None:
    gray = np.full((8, 8, 3), 100, np.uint8)
    result = balance(gray, ColorBalance(True, "lab", 1.2, 2.0))
    assert result is not None
    boosted, _ = result
    assert np.ptp(boosted[0, 0]) <= 2  # gray stays gray
    before, after = (cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[0, 0, 0] for pixels in (gray, boosted))
    assert after == pytest.approx(1.2 * before, abs=2)
    red = np.full((8, 8, 3), (150, 110, 110), np.uint8)
    result = balance(red, ColorBalance(True, "lab", 1.0, 1.5))
    assert result is not None
    assert np.ptp(result[0][0, 0].astype(int)) > 50


def test_gray_world_makes_the_mean_gray() -> None:
    result = balance(degrade(landscape(), "warm"), ColorBalance(True, "gray_world"))
    assert result is not None
    assert np.ptp(result[0].mean((0, 1))) < 4


def test_clahe_spreads_a_narrow_range() -> None:
    narrow = (110 + landscape().astype(float) * 0.1).astype(np.uint8)
    result = balance(narrow, ColorBalance(True, "clahe"))
    assert result is not None
    assert result[0].std() > 1.3 * narrow.std()


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("method", ["lab", "gray_world", "clahe"])
def test_flat_pictures_are_accepted(value, method) -> None:
    pixels = np.full((5, 4, 3), value, np.uint8)
    result = balance(pixels, ColorBalance(True, method))
    assert result is not None
    assert result[0].shape == pixels.shape
    assert balance(pixels, AUTO) is None
