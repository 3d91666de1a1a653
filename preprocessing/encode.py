"""Pixels to a JPEG file."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_jpeg(pixels: NDArray[np.uint8], quality: int, optimize: bool) -> bytes:
    """An sRGB JPEG of pixels (height, width, 3); from quality 90 on, color keeps its full resolution."""
    buffer = io.BytesIO()
    subsampling = "4:4:4" if quality >= 90 else "4:2:0"
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=optimize, subsampling=subsampling)
    return buffer.getvalue()
