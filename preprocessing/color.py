"""Color balance: what is wrong with a picture's color and light, and corrections of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.resize import thumbnail
from raylens.core.recipe import ColorBalance

Pixels = NDArray[np.uint8]
Triple = NDArray[np.float32]
"""One number a channel, red, green, blue."""

_THUMBNAIL = 128
"""Longest side, in pixels, of the picture in which a cast is looked for: noise and text are
averaged away."""
_GRID = 512
"""Pixels a side, at most, that are looked at for the range of levels; single ones, so that thin
lines keep theirs."""
_EXTREMES = (0.1, 99.9)
"""Percentiles that count as darkest and lightest."""
_MID_GRAY = 118
"""18% reflectance in sRGB: where photographers put the middle of a picture."""
_DARK = 85
"""A picture whose lightest level is under this is dark."""
_FLAT = 60
"""A picture whose levels span less than this is low in contrast; under ``_EMPTY``, there is nothing
in it."""
_EMPTY = 6
_LIGHTEST = 235
_MAX_GAIN, _MAX_CAST_GAIN = 5.0, 2.0
_NEUTRAL_CHROMA, _NEUTRAL_SHARE = 5.0, 0.01
"""Lab chroma under which a pixel is gray, and the share of such pixels from which there is no cast."""
_MODE_RADIUS, _MODE_SHARE = 4.0, 0.5
"""A cast shows as one tint that this share of the picture has, within so much in a and b."""
_OTHER_DISTANCE, _OTHER_SHARE = 15.0, 0.003
"""How far off, and how much of the picture, another color must be: a plank is brown all over in any
light."""
_CAST_CHROMA = (8.0, 45.0)
"""Less is no fault, and more is a color."""
_LIGHT_ENOUGH = 20.0
"""Lab lightness, of 100, under which a pixel has no color to speak of."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601: what each channel adds to lightness."""


@dataclass(frozen=True)
class Faults:
    """What is wrong: ``gains`` undo a color cast, ``gain`` and ``offset`` darkness or low contrast;
    None is well."""

    gains: Triple | None = None
    levels: tuple[float, float] | None = None
    names: tuple[str, ...] = ()


def balance(pixels: Pixels, settings: ColorBalance) -> tuple[Pixels, str] | None:
    """(height, width, 3) pixels corrected, and what was done; None under ``auto`` where nothing is
    wrong."""
    if settings.enabled == "auto":
        faults = find_faults(pixels)
        return None if not faults.names else (_correct(pixels, faults), ", ".join(faults.names))
    match settings.method:
        case "lab":
            boosts = f"L × {settings.l_channel_boost:g}, a and b × {settings.ab_channel_boost:g}"
            return _boost(
                pixels, settings.l_channel_boost, settings.ab_channel_boost
            ), f"lab, {boosts}"
        case "gray_world":
            gains = _gray_world(pixels)
            return _apply(pixels, gains, 0.0), f"gray_world, gains {_say(gains)}"
        case "clahe":
            return _clahe(pixels), "clahe, clip limit 2, 8 × 8"


def find_faults(pixels: Pixels) -> Faults:
    """A color cast, darkness and low contrast of (height, width, 3) pixels, where there is no doubt
    about them."""
    names: list[str] = []
    gains = _cast(pixels)
    if gains is not None:
        names.append(f"color cast, gains {_say(gains)}")
        pixels = _apply(pixels, gains, 0.0)
    levels = _levels(pixels)
    if levels is not None:
        names.append(f"levels × {levels[0]:.2f} {levels[1]:+.0f}")
    return Faults(gains, levels, tuple(names))


def _correct(pixels: Pixels, faults: Faults) -> Pixels:
    gains = np.ones(3, np.float32) if faults.gains is None else faults.gains
    gain, offset = faults.levels or (1.0, 0.0)
    return _apply(pixels, gains * np.float32(gain), offset)


def _cast(pixels: Pixels) -> Triple | None:
    """The gains that turn a picture's prevailing tint to gray, where that tint must be the light's.

    It is where most of the picture has one slight tint, something has another color, and nothing is
    gray: light tints everything, and a colored wall or a sky has something gray beside it.
    """
    small = thumbnail(pixels, _THUMBNAIL).reshape(-1, 3)
    lab = cv2.cvtColor(small[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    lit = lab[:, 0] > _LIGHT_ENOUGH
    if (
        lit.mean() < _MODE_SHARE
        or (np.hypot(*lab[lit, 1:].T) < _NEUTRAL_CHROMA).mean() > _NEUTRAL_SHARE
    ):
        return None
    small, colors = small[lit], lab[lit, 1:]
    near = _distance(colors, _mode(colors)) < _MODE_RADIUS
    if near.mean() < _MODE_SHARE:
        return None
    tint = colors[near].mean(0)
    if not _CAST_CHROMA[0] < np.hypot(*tint) < _CAST_CHROMA[1]:
        return None
    if (_distance(colors, tint) > _OTHER_DISTANCE).mean() < _OTHER_SHARE:
        return None
    light = np.maximum(small[near].mean(0, dtype=np.float32), 1.0)
    gains: Triple = (light @ _LUMA / light).astype(np.float32)
    return gains if gains.max() <= _MAX_CAST_GAIN else None


def _mode(colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The most frequent of (count, 2) a and b, to two units."""
    span = np.array([-64.0, 64.0])
    histogram, *edges = np.histogram2d(colors[:, 0], colors[:, 1], bins=64, range=[span, span])
    places = np.unravel_index(histogram.argmax(), histogram.shape)
    return np.array(
        [edge[place] + 1 for edge, place in zip(edges, places, strict=True)], np.float32
    )


def _distance(colors: NDArray[np.float32], color: NDArray[np.float32]) -> NDArray[np.float32]:
    distance: NDArray[np.float32] = np.hypot(*(colors - color).T)
    return distance


def _levels(pixels: Pixels) -> tuple[float, float] | None:
    """Gain and offset against darkness or low contrast; the middle of the picture stays near middle
    gray."""
    rows, columns = (max(1, side // _GRID) for side in pixels.shape[:2])
    seen = np.ascontiguousarray(pixels[::rows, ::columns])
    darkest, lightest = (_percentile(seen.reshape(-1), share) for share in _EXTREMES)
    middle, span = (
        _percentile(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY).reshape(-1), 50),
        lightest - darkest,
    )
    if span < _EMPTY:
        return None
    if lightest < _DARK:
        gain = min(_MAX_GAIN, _LIGHTEST / lightest, _MID_GRAY / max(middle, 1.0))
        return (gain, 0.0) if gain > 1.0 else None
    if span < _FLAT:
        gain = min(_MAX_GAIN, (_LIGHTEST - 20) / span)
        # The middle stays where it is, unless that would cut the ends off.
        place = min(max(middle, (middle - darkest) * gain), 255 - (lightest - middle) * gain)
        return gain, place - middle * gain
    return None


def _percentile(levels: Pixels, percent: float) -> int:
    """The level under which so much of (count,) levels lies: a histogram of bytes is far quicker
    than sorting."""
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).cumsum()
    return int(np.searchsorted(counts, counts[-1] * percent / 100))


def _gray_world(pixels: Pixels) -> Triple:
    """Buchsbaum 1980: the mean of a picture is taken for gray."""
    means = np.maximum(np.array(cv2.mean(pixels)[:3], np.float32), 1.0)
    gains: Triple = np.clip(means.mean() / means, 1 / _MAX_GAIN, _MAX_GAIN).astype(np.float32)
    return gains


def _apply(pixels: Pixels, gains: Triple, offset: float) -> Pixels:
    """Each channel times its gain, plus the offset, by a table of its 256 levels."""
    levels = np.arange(256, dtype=np.float32)[:, None] * gains + np.float32(offset)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(pixels, table[None]), np.uint8)


def _boost(pixels: Pixels, lightness: float, color: float) -> Pixels:
    """Lightness scaled from black, and a and b from gray, which 8-bit Lab puts at 128."""
    levels = np.arange(256, dtype=np.float32)
    around_gray = 128 + (levels - 128) * color
    table = np.clip(
        np.rint(np.stack([levels * lightness, around_gray, around_gray], -1)), 0, 255
    ).astype(np.uint8)
    lab = cv2.LUT(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), table[None])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _clahe(pixels: Pixels) -> Pixels:
    """Contrast-limited adaptive histogram equalization (Zuiderveld 1994) of lightness."""
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _say(gains: Triple) -> str:
    return " ".join(f"{gain:.2f}" for gain in gains)
