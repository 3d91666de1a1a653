"""Bringing a picture down to a longest side."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def fit(pixels: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """The picture, (height, width, 3), with no side over ``max_side``; never enlarged, and the aspect ratio kept."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= max_side:
        return pixels
    size = (max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest)))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)
