"""The limits on a picture file, as the preprocessing package takes them."""

from __future__ import annotations

from preprocessing.header import PictureLimits
from raylens.core.config import RequestLimits


def picture_limits(limits: RequestLimits) -> PictureLimits:
    return PictureLimits(
        max_bytes=limits.max_image_bytes,
        max_pixels=limits.max_image_pixels,
        min_side=limits.min_image_side,
        max_side=limits.max_image_side,
    )
