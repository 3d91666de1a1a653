"""A picture file to upright RGB pixels, with every limit checked on the header, before anything is decoded."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from preprocessing.geometry import ORIENTATIONS, Geometry
from raylens.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia

FORMATS = ("JPEG", "PNG", "WEBP")
_MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP", re.DOTALL)
"""How files of ``FORMATS`` begin."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a stored picture upright, by EXIF orientation."""
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)

# Pillow's own guard would refuse without saying our limit; ``_check_size`` is stricter and runs before any decoding.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class DecodeLimits:
    """Limits on one picture file: bytes, pixels and the sides in pixels."""

    max_bytes: int
    max_pixels: int
    min_side: int
    max_side: int


def decode(data: bytes, limits: DecodeLimits) -> tuple[NDArray[np.uint8], Geometry]:
    """RGB pixels of shape (height, width, 3), turned upright by the EXIF orientation, and the way back.

    Transparent pixels are laid onto white. Raises ``PayloadTooLarge``, ``UnsupportedMedia`` where the bytes are not
    one of ``FORMATS``, and ``InvalidRequest`` where the file is damaged or too small.
    """
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(
            f"image: {len(data)} bytes; the limit is {limits.max_bytes} bytes", "image", limits.max_bytes, len(data)
        )
    with _open(data) as picture:
        _check_size(picture.width, picture.height, limits)
        try:
            picture.load()
            orientation = _orientation(picture)
            pixels = np.asarray(_upright(_to_rgb(picture), orientation))
        except _BROKEN as error:
            raise _damaged(data, error) from error
        geometry = Geometry(picture.size, picture.size)
    size = (pixels.shape[1], pixels.shape[0])
    return pixels, geometry.then(size, ORIENTATIONS[orientation])


def _open(data: bytes) -> Image.Image:
    """The file with its header read."""
    if not data:
        raise UnsupportedMedia("image: it is empty (0 bytes)", "image")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except _BROKEN as error:
        if _MAGIC.match(data):
            raise _damaged(data, error) from error
        raise UnsupportedMedia(
            f"image: not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture; {len(data)} bytes"
            f" that begin with {data[:8]!r}",
            "image",
        ) from error


def _damaged(data: bytes, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"image: the file of {len(data)} bytes is truncated or damaged ({error})"[:300], "image")


def _check_size(width: int, height: int, limits: DecodeLimits) -> None:
    shape = f"image: {width}×{height} pixels"
    if width * height > limits.max_pixels:
        raise PayloadTooLarge(
            f"{shape}; the limit is {limits.max_pixels} pixels in all", "image", limits.max_pixels, width * height
        )
    if max(width, height) > limits.max_side:
        raise PayloadTooLarge(
            f"{shape}; the limit is {limits.max_side} pixels a side", "image", limits.max_side, max(width, height)
        )
    if min(width, height) < limits.min_side:
        raise InvalidRequest(
            f"{shape}; at least {limits.min_side} pixels a side are needed",
            "image",
            limits.min_side,
            min(width, height),
        )


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that can be read.

    Asked for after loading: PNG may carry its EXIF block behind the pixels.
    """
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the tags are the sender's: whatever is wrong with them, the picture is still there
        return 1
    return orientation if orientation in ORIENTATIONS else 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """RGB, with 16-bit gray scaled to 8 bits and transparency laid onto white."""
    if picture.mode.startswith("I"):
        gray = np.asarray(picture).astype(np.int64) // 257
        picture = Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
