"""Noise: how much of it a picture holds, and filters against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from raylens.core.recipe import Denoise

Pixels = NDArray[np.uint8]
Plane = NDArray[np.floating[Any]]
"""One number a place, (height, width)."""

NOISY = 8.0
"""Standard deviation in levels from which ``auto`` acts: clean photographs and drawings stay under
5."""
_BLOCK = 8
"""Side of the blocks over which noise is averaged, in the finest wavelet coefficients: 16 pixels."""
_SMOOTHEST = 0.1
"""The share of blocks, those with least in them, that tells the noise."""
_TEXTURE_RATIO = 1.25
"""Noise is as strong at the next coarser scale, or weaker where it is clipped; texture is stronger."""
_CLIPPED = 6
"""Levels from black and white within which noise is cut off, and can't be seen."""
_NORMAL = 1.2533
"""Standard deviation of a normal variable over its mean absolute value."""
_MAX_SAMPLES = 750_000
_TEMPLATE, _SEARCH = 7, 15
"""Sides of the patches that non-local means compares, and of the window in which it looks for like
ones."""
_STRIP = 250_000
"""Pixels that are filtered at a time: a quarter of a second for the slowest filter."""


def denoise(
    pixels: Pixels, settings: Denoise, check: Callable[[], None] = lambda: None
) -> tuple[Pixels, str] | None:
    """(height, width, 3) pixels with less noise, and what was done; None under ``auto`` where there
    is hardly any.

    ``check`` is called every few tenths of a second at most, and may raise to end the work. Under
    ``auto`` a bilateral filter takes four times the noise that was measured as its ``sigma_color``,
    up to the one that is set: the less noise, the less it touches.
    """
    noise = noise_level(pixels) if settings.enabled == "auto" or settings.method == "nlm" else 0.0
    if settings.enabled == "auto" and noise < NOISY:
        return None
    measured = f"noise {noise:.1f}, " if noise else ""
    match settings.method:
        case "bilateral":
            sigma_color = (
                min(settings.sigma_color, 4 * noise)
                if settings.enabled == "auto"
                else settings.sigma_color
            )
            filtered = _in_strips(
                lambda strip: cv2.bilateralFilter(
                    strip, settings.diameter, sigma_color, settings.sigma_space
                ),
                pixels,
                settings.diameter // 2 + 1,
                check,
            )
            done = f"bilateral, diameter {settings.diameter}, sigma_color {sigma_color:.0f}"
        case "nlm":
            strength = max(3.0, 0.8 * noise)
            filtered = _in_strips(
                lambda strip: cv2.fastNlMeansDenoisingColored(
                    strip, None, strength, strength, _TEMPLATE, _SEARCH
                ),
                pixels,
                (_TEMPLATE + _SEARCH) // 2,
                check,
            )
            done = f"nlm, strength {strength:.0f}"
        case "median":
            filtered = np.asarray(cv2.medianBlur(pixels, 3), np.uint8)
            done = "median, 3 × 3"
    return filtered, measured + done


def _in_strips(
    filtered: Callable[[Pixels], Pixels], pixels: Pixels, reach: int, check: Callable[[], None]
) -> Pixels:
    """A filter that looks ``reach`` pixels far, applied to one strip of the picture after another."""
    height = max(4 * reach, _STRIP // pixels.shape[1])
    result = np.empty_like(pixels)
    for top in range(0, len(pixels), height):
        check()
        above = min(reach, top)
        strip = filtered(pixels[top - above : top + height + reach])
        result[top : top + height] = strip[above : above + height]
    return result


def noise_level(pixels: Pixels) -> float:
    """The standard deviation of white noise in (height, width, 3) pixels, in levels of 255.

    After Donoho & Johnstone 1994: the diagonal coefficients of a Haar wavelet hold noise and little
    else. They are looked at in the smoothest blocks of the green channel. Where these are stronger
    at the next coarser scale, it is texture that they hold: then there is no telling its noise, and
    the answer is 0.
    """
    green = pixels[..., 1]
    rows = max(8 * _BLOCK, _MAX_SAMPLES // green.shape[1])
    start = max(0, (green.shape[0] - rows) // 2)
    coarse, fine = _haar(green[start : start + rows].astype(np.float32))
    _, coarser = _haar(coarse)
    fine, light, coarser = (
        _block_means(np.abs(fine), _BLOCK),
        _block_means(coarse / 2, _BLOCK),
        np.abs(coarser),
    )
    coarser = _block_means(coarser, _BLOCK // 2)[: fine.shape[0], : fine.shape[1]]
    seen = (light > _CLIPPED) & (light < 255 - _CLIPPED)
    if not seen.size or seen.mean() < 2 * _SMOOTHEST:
        return 0.0
    smoothest = seen & (coarser <= np.quantile(coarser[seen], _SMOOTHEST))
    noise, at_coarser_scale = np.median(fine[smoothest]), np.median(coarser[smoothest])
    return 0.0 if at_coarser_scale > _TEXTURE_RATIO * noise else float(_NORMAL * noise)


def _haar(plane: Plane) -> tuple[Plane, Plane]:
    """The averages, doubled, and the diagonal details of one orthonormal step, each (height / 2,
    width / 2)."""
    height, width = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    a, b = plane[0:height:2, 0:width:2], plane[0:height:2, 1:width:2]
    c, d = plane[1:height:2, 0:width:2], plane[1:height:2, 1:width:2]
    return (a + b + c + d) / 2, (a - b - c + d) / 2


def _block_means(plane: Plane, side: int) -> Plane:
    """Means over whole blocks of ``side`` × ``side``."""
    height, width = plane.shape[0] // side, plane.shape[1] // side
    blocks = plane[: height * side, : width * side].reshape(height, side, width, side)
    means: Plane = blocks.mean((1, 3))
    return means
