from __future__ import annotations

import io
import random
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from models.pocket.drawing import draw, encode
from models.pocket.scenes import random_scene
from preprocessing.denoise import NOISY, denoise, noise_level
from raylens.core.recipe import Denoise
from tests.unit.preprocessing.test_crop import add_noise, document, landscape

METHODS: tuple[Any, ...] = ("bilateral", "nlm", "median")


def mean_difference(first, second) -> float:
    return float(np.abs(first.astype(float) - second).mean())


@pytest.mark.parametrize("sigma", [5, 10, 25, 40])
def test_the_noise_level_is_the_standard_deviation_of_the_noise(sigma) -> None:
    noisy = add_noise(landscape(500, 400), sigma, seed=0)
    assert noise_level(noisy) == pytest.approx(sigma, rel=0.15)


def test_texture_and_small_text_are_not_noise() -> None:
    wave = 60 * np.sin(np.arange(400) * 0.9)[None, :, None] * np.ones((300, 1, 3))
    stripes = (128 + wave).astype(np.uint8)
    leaves = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    grass = np.asarray(Image.fromarray(leaves).resize((390, 300), Image.Resampling.BICUBIC))
    for pixels in (landscape(), np.asarray(document()), stripes, grass):
        assert noise_level(pixels) < NOISY


@pytest.mark.parametrize("method", METHODS)
def test_auto_leaves_clean_scenes_alone_and_denoises_noisy_ones(method) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        original = draw(random_scene(rng, 400), rng)
        clean = np.asarray(Image.open(io.BytesIO(encode(original, rng)[0])).convert("RGB"))
        assert denoise(clean, Denoise("auto", method)) is None
        noisy = add_noise(original, 25, seed=0)
        result = denoise(noisy, Denoise("auto", method))
        assert result is not None
        filtered, _ = result
        assert mean_difference(filtered, original) < 0.8 * mean_difference(noisy, original)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_removes_noise_and_keeps_an_edge(method) -> None:
    pixels = np.full((120, 120, 3), 60, np.uint8)
    pixels[:, 60:] = 190
    noisy = add_noise(pixels, 15, seed=0)
    result = denoise(noisy, Denoise(True, method))
    assert result is not None
    filtered, description = result
    assert mean_difference(filtered, pixels) < 0.6 * mean_difference(noisy, pixels)
    assert filtered[:, 62:].mean() - filtered[:, :58].mean() > 120
    assert method in description


def test_the_bilateral_filter_uses_its_parameters() -> None:
    pixels = add_noise(landscape(), 20, seed=0)
    gentle = denoise(pixels, Denoise(True, diameter=3, sigma_color=10))
    strong = denoise(pixels, Denoise(True, diameter=9, sigma_color=120))
    assert gentle is not None
    assert strong is not None
    assert mean_difference(gentle[0], pixels) < mean_difference(strong[0], pixels)


@pytest.mark.parametrize("size", [(4, 4), (5, 40), (17, 31), (300, 4)])
def test_the_smallest_pictures_are_accepted(size) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for method in METHODS:
        for enabled in (True, "auto"):
            result = denoise(pixels, Denoise(enabled, method))
            assert result is None or result[0].shape == pixels.shape


@pytest.mark.parametrize("method", ["bilateral", "nlm"])
def test_filtering_in_strips_equals_filtering_at_once(method) -> None:
    pixels = add_noise(landscape(700, 900), 20, seed=0)
    result = denoise(pixels, Denoise(True, method))
    assert result is not None
    if method == "bilateral":
        expected = cv2.bilateralFilter(pixels, 9, 75, 75)
    else:
        strength = 0.8 * noise_level(pixels)
        expected = cv2.fastNlMeansDenoisingColored(pixels, None, strength, strength, 7, 15)
    assert np.abs(result[0].astype(int) - expected).max() <= 1
