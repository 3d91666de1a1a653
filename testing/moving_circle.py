"""A drawn circle that moves, and where it and its box are in a frame."""

from __future__ import annotations

import cv2
import numpy as np

from raylens.realtime.overlay import Pixels

RED = (220, 40, 40)
SIDE = 144
TOLERANCE = 70
"""Of each channel: videos are compressed."""
Bounds = tuple[int, int, int, int]
"""Left, top, right and bottom, all of them included."""


def draw_circle(left: int) -> Pixels:
    """Return a red circle on gray, 640×480."""
    pixels = np.full((480, 640, 3), 190, np.uint8)
    center = (left + SIDE // 2, 180 + SIDE // 2)
    cv2.circle(pixels, center, SIDE // 2, RED, -1, cv2.LINE_AA)
    return pixels


def find(pixels: Pixels, color: tuple[int, int, int]) -> Bounds | None:
    """Return the bounds of the pixels of about a color."""
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - color).max(axis=2) < TOLERANCE)
    if not len(rows):
        return None
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def iou(one: Bounds, other: Bounds) -> float:
    def area(left: int, top: int, right: int, bottom: int) -> int:
        return max(0, right - left + 1) * max(0, bottom - top + 1)

    common = area(*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    return common / (area(*one) + area(*other) - common)
