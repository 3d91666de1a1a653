"""Pixels to a JPEG file."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def to_jpeg(pixels: NDArray[np.uint8], quality: int, optimize: bool) -> bytes:
    """An sRGB JPEG of pixels (height, width, 3); from quality 90 on, color keeps its full
    resolution.

    OpenCV's encoder and not Pillow's, which fails on noisy pictures whose file outgrows what it
    expects.
    """
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        if quality >= 90
        else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    )
    options = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_OPTIMIZE: int(optimize),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: sampling,
    }
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, file = cv2.imencode(
        ".jpg", bgr, [number for option in options.items() for number in option]
    )
    assert done
    return bytes(file)
