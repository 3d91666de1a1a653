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
from tests.unit.preprocessing.test_crop import document, landscape

METHODS: tuple[Any, ...] = ("bilateral", "nlm", "median")


def noisy(pixels, sigma: float, seed: int = 0):
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def error(one, other) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("sigma", [5, 10, 25, 40])
def test_the_level_is_that_of_the_noise(sigma) -> None:
    assert noise_level(noisy(landscape(500, 400), sigma)) == pytest.approx(sigma, rel=0.15)


def test_texture_and_small_text_are_no_noise() -> None:
    stripes = (
        128 + 60 * np.sin(np.arange(400) * 0.9)[None, :, None] * np.ones((300, 1, 3))
    ).astype(np.uint8)
    leaves = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    grass = np.asarray(Image.fromarray(leaves).resize((390, 300), Image.Resampling.BICUBIC))
    for pixels in (landscape(), np.asarray(document()), stripes, grass):
        assert noise_level(pixels) < NOISY


@pytest.mark.parametrize("method", METHODS)
def test_auto_leaves_clean_scenes_alone_and_mends_noisy_ones(method) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        drawn = draw(random_scene(rng, 400), rng)
        clean = np.asarray(Image.open(io.BytesIO(encode(drawn, rng)[0])).convert("RGB"))
        assert denoise(clean, Denoise("auto", method)) is None
        done = denoise(noisy(drawn, 25), Denoise("auto", method))
        assert done is not None
        assert error(done[0], drawn) < 0.8 * error(noisy(drawn, 25), drawn)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_takes_noise_away_and_keeps_an_edge(method) -> None:
    pixels = np.full((120, 120, 3), 60, np.uint8)
    pixels[:, 60:] = 190
    done = denoise(noisy(pixels, 15), Denoise(True, method))
    assert done is not None
    assert error(done[0], pixels) < 0.6 * error(noisy(pixels, 15), pixels)
    assert done[0][:, 62:].mean() - done[0][:, :58].mean() > 120
    assert method in done[1]


def test_the_bilateral_filter_takes_its_parameters() -> None:
    pixels = noisy(landscape(), 20)
    gentle = denoise(pixels, Denoise(True, diameter=3, sigma_color=10))
    strong = denoise(pixels, Denoise(True, diameter=9, sigma_color=120))
    assert gentle is not None
    assert strong is not None
    assert error(gentle[0], pixels) < error(strong[0], pixels)


@pytest.mark.parametrize("size", [(4, 4), (5, 40), (17, 31), (300, 4)])
def test_the_smallest_pictures_pass(size) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for method in METHODS:
        for enabled in (True, "auto"):
            done = denoise(pixels, Denoise(enabled, method))
            assert done is None or done[0].shape == pixels.shape


@pytest.mark.parametrize("method", ["bilateral", "nlm"])
def test_strips_make_no_difference(method) -> None:
    pixels = noisy(landscape(700, 900), 20)
    done = denoise(pixels, Denoise(True, method))
    assert done is not None
    if method == "bilateral":
        whole = cv2.bilateralFilter(pixels, 9, 75, 75)
    else:
        strength = 0.8 * noise_level(pixels)
        whole = cv2.fastNlMeansDenoisingColored(pixels, None, strength, strength, 7, 15)
    assert np.abs(done[0].astype(int) - whole).max() <= 1
