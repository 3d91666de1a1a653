"""The size that a recipe gives a picture, and bringing the picture to it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from raylens.core.recipe import Recipe

Size = tuple[int, int]
"""(width, height) in pixels."""


def target_size(size: Size, recipe: Recipe) -> Size:
    """What ``recipe`` makes of a picture of ``size``."""
    if not recipe.preserve_aspect_ratio:
        return recipe.size
    width, height = size
    fitting = min(recipe.size[0] / width, recipe.size[1] / height)
    scale = min(fitting, 1.0)
    if min(width, height) * scale < recipe.min_size:
        scale = min(fitting, recipe.min_size / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """The picture, (height, width, 3), at ``size``: by area where it shrinks, then bicubic where it
    grows."""
    least = min(size[0], pixels.shape[1]), min(size[1], pixels.shape[0])
    if least != (pixels.shape[1], pixels.shape[0]):
        pixels = np.asarray(cv2.resize(pixels, least, interpolation=cv2.INTER_AREA), np.uint8)
    if least != size:
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    return pixels


def thumbnail(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The picture with no side over ``side``, for looking at it as a whole."""
    scale = min(1.0, side / max(pixels.shape[:2]))
    return resize(
        pixels, (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    )
