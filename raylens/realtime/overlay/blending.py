"""Drawing in place on the pixels of a frame. What lies outside the frame is left out."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from raylens.realtime.overlay.colors import Color

Pixels = NDArray[np.uint8]
"""A frame as (height, width, 3) RGB."""


@dataclass(frozen=True)
class Rectangle:
    """Pixels from ``left`` to before ``right``, and from ``top`` to before ``bottom``."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def grow(self, pixels: int) -> Rectangle:
        """Return the rectangle with a margin on every side, a negative one to shrink it."""
        return Rectangle(
            self.left - pixels, self.top - pixels, self.right + pixels, self.bottom + pixels
        )

    def within(self, width: int, height: int) -> Rectangle:
        """Return the part that is within a frame."""
        return Rectangle(
            max(0, self.left), max(0, self.top), min(width, self.right), min(height, self.bottom)
        )


@dataclass(frozen=True)
class Patch:
    """A small picture with alpha, prepared for blending: ``ground · keep / 255 + color``.

    ``color`` is premultiplied, and ``keep`` is what the alpha leaves of the ground. Both are uint8
    of shape (height, width, 3), since that is what OpenCV multiplies fastest.
    """

    color: Pixels
    keep: Pixels

    @property
    def width(self) -> int:
        return int(self.color.shape[1])

    @property
    def height(self) -> int:
        return int(self.color.shape[0])

    @property
    def nbytes(self) -> int:
        return self.color.nbytes + self.keep.nbytes


def make_patch(color: NDArray[np.float32], alpha: NDArray[np.float32], opacity: float) -> Patch:
    """Return a patch from premultiplied colors (H, W, 3), 0 to 255, and alpha (H, W), 0 to 1."""
    keep = np.rint(255 * (1 - alpha * opacity)).astype(np.uint8)
    return Patch(
        np.rint(color * opacity).astype(np.uint8), np.repeat(keep[..., np.newaxis], 3, axis=2)
    )


def blend(pixels: Pixels, patch: Patch, left: int, top: int) -> None:
    """Draw a patch at a place."""
    height, width = pixels.shape[:2]
    whole = Rectangle(left, top, left + patch.width, top + patch.height)
    area = whole.within(width, height)
    if area.width <= 0 or area.height <= 0:
        return
    part = pixels[area.top : area.bottom, area.left : area.right]
    inside = np.s_[area.top - top : area.bottom - top, area.left - left : area.right - left]
    cv2.multiply(part, patch.keep[inside], dst=part, scale=1 / 255)
    cv2.add(part, patch.color[inside], dst=part)


def fill(pixels: Pixels, area: Rectangle, color: Color, opacity: float) -> None:
    """Fill a rectangle."""
    height, width = pixels.shape[:2]
    area = area.within(width, height)
    if area.width <= 0 or area.height <= 0 or opacity <= 0:
        return
    part = pixels[area.top : area.bottom, area.left : area.right]
    cv2.convertScaleAbs(part, dst=part, alpha=1 - opacity)
    red, green, blue = (round(opacity * value) for value in color)
    cv2.add(part, (red, green, blue, 0), dst=part)


def outline(pixels: Pixels, area: Rectangle, line: int, color: Color, opacity: float) -> None:
    """Draw lines along the inside of a rectangle. No pixel is blended twice."""
    inner = area.grow(-line)
    if inner.width <= 0 or inner.height <= 0:
        fill(pixels, area, color, opacity)
        return
    for side in (
        Rectangle(area.left, area.top, area.right, inner.top),
        Rectangle(area.left, inner.bottom, area.right, area.bottom),
        Rectangle(area.left, inner.top, inner.left, inner.bottom),
        Rectangle(inner.right, inner.top, area.right, inner.bottom),
    ):
        fill(pixels, side, color, opacity)
