"""Noise: estimation of its level in a picture, and filters against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from raylens.core.recipe import Denoise

Pixels = NDArray[np.uint8]
Plane = NDArray[np.floating[Any]]
"""(height, width) numbers."""

NOISY = 8.0
"""Standard deviation, in levels, from which ``auto`` acts. Clean photographs and drawings stay
below 5."""
_BLOCK = 8
"""Side of the blocks over which noise is averaged, in the finest wavelet coefficients: 16
pixels."""
_SMOOTHEST = 0.1
"""Share of the blocks, those with the least detail, from which noise is estimated."""
_TEXTURE_RATIO = 1.25
"""Ratio of the next coarser scale to the finest above which detail is texture. Noise is as strong
at the coarser scale, or weaker if it is clipped."""
_CLIPPED = 6
"""Levels from black and white within which noise is clipped and can't be measured."""
_NORMAL = 1.2533
"""Standard deviation of a normal distribution divided by its mean absolute value."""
_MAX_SAMPLES = 750_000
_TEMPLATE = 7
"""Side of the patches that non-local means compares, in pixels."""
_SEARCH = 15
"""Side of the window in which non-local means searches for similar patches, in pixels."""
_STRIP = 250_000
"""Pixels filtered at a time: a quarter of a second for the slowest filter."""


class TooSlow(Exception):
    """A filter would take longer than it may."""


def estimate_seconds(pixels: int, settings: Denoise) -> float:
    """Return what a filter takes for a number of pixels, on one core of a server."""
    match settings.method:
        case "nlm":
            return 1.0e-6 * pixels
        case "bilateral":
            return 0.8e-9 * settings.diameter**2 * pixels
        case "median":
            return 1.0e-9 * pixels


def denoise(
    pixels: Pixels,
    settings: Denoise,
    check: Callable[[], None] = lambda: None,
    max_seconds: float = math.inf,
) -> tuple[Pixels, str] | None:
    """Return (height, width, 3) pixels with less noise, and a description of the filter.

    Returns None if ``auto`` finds hardly any noise. ``check`` is called at least every few tenths
    of a second, and may raise to stop the work. Under ``auto`` the ``sigma_color`` of the
    bilateral filter is four times the measured noise, up to the configured value: the less noise,
    the less the filter changes.

    Raises ``TooSlow`` if the filter would take more than ``max_seconds``.
    """
    is_auto = settings.enabled == "auto"
    noise = noise_level(pixels) if is_auto or settings.method == "nlm" else 0.0
    if is_auto and noise < NOISY:
        return None
    height, width = pixels.shape[:2]
    seconds = estimate_seconds(height * width, settings)
    if seconds > max_seconds:
        raise TooSlow(
            f"{settings.method} of {width}×{height} pixels takes about {seconds:.0f} s;"
            f" the limit is {max_seconds:g} s"
        )
    match settings.method:
        case "bilateral":
            sigma_color = settings.sigma_color
            if is_auto:
                sigma_color = min(sigma_color, 4 * noise)
            filtered = _filter_bilateral(pixels, settings, sigma_color, check)
            description = f"bilateral, diameter {settings.diameter}, sigma_color {sigma_color:.0f}"
        case "nlm":
            strength = max(3.0, 0.8 * noise)
            filtered = _filter_nlm(pixels, strength, check)
            description = f"nlm, strength {strength:.0f}"
        case "median":
            filtered = np.asarray(cv2.medianBlur(pixels, 3), np.uint8)
            description = "median, 3 × 3"
    return filtered, f"noise {noise:.1f}, {description}" if noise else description


def _filter_bilateral(
    pixels: Pixels, settings: Denoise, sigma_color: float, check: Callable[[], None]
) -> Pixels:
    def filter_strip(strip: Pixels) -> Any:
        return cv2.bilateralFilter(strip, settings.diameter, sigma_color, settings.sigma_space)

    return _in_strips(filter_strip, pixels, settings.diameter // 2 + 1, check)


def _filter_nlm(pixels: Pixels, strength: float, check: Callable[[], None]) -> Pixels:
    def filter_strip(strip: Pixels) -> Any:
        return cv2.fastNlMeansDenoisingColored(strip, None, strength, strength, _TEMPLATE, _SEARCH)

    return _in_strips(filter_strip, pixels, (_TEMPLATE + _SEARCH) // 2, check)


def _in_strips(
    filter_strip: Callable[[Pixels], Pixels],
    pixels: Pixels,
    reach: int,
    check: Callable[[], None],
) -> Pixels:
    """Apply a filter one strip at a time; a result pixel depends on pixels up to ``reach`` away."""
    height = max(4 * reach, _STRIP // pixels.shape[1])
    result = np.empty_like(pixels)
    for top in range(0, len(pixels), height):
        check()
        margin = min(reach, top)
        strip = filter_strip(pixels[top - margin : top + height + reach])
        result[top : top + height] = strip[margin : margin + height]
    return result


def noise_level(pixels: Pixels) -> float:
    """Return the standard deviation of white noise in (height, width, 3) pixels, in levels of 255.

    Follows Donoho & Johnstone 1994: the diagonal coefficients of a Haar wavelet hold noise and
    little else. They are measured in the smoothest blocks of the green channel. If they are
    stronger at the next coarser scale, they are texture, noise can't be told from it, and the
    result is 0.
    """
    green = pixels[..., 1]
    rows = max(8 * _BLOCK, _MAX_SAMPLES // green.shape[1])
    start = max(0, (green.shape[0] - rows) // 2)
    averages, fine_details = _haar(green[start : start + rows].astype(np.float32))
    _, coarse_details = _haar(averages)
    fine = _block_means(np.abs(fine_details), _BLOCK)
    light = _block_means(averages / 2, _BLOCK)
    coarse = _block_means(np.abs(coarse_details), _BLOCK // 2)
    coarse = coarse[: fine.shape[0], : fine.shape[1]]
    is_measurable = (light > _CLIPPED) & (light < 255 - _CLIPPED)
    if not is_measurable.size or is_measurable.mean() < 2 * _SMOOTHEST:
        return 0.0
    threshold = np.quantile(coarse[is_measurable], _SMOOTHEST)
    is_smooth = is_measurable & (coarse <= threshold)
    fine_noise = np.median(fine[is_smooth])
    coarse_noise = np.median(coarse[is_smooth])
    return 0.0 if coarse_noise > _TEXTURE_RATIO * fine_noise else float(_NORMAL * fine_noise)


def _haar(plane: Plane) -> tuple[Plane, Plane]:
    """Return the doubled averages and the diagonal details of one orthonormal Haar step.

    Both are (height / 2, width / 2).
    """
    height = plane.shape[0] // 2 * 2
    width = plane.shape[1] // 2 * 2
    a, b = plane[0:height:2, 0:width:2], plane[0:height:2, 1:width:2]
    c, d = plane[1:height:2, 0:width:2], plane[1:height:2, 1:width:2]
    return (a + b + c + d) / 2, (a - b - c + d) / 2


def _block_means(plane: Plane, side: int) -> Plane:
    """Return the means of all whole blocks of ``side`` × ``side``."""
    height = plane.shape[0] // side
    width = plane.shape[1] // side
    blocks = plane[: height * side, : width * side].reshape(height, side, width, side)
    means: Plane = blocks.mean((1, 3))
    return means
