"""The target size that a recipe gives a picture, and resizing to it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from raylens.core.recipe import Recipe

Size = tuple[int, int]
"""(width, height) in pixels."""


def target_size(size: Size, recipe: Recipe) -> Size:
    """Return the size that ``recipe`` gives to a picture of ``size``."""
    if not recipe.preserve_aspect_ratio:
        return recipe.size
    width, height = size
    fit_scale = min(recipe.size[0] / width, recipe.size[1] / height)
    scale = min(fit_scale, 1.0)
    if min(width, height) * scale < recipe.min_size:
        scale = min(fit_scale, recipe.min_size / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize (height, width, 3) pixels to ``size``.

    Sides that shrink are area-averaged first; sides that grow are interpolated bicubically after.
    """
    height, width = pixels.shape[:2]
    shrunk = min(size[0], width), min(size[1], height)
    if shrunk != (width, height):
        pixels = np.asarray(cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    if shrunk != size:
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    return pixels


def thumbnail(pixels: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """Shrink the picture so that no side exceeds ``max_side``, for measurements of the whole."""
    height, width = pixels.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    return resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))))
