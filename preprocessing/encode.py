"""JPEG encoding of pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def to_jpeg(pixels: NDArray[np.uint8], quality: int, optimize: bool) -> bytes:
    """Encode (height, width, 3) sRGB pixels as a JPEG file.

    Color keeps its full resolution at quality 90 and above. The encoder is OpenCV's because
    Pillow's fails on noisy pictures: their file outgrows the size that it expects.
    """
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    if quality >= 90:
        sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_OPTIMIZE, int(optimize),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling,
    ]  # fmt: skip
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    succeeded, file = cv2.imencode(".jpg", bgr, options)
    assert succeeded
    return bytes(file)
