"""Pictures of streams and folders, decoded."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raylens.realtime.overlay import Pixels
from raylens.realtime.sources.base import SourceOptions

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
)


class BrokenPicture(ValueError):
    """These bytes are not a picture, or the picture is damaged or too large."""


def decode_picture(data: bytes, options: SourceOptions) -> Pixels:
    """Return a picture upright, as RGB; the first one of several. Transparent parts are white.

    Raises ``BrokenPicture``.
    """
    if len(data) > options.max_picture_bytes:
        raise BrokenPicture(f"{len(data)} bytes; the limit is {options.max_picture_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures: the limit here is our own
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _check_size(picture, options)
                return _to_rgb(picture)
    except BrokenPicture:
        raise
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise BrokenPicture(_reason(data, error)) from error


def _check_size(picture: Image.Image, options: SourceOptions) -> None:
    width, height = picture.size
    if width * height > options.max_pixels:
        limit = options.max_pixels
        raise BrokenPicture(f"{width}×{height} pixels; the limit is {limit} pixels")


def _to_rgb(picture: Image.Image) -> Pixels:
    picture.load()  # raises if the file is cut off
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("I", "I;16", "I;16B"):
        upright = Image.fromarray((np.asarray(upright, np.uint32) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        upright = Image.alpha_composite(
            Image.new("RGBA", upright.size, "white"), upright.convert("RGBA")
        )
    return np.array(upright.convert("RGB"))


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that can be read"
    return f"damaged: {error}"[:200]
