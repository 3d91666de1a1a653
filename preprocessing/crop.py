"""Smart crop: letterbox and scanner bars off, and, where a picture must change its shape, its most
salient window.

A bar is a band of one flat color along a whole side that ends in a straight edge. A picture's own
background is none: its edge is ragged (a drawn shape, lines of text), or its color goes on inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.resize import Size, thumbnail

Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""

LEFT, TOP, RIGHT, BOTTOM = range(4)
_SAMPLES = 384
"""Pixels that are looked at across a line; the lines themselves all count."""
_FLAT, _FLAT_SHARE = 14, 0.98
"""A line of a bar: nearly all of it within so many levels of the bar's color."""
_THINNEST = 2
_CLOSEST = 5
"""Levels from the bar's color at which something else begins, where the bar is perfectly flat."""
_EDGE_SHARE, _INSIDE_SHARE = 0.93, 0.85
"""How much differs from the bar, of the line behind it and of a strip. Drawn shapes fill 84% of a
line at most."""
_BLUR = 8
"""Lines within which an edge may be softened, as by the blocks of a JPEG."""
_OWN_BACKGROUND = 0.25
"""A color that fills this share of the inside is the picture's own."""
_TEXTURE = 2.0
"""Standard deviation along the lines of the inside, in levels: a flag's stripes have none."""
_KEEP_OF_SIDE, _KEEP_OF_BOTH = 0.25, 0.5
"""What must be left: of a side, and of the area where bars lie on both axes."""
_THUMBNAIL = 128


@dataclass(frozen=True)
class _Bar:
    """A flat band of ``thickness`` lines along a side; ``spread``: how far its levels stray from
    its color."""

    thickness: int
    color: NDArray[np.int16]
    spread: float

    def differs(self, lines: Pixels) -> NDArray[np.bool_]:
        """Which pixels of (lines, samples, 3) are something else: (lines, samples)."""
        different: NDArray[np.bool_] = _distance(lines, self.color) > max(_CLOSEST, 2 * self.spread)
        return different


def without_bars(pixels: Pixels) -> Window:
    """The window of (height, width, 3) pixels that is left without its bars; the whole picture
    where it has none."""
    height, width = pixels.shape[:2]
    bars = {side: bar for side in range(4) if (bar := _bar(_lines(pixels, side))) is not None}
    while bars:
        left, top, right, bottom = window = _trim(
            (0, 0, width, height), {s: b.thickness for s, b in bars.items()}
        )
        if not _is_enough(right - left, bottom - top, width, height):
            break
        inside = pixels[top:bottom, left:right]
        edges = {side: _edge(_lines(inside, side), bar) for side, bar in bars.items()}
        if None not in edges.values():
            return _trim(window, {side: edge or 0 for side, edge in edges.items()})
        bars = {side: bar for side, bar in bars.items() if edges[side] is not None}
    return 0, 0, width, height


def salient_window(pixels: Pixels, size: Size) -> Window:
    """The largest window of the shape of ``size`` with most saliency in it.

    Saliency is a color's distance from the mean color (Achanta et al. 2009, "Frequency-tuned
    salient region detection"), looked at in a thumbnail; the middle wins where nothing stands out.
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
    """Where a window of ``window`` of ``side`` pixels catches most of ``profile``, which covers the
    side evenly."""
    edges = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    starts = np.arange(side - window + 1)
    places = np.linspace(0, side, len(edges))
    caught = np.interp(starts + window, places, edges) - np.interp(starts, places, edges)
    good = starts[caught >= caught.max() * (1 - 1e-3)]
    return int(good[np.abs(good - (side - window) / 2).argmin()])


def _lines(pixels: Pixels, side: int) -> Pixels:
    """Lines parallel to a side, from the outside in, as (lines, samples, 3)."""
    lines = pixels.transpose(1, 0, 2) if side in (LEFT, RIGHT) else pixels
    if side in (RIGHT, BOTTOM):
        lines = lines[::-1]
    return lines[:, :: max(1, lines.shape[1] // _SAMPLES)]


def _distance(lines: Pixels, color: NDArray[np.int16]) -> NDArray[np.int16]:
    """The largest difference over the channels."""
    distance: NDArray[np.int16] = np.abs(lines.astype(np.int16) - color).max(-1)
    return distance


def _bar(lines: Pixels) -> _Bar | None:
    """The flat band that the lines begin with; None where there is none, or nothing else."""
    color = np.median(lines[0], axis=0).astype(np.int16)
    thickness, block = 0, 64
    while thickness < len(lines):
        distance = _distance(lines[thickness : thickness + block], color)
        flat = (distance <= _FLAT).mean(1) >= _FLAT_SHARE
        if not flat.all():
            thickness += int(flat.argmin())
            break
        thickness += len(flat)
    if not _THINNEST <= thickness < len(lines):
        return None
    outer = lines[: max(_THINNEST, thickness - _BLUR)]
    return _Bar(
        thickness,
        color,
        float(np.percentile(_distance(outer[:: max(1, len(outer) // 64)], color), 99)),
    )


def _edge(lines: Pixels, bar: _Bar) -> int | None:
    """How many lines of the inside the edge is blurred over; None where this is no straight edge,
    or no picture."""
    differs = bar.differs(lines[: _BLUR + max(_BLUR, len(lines) // 25)])
    begins = np.flatnonzero(differs[: _BLUR + 1].mean(1) >= _EDGE_SHARE)
    if not len(begins) or differs[begins[0] :].mean() < _INSIDE_SHARE:
        return None
    some = lines[:: max(1, len(lines) // _SAMPLES)]
    texture = some.astype(np.float32).std(1).mean()
    if texture < max(_TEXTURE, bar.spread) or 1 - bar.differs(some).mean() > _OWN_BACKGROUND:
        return None
    return int(begins[0])


def _trim(window: Window, by: dict[int, int]) -> Window:
    left, top, right, bottom = window
    return (
        left + by.get(LEFT, 0),
        top + by.get(TOP, 0),
        right - by.get(RIGHT, 0),
        bottom - by.get(BOTTOM, 0),
    )


def _is_enough(inner_width: int, inner_height: int, width: int, height: int) -> bool:
    across, down = inner_width / width, inner_height / height
    if across < 1 and down < 1 and across * down < _KEEP_OF_BOTH:
        return False
    return min(across, down) >= _KEEP_OF_SIDE
