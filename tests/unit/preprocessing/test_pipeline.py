from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preprocessing.encode import to_jpeg
from preprocessing.header import PictureLimits
from preprocessing.pipeline import run
from raylens.core.errors import DeadlineExceeded, InvalidRequest
from raylens.core.recipe import AUTO, ENHANCED, PLAIN, ColorBalance, Denoise, Recipe
from testing.pictures import encode_picture, gradient
from tests.profiles import DISPLAY_P3, matrix_profile, rgb_to_srgb
from tests.unit.preprocessing.test_crop import barred, landscape

LIMITS = PictureLimits(max_bytes=10**7, max_pixels=10**7, min_side=4, max_side=4000)


def test_the_plain_recipe_leaves_a_picture_that_fits_unchanged() -> None:
    processed = run(encode_picture(gradient(50, 40)), PLAIN, LIMITS)
    assert np.array_equal(processed.pixels, gradient(50, 40))
    assert [step.name for step in processed.steps] == ["decode", "resize"]
    assert processed.warnings == ()


def test_steps_are_listed_in_order_with_what_they_did() -> None:
    data = encode_picture(
        barred(landscape(), 0, 40, 0, 40, (0, 0, 0)),
        icc_profile=matrix_profile(DISPLAY_P3, "Display P3"),
    )
    processed = run(data, ENHANCED, LIMITS)
    did = {step.name: step.did for step in processed.steps}
    assert list(did) == [
        "decode",
        "smart_crop",
        "resize",
        "color_profile",
        "denoise",
        "color_balance",
    ]
    assert did["decode"] == "PNG, RGB, orientation 1"
    assert did["smart_crop"] == "320×280 cut to 320×200 at 0, 40"
    assert did["resize"] == "320×200 to 819×512"
    assert did["color_profile"] == "Display P3 to sRGB"
    assert did["denoise"].startswith("bilateral")
    assert did["color_balance"].startswith("lab")
    assert all(step.seconds > 0 for step in processed.steps)
    assert processed.pixels.shape == (512, 819, 3)


def test_auto_reports_nothing_to_do_for_a_clean_picture() -> None:
    processed = run(encode_picture(landscape()), AUTO, LIMITS)
    assert np.array_equal(processed.pixels, landscape())
    assert [step.did for step in processed.steps[-2:]] == ["nothing to do"] * 2


def test_a_profile_is_applied_after_resizing() -> None:
    pixels = np.full((80, 120, 3), (150, 100, 100), np.uint8)
    data = encode_picture(pixels, icc_profile=matrix_profile(DISPLAY_P3, "P3"))
    processed = run(data, Recipe(size=(60, 40)), LIMITS)
    assert processed.pixels.shape == (40, 60, 3)
    assert np.abs(processed.pixels[9, 9] - rgb_to_srgb(pixels[0, 0], DISPLAY_P3)).max() <= 2


def test_an_unusable_profile_is_skipped_with_a_warning() -> None:
    processed = run(encode_picture(landscape(), icc_profile=b"nonsense"), PLAIN, LIMITS)
    assert np.array_equal(processed.pixels, landscape())
    assert processed.warnings[0].startswith("color_profile: skipped (")
    assert processed.steps[-1].did == "skipped"


@pytest.mark.parametrize("step", ["denoise", "color_balance"])
def test_a_failed_enhancement_is_skipped_with_a_warning_and_the_others_run(step) -> None:
    # Only a recipe built in code can hold this value: recipes of requests are validated.
    invalid: Any = "wide"
    recipes = {
        "denoise": Recipe(
            denoise=Denoise(True, diameter=invalid), color_balance=ColorBalance(True)
        ),
        "color_balance": Recipe(
            denoise=Denoise(True), color_balance=ColorBalance(True, l_channel_boost=invalid)
        ),
    }
    processed = run(encode_picture(gradient(40, 30)), recipes[step], LIMITS)
    (warning,) = processed.warnings
    assert re.fullmatch(rf"{step}: skipped \(\w+\)", warning)
    assert processed.pixels.shape == (30, 40, 3)
    assert not np.array_equal(processed.pixels, gradient(40, 30))


def test_an_error_from_check_stops_the_work() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise DeadlineExceeded("enough")

    recipe = Recipe(size=(900, 900), preserve_aspect_ratio=False, denoise=Denoise(True, "nlm"))
    with pytest.raises(DeadlineExceeded, match="enough"):
        run(encode_picture(gradient(40, 30)), recipe, LIMITS, check)
    assert calls == 6


def test_a_damaged_picture_is_an_error_rather_than_a_warning() -> None:
    with pytest.raises(InvalidRequest):
        run(encode_picture(gradient(400, 300), "JPEG")[:1500], ENHANCED, LIMITS)


def test_a_cropped_picture_does_not_keep_the_original_in_memory() -> None:
    data = encode_picture(barred(landscape(), 0, 40, 0, 40, (0, 0, 0)))
    pixels = run(data, Recipe(smart_crop=True), LIMITS).pixels
    assert pixels.base is None or pixels.base.nbytes == pixels.nbytes


@pytest.mark.parametrize("size", [(4, 4), (4, 900), (900, 4), (3000, 5)])
@pytest.mark.parametrize(
    "recipe", [AUTO, ENHANCED, replace(ENHANCED, preserve_aspect_ratio=False, size=(64, 300))]
)
def test_tiny_and_elongated_pictures_are_accepted(size, recipe) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    assert run(encode_picture(pixels), recipe, LIMITS).warnings == ()


def test_a_recipe_applies_to_the_upright_picture() -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = run(
            encode_picture(landscape(), exif=exif), Recipe(size=(100, 100)), LIMITS
        ).pixels
        assert upright.shape == ((62, 100, 3) if orientation < 5 else (100, 62, 3))


def test_a_jpeg_file_loses_more_detail_at_lower_quality() -> None:
    sizes = []
    for quality, tolerance in ((95, 2), (40, 8)):
        data = to_jpeg(landscape(), quality, optimize=True)
        sizes.append(len(data))
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert np.abs(pixels.astype(int) - landscape()).mean() < tolerance
    assert sizes[0] > sizes[1]


def test_an_optimized_jpeg_file_is_smaller() -> None:
    optimized = to_jpeg(landscape(), 95, optimize=True)
    assert len(optimized) < len(to_jpeg(landscape(), 95, optimize=False))
