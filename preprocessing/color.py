"""Color balance: detect faults of color and light in a picture, and correct them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.resize import thumbnail
from raylens.core.recipe import ColorBalance

Pixels = NDArray[np.uint8]
Gains = NDArray[np.float32]
"""One factor per channel: red, green, blue."""

_THUMBNAIL = 128
"""Longest side, in pixels, of the thumbnail searched for a color cast. Averaging removes noise and
text."""
_GRID = 512
"""Approximate number of pixels per side sampled for the range of levels. They are single pixels,
because averaging would weaken thin lines."""
_EXTREMES = (0.1, 99.9)
"""Percentiles taken as the darkest and the lightest level."""
_MID_GRAY = 118
"""18% reflectance in sRGB, the level that photographers expose the middle of a picture for."""
_DARK = 85
"""A picture is dark if its lightest level is below this."""
_FLAT = 60
"""A picture has low contrast if its levels span less than this."""
_EMPTY = 6
"""A picture is empty if its levels span less than this."""
_LIGHTEST = 235
"""Level up to which the lightest pixels are raised."""
_MAX_GAIN = 5.0
_MAX_CAST_GAIN = 2.0
"""A tint that needs a larger channel gain is no cast."""
_NEUTRAL_CHROMA = 5.0
"""A pixel is gray if its Lab chroma is below this."""
_NEUTRAL_SHARE = 0.01
"""A picture has no cast if more than this share of its pixels is gray."""
_MODE_RADIUS = 4.0
"""Distance from the prevailing tint, in Lab a and b, within which a pixel has that tint."""
_MODE_SHARE = 0.5
"""A cast requires that at least this share of the picture has one tint."""
_OTHER_DISTANCE = 15.0
"""Distance from the tint, in Lab a and b, beyond which a pixel has another color."""
_OTHER_SHARE = 0.003
"""A cast requires that at least this share of the picture has another color. A wooden plank is
brown all over in any light."""
_CAST_CHROMA = (8.0, 45.0)
"""Chroma range of a cast. A weaker tint is no fault; a stronger one is a color."""
_MIN_LIGHTNESS = 20.0
"""Lab lightness, of 100, below which a pixel's color is too uncertain to count."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weight of each channel in lightness (ITU-R BT.601)."""


@dataclass(frozen=True)
class Faults:
    """Faults of a picture and their corrections. None means that there is no such fault."""

    gains: Gains | None = None
    """Channel gains that remove a color cast."""
    levels: tuple[float, float] | None = None
    """Gain and offset that correct darkness or low contrast."""
    descriptions: tuple[str, ...] = ()


def balance(pixels: Pixels, settings: ColorBalance) -> tuple[Pixels, str] | None:
    """Return corrected (height, width, 3) pixels and a description of the correction.

    Returns None if ``auto`` finds no fault.
    """
    if settings.enabled == "auto":
        faults = find_faults(pixels)
        if not faults.descriptions:
            return None
        return _correct(pixels, faults), ", ".join(faults.descriptions)
    match settings.method:
        case "lab":
            lightness = settings.l_channel_boost
            color = settings.ab_channel_boost
            description = f"lab, L × {lightness:g}, a and b × {color:g}"
            return _boost(pixels, lightness, color), description
        case "gray_world":
            gains = _gray_world_gains(pixels)
            return _apply(pixels, gains, 0.0), f"gray_world, gains {_format(gains)}"
        case "clahe":
            return _clahe(pixels), "clahe, clip limit 2, 8 × 8"


def find_faults(pixels: Pixels) -> Faults:
    """Return the color cast, darkness and low contrast of (height, width, 3) pixels.

    Doubtful faults are left out.
    """
    descriptions: list[str] = []
    gains = _find_cast(pixels)
    if gains is not None:
        descriptions.append(f"color cast, gains {_format(gains)}")
        pixels = _apply(pixels, gains, 0.0)
    levels = _find_levels(pixels)
    if levels is not None:
        descriptions.append(f"levels × {levels[0]:.2f} {levels[1]:+.0f}")
    return Faults(gains, levels, tuple(descriptions))


def _correct(pixels: Pixels, faults: Faults) -> Pixels:
    gains = np.ones(3, np.float32) if faults.gains is None else faults.gains
    gain, offset = faults.levels or (1.0, 0.0)
    return _apply(pixels, gains * np.float32(gain), offset)


def _find_cast(pixels: Pixels) -> Gains | None:
    """Return the gains that turn the prevailing tint gray, or None if there is no certain cast.

    A cast tints everything. It is certain if most of the picture has one slight tint, something
    has another color, and nothing is gray. Beside a colored wall or a sky there is usually
    something gray.
    """
    small = thumbnail(pixels, _THUMBNAIL).reshape(-1, 3)
    lab = cv2.cvtColor(small[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    is_lit = lab[:, 0] > _MIN_LIGHTNESS
    if is_lit.mean() < _MODE_SHARE:
        return None
    small = small[is_lit]
    colors = lab[is_lit, 1:]
    if (np.hypot(*colors.T) < _NEUTRAL_CHROMA).mean() > _NEUTRAL_SHARE:
        return None
    is_tinted = _distance(colors, _mode(colors)) < _MODE_RADIUS
    if is_tinted.mean() < _MODE_SHARE:
        return None
    tint = colors[is_tinted].mean(0)
    if not _CAST_CHROMA[0] < np.hypot(*tint) < _CAST_CHROMA[1]:
        return None
    if (_distance(colors, tint) > _OTHER_DISTANCE).mean() < _OTHER_SHARE:
        return None
    light = np.maximum(small[is_tinted].mean(0, dtype=np.float32), 1.0)
    gains: Gains = (light @ _LUMA / light).astype(np.float32)
    return gains if gains.max() <= _MAX_CAST_GAIN else None


def _mode(colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the most frequent color of (count, 2) Lab a and b, to within two units."""
    span = np.array([-64.0, 64.0])
    histogram, *edges = np.histogram2d(colors[:, 0], colors[:, 1], bins=64, range=[span, span])
    a, b = np.unravel_index(histogram.argmax(), histogram.shape)
    return np.array([edges[0][a] + 1, edges[1][b] + 1], np.float32)


def _distance(colors: NDArray[np.float32], color: NDArray[np.float32]) -> NDArray[np.float32]:
    distance: NDArray[np.float32] = np.hypot(*(colors - color).T)
    return distance


def _find_levels(pixels: Pixels) -> tuple[float, float] | None:
    """Return a gain and an offset that correct darkness or low contrast, or None if there is none.

    The middle of the picture stays near middle gray.
    """
    height, width = pixels.shape[:2]
    row_step = max(1, height // _GRID)
    column_step = max(1, width // _GRID)
    samples = np.ascontiguousarray(pixels[::row_step, ::column_step])
    darkest, lightest = (_percentile(samples.reshape(-1), percent) for percent in _EXTREMES)
    middle = _percentile(cv2.cvtColor(samples, cv2.COLOR_RGB2GRAY).reshape(-1), 50)
    span = lightest - darkest
    if span < _EMPTY:
        return None
    if lightest < _DARK:
        gain = min(_MAX_GAIN, _LIGHTEST / lightest, _MID_GRAY / max(middle, 1.0))
        return (gain, 0.0) if gain > 1.0 else None
    if span < _FLAT:
        gain = min(_MAX_GAIN, (_LIGHTEST - 20) / span)
        # The middle keeps its level unless that would clip the darkest or lightest pixels.
        new_middle = min(max(middle, (middle - darkest) * gain), 255 - (lightest - middle) * gain)
        return gain, new_middle - middle * gain
    return None


def _percentile(levels: Pixels, percent: float) -> int:
    """Return the level below which ``percent`` of (count,) levels lie.

    A histogram of bytes is much faster than sorting.
    """
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).cumsum()
    return int(np.searchsorted(counts, counts[-1] * percent / 100))


def _gray_world_gains(pixels: Pixels) -> Gains:
    """Return the gains that make the mean color of the picture gray (Buchsbaum 1980)."""
    means = np.maximum(np.array(cv2.mean(pixels)[:3], np.float32), 1.0)
    gains: Gains = np.clip(means.mean() / means, 1 / _MAX_GAIN, _MAX_GAIN).astype(np.float32)
    return gains


def _apply(pixels: Pixels, gains: Gains, offset: float) -> Pixels:
    """Multiply each channel by its gain and add the offset, through a table of 256 levels."""
    levels = np.arange(256, dtype=np.float32)[:, None] * gains + np.float32(offset)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(pixels, table[None]), np.uint8)


def _boost(pixels: Pixels, lightness: float, color: float) -> Pixels:
    """Scale Lab lightness from black, and a and b from gray, which is 128 in 8-bit Lab."""
    levels = np.arange(256, dtype=np.float32)
    around_gray = 128 + (levels - 128) * color
    scaled = np.stack([levels * lightness, around_gray, around_gray], -1)
    table = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    lab = cv2.LUT(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), table[None])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _clahe(pixels: Pixels) -> Pixels:
    """Apply contrast-limited adaptive histogram equalization (Zuiderveld 1994) to lightness."""
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _format(gains: Gains) -> str:
    return " ".join(f"{gain:.2f}" for gain in gains)
