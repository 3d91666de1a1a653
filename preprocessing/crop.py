"""Smart crop: trim letterbox and scanner bars, and cut to the most salient window.

A bar is a band of one flat color along a whole side that ends in a straight edge. A picture's own
background is no bar: its edge is ragged (a drawn shape, lines of text), or its color continues
inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.resize import Size, thumbnail

Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""

LEFT, TOP, RIGHT, BOTTOM = range(4)
_SAMPLES = 384
"""Approximate number of pixels sampled along a line. No line is skipped."""
_FLAT = 14
"""Levels from the bar's color within which a pixel belongs to the bar."""
_FLAT_SHARE = 0.98
"""Share of a line's pixels that must belong to the bar."""
_BLOCK_LINES = 64
"""Lines that are examined at a time, so that the search can stop early."""
_THINNEST = 2
"""Minimum thickness of a bar, in lines."""
_CLOSEST = 5
"""Levels from the color of a perfectly flat bar beyond which a pixel differs from the bar."""
_EDGE_SHARE = 0.93
"""Share of the first line behind the bar that must differ from the bar. Drawn shapes fill at most
84% of a line."""
_INSIDE_SHARE = 0.85
"""Share of a strip behind the bar that must differ from the bar."""
_BLUR = 8
"""Lines over which an edge may be blurred, for example by JPEG blocks."""
_OWN_BACKGROUND = 0.25
"""A color that fills more than this share of the inside belongs to the picture."""
_TEXTURE = 2.0
"""Minimum standard deviation along the lines of the inside, in levels. The stripes of a flag have
none."""
_MIN_SIDE_SHARE = 0.25
"""Share of each side that must remain."""
_MIN_AREA_SHARE = 0.5
"""Share of the area that must remain if there are bars on both axes."""
_THUMBNAIL = 128


@dataclass(frozen=True)
class _Bar:
    """A flat band of ``thickness`` lines along a side."""

    thickness: int
    color: NDArray[np.int16]
    spread: float
    """99th percentile of the distance from ``color``, in levels."""

    def differs(self, lines: Pixels) -> NDArray[np.bool_]:
        """Return a (lines, samples) mask of the (lines, samples, 3) pixels not of the bar's
        color."""
        mask: NDArray[np.bool_] = _distance(lines, self.color) > max(_CLOSEST, 2 * self.spread)
        return mask


def content_window(pixels: Pixels) -> Window:
    """Return the window of (height, width, 3) pixels inside the bars.

    Returns the whole picture if it has no bars.
    """
    height, width = pixels.shape[:2]
    bars = _find_bars(pixels)
    while bars:
        thickness = {side: bar.thickness for side, bar in bars.items()}
        window = _trim((0, 0, width, height), thickness)
        left, top, right, bottom = window
        if not _is_enough(right - left, bottom - top, width, height):
            break
        inside = pixels[top:bottom, left:right]
        edges: dict[int, int] = {}
        for side, bar in bars.items():
            edge = _edge_thickness(_lines(inside, side), bar)
            if edge is not None:
                edges[side] = edge
        if len(edges) == len(bars):
            return _trim(window, edges)
        bars = {side: bars[side] for side in edges}
    return 0, 0, width, height


def salient_window(pixels: Pixels, size: Size) -> Window:
    """Return the largest window with the aspect ratio of ``size`` that holds most saliency.

    Saliency is the distance of a color from the mean color (Achanta et al. 2009, "Frequency-tuned
    salient region detection"), measured in a thumbnail. The middle wins if nothing stands out.
    """
    height, width = pixels.shape[:2]
    scale = min(width / size[0], height / size[1])
    window_width = min(width, max(1, round(size[0] * scale)))
    window_height = min(height, max(1, round(size[1] * scale)))
    lab = cv2.cvtColor(thumbnail(pixels, _THUMBNAIL), cv2.COLOR_RGB2LAB).astype(np.float32)
    saliency = np.linalg.norm(cv2.GaussianBlur(lab, (5, 5), 0) - lab.mean((0, 1)), axis=-1)
    left = _best_start(saliency.sum(0), width, window_width)
    top = _best_start(saliency.sum(1), height, window_height)
    return left, top, left + window_width, top + window_height


def _best_start(profile: NDArray[np.float32], side: int, window: int) -> int:
    """Return the start of the window with the largest sum of ``profile``.

    The window is ``window`` of ``side`` pixels; the samples of ``profile`` cover the side evenly.
    Among nearly equal sums the window closest to the middle wins.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    positions = np.linspace(0, side, len(cumulative))
    starts = np.arange(side - window + 1)
    at_start = np.interp(starts, positions, cumulative)
    at_end = np.interp(starts + window, positions, cumulative)
    sums = at_end - at_start
    best = starts[sums >= sums.max() * (1 - 1e-3)]
    return int(best[np.abs(best - (side - window) / 2).argmin()])


def _lines(pixels: Pixels, side: int) -> Pixels:
    """Return the lines parallel to a side, from the outside in, as (lines, samples, 3)."""
    lines = pixels.transpose(1, 0, 2) if side in (LEFT, RIGHT) else pixels
    if side in (RIGHT, BOTTOM):
        lines = lines[::-1]
    return lines[:, :: max(1, lines.shape[1] // _SAMPLES)]


def _distance(lines: Pixels, color: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the largest channel difference of each pixel from ``color``, in levels."""
    distance: NDArray[np.int16] = np.abs(lines.astype(np.int16) - color).max(-1)
    return distance


def _find_bars(pixels: Pixels) -> dict[int, _Bar]:
    bars = {}
    for side in (LEFT, TOP, RIGHT, BOTTOM):
        bar = _find_bar(_lines(pixels, side))
        if bar is not None:
            bars[side] = bar
    return bars


def _find_bar(lines: Pixels) -> _Bar | None:
    """Return the flat band that the lines begin with.

    Returns None if the band is too thin, or if it covers the whole picture.
    """
    color = np.median(lines[0], axis=0).astype(np.int16)
    thickness = _count_flat_lines(lines, color)
    if not _THINNEST <= thickness < len(lines):
        return None
    outer = lines[: max(_THINNEST, thickness - _BLUR)]
    samples = outer[:: max(1, len(outer) // 64)]
    spread = float(np.percentile(_distance(samples, color), 99))
    return _Bar(thickness, color, spread)


def _count_flat_lines(lines: Pixels, color: NDArray[np.int16]) -> int:
    """Return how many lines from the first on are flat."""
    count = 0
    while count < len(lines):
        distance = _distance(lines[count : count + _BLOCK_LINES], color)
        is_flat = (distance <= _FLAT).mean(1) >= _FLAT_SHARE
        if not is_flat.all():
            return count + int(is_flat.argmin())
        count += len(is_flat)
    return count


def _edge_thickness(lines: Pixels, bar: _Bar) -> int | None:
    """Return how many of the lines inside the bar belong to its blurred edge.

    Returns None if the edge is not straight, or if the inside is not a picture.
    """
    differs = bar.differs(lines[: _BLUR + max(_BLUR, len(lines) // 25)])
    begins = np.flatnonzero(differs[: _BLUR + 1].mean(1) >= _EDGE_SHARE)
    if not len(begins) or differs[begins[0] :].mean() < _INSIDE_SHARE:
        return None
    samples = lines[:: max(1, len(lines) // _SAMPLES)]
    texture = samples.astype(np.float32).std(1).mean()
    if texture < max(_TEXTURE, bar.spread) or 1 - bar.differs(samples).mean() > _OWN_BACKGROUND:
        return None
    return int(begins[0])


def _trim(window: Window, thickness: dict[int, int]) -> Window:
    left, top, right, bottom = window
    return (
        left + thickness.get(LEFT, 0),
        top + thickness.get(TOP, 0),
        right - thickness.get(RIGHT, 0),
        bottom - thickness.get(BOTTOM, 0),
    )


def _is_enough(inner_width: int, inner_height: int, width: int, height: int) -> bool:
    """Whether enough of the picture remains without its bars."""
    width_share = inner_width / width
    height_share = inner_height / height
    if width_share < 1 and height_share < 1 and width_share * height_share < _MIN_AREA_SHARE:
        return False
    return min(width_share, height_share) >= _MIN_SIDE_SHARE
