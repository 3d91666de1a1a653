"""Decoding of a picture file to upright RGB pixels.

Every limit is checked on the header before any pixel is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing import jpeg
from preprocessing.flatten import profile_of, to_rgb
from preprocessing.geometry import ORIENTATIONS, Geometry, compose, invert
from preprocessing.header import (
    JPEG_FORMATS,
    PictureLimits,
    check_header,
    check_length,
    damaged,
    format_name,
    open_picture,
    orientation_of,
)
from preprocessing.memory import Reserve, estimate_picture
from preprocessing.png import clean_png
from preprocessing.resize import Size
from raylens.core.errors import RaylensError

Pixels = NDArray[np.uint8]
"""A picture as (height, width, 3) RGB."""

_ROTATE_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""Functions that turn a stored picture upright, by EXIF orientation."""


@dataclass(frozen=True)
class Decoded:
    """An upright picture and its geometry."""

    pixels: Pixels
    """Upright pixels in the color space of ``profile``."""
    geometry: Geometry
    stored_size: Size
    """(width, height) of the file's own pixels, before any EXIF rotation."""
    profile: bytes | None
    """ICC profile that remains to be applied; None means sRGB."""
    description: str
    """Format, pixel mode and EXIF orientation of the file."""
    warnings: tuple[str, ...] = ()


def decode(
    data: bytes,
    limits: PictureLimits,
    required_size: Callable[[Size], Size] | None = None,
    reserve: Reserve = lambda count: None,
) -> Decoded:
    """Decode the first frame of a picture file to 8-bit RGB, transparency composited onto white.

    ``required_size`` maps the upright size to the smallest size that suffices. A JPEG may then be
    decoded at a half, a quarter or an eighth of its size. ``reserve`` is called with the bytes that
    decoding takes; what it raises propagates. Raises ``PayloadTooLarge`` if a limit is
    exceeded, ``UnsupportedMedia`` if the format or the pixel mode is not supported, and
    ``InvalidRequest`` if the file is damaged or the picture is too small.
    """
    check_length(data, limits)
    sent = data
    data, warnings = clean_png(data)
    with open_picture(data) as picture:
        check_header(picture, data, limits)
        reserve(estimate_picture(picture.format, *picture.size))
        try:
            description = f"{format_name(data)}, {picture.mode}"
            stored = _decode_jpeg(picture, data, required_size or _full_size)
            if stored is None:
                stored = _decode_with_pillow(picture, data)
            return _turn_upright(stored, description, warnings)
        except RaylensError:
            raise
        except Exception as error:  # a damaged file can make Pillow raise anything
            raise damaged(sent, error) from error


def _full_size(size: Size) -> Size:
    return size


@dataclass(frozen=True)
class _Stored:
    """A decoded picture before it is turned upright."""

    pixels: Pixels
    size: Size
    """(width, height) of the stored picture at full scale."""
    orientation: int
    profile: bytes | None
    warnings: tuple[str, ...] = ()
    extent: tuple[float, float] = (1.0, 1.0)
    """Width and height covered by ``pixels``, as a multiple of the picture's own."""
    is_upright: bool = False
    """Whether the decoder has already turned the pixels upright."""


def _turn_upright(stored: _Stored, description: str, warnings: tuple[str, ...]) -> Decoded:
    pixels = stored.pixels
    orientation = stored.orientation
    if orientation in _ROTATE_UPRIGHT and not stored.is_upright:
        pixels = np.asarray(_ROTATE_UPRIGHT[orientation](pixels), np.uint8)
    width_extent, height_extent = stored.extent
    to_stored = ORIENTATIONS[orientation]
    # What the pixels cover beyond the picture is at its stored right and lower edge.
    to_upright = compose(
        invert(to_stored), compose((width_extent, 0, 0, 0, height_extent, 0), to_stored)
    )
    size = stored.size if orientation < 5 else stored.size[::-1]
    return Decoded(
        pixels,
        Geometry(size, (pixels.shape[1], pixels.shape[0]), to_upright),
        stored.size,
        stored.profile,
        f"{description}, orientation {orientation}",
        warnings + stored.warnings,
    )


def _decode_with_pillow(picture: Image.Image, data: bytes) -> _Stored:
    """Decode with Pillow.

    Pillow turns a TIFF upright as it loads it, and it may find the EXIF block of a PNG only after
    the pixels.
    """
    is_tiff = picture.format == "TIFF"
    size = picture.size
    tiff_orientation = orientation_of(picture) if is_tiff else 1
    warnings: tuple[str, ...] = ()
    if picture.format in JPEG_FORMATS:
        picture, warnings = _complete_jpeg(picture, data)
    picture.load()
    if picture.format == "PNG":
        _check_png(data)
        _scale_transparency(picture, data)
    pixels, profile, flattening_warnings = to_rgb(picture)
    warnings += flattening_warnings
    if is_tiff:
        size = size if tiff_orientation < 5 else size[::-1]
        return _Stored(pixels, size, tiff_orientation, profile, warnings, is_upright=True)
    return _Stored(pixels, size, orientation_of(picture), profile, warnings)


def _complete_jpeg(picture: Image.Image, data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the picture with the end marker that its file may lack, and warnings.

    Raises ``ValueError`` if the data is damaged.
    """
    color_space = "CMYK" if picture.mode == "CMYK" else "GRAY"
    decoded = jpeg.decode(data, picture.size, picture.size, color_space)
    if decoded is None or not decoded.warnings:
        return picture, ()
    return open_picture(decoded.data), decoded.warnings


def _check_png(data: bytes) -> None:
    """Raise ``ValueError`` if a critical chunk has a wrong checksum, or if IEND is missing.

    Pillow checks the checksums of headers only. Format: PNG specification, third edition,
    section 5.
    """
    offset = 8
    chunk_type = b""
    view = memoryview(data)
    while chunk_type != b"IEND":
        if offset + 12 > len(data):
            raise ValueError("the IEND chunk is missing")
        length, chunk_type = struct.unpack_from(">I4s", data, offset)
        type_and_content = view[offset + 4 : offset + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, offset + 8 + length)
        is_critical = chunk_type[:1].isupper()
        if is_critical and zlib.crc32(type_and_content) != checksum:
            raise ValueError(f"the checksum of {chunk_type.decode('latin-1')} is wrong")
        offset += 12 + length


def _scale_transparency(picture: Image.Image, data: bytes) -> None:
    """Scale the transparent level of a gray PNG of 2 or 4 bits to 8 bits.

    Pillow scales the pixels only.
    """
    level = picture.info.get("transparency")
    bits = data[24]
    if picture.mode == "L" and isinstance(level, int) and bits in (2, 4):
        picture.info["transparency"] = level * 255 // (2**bits - 1)


def _decode_jpeg(
    picture: Image.Image, data: bytes, required_size: Callable[[Size], Size]
) -> _Stored | None:
    """Decode a JPEG, at reduced scale if that covers ``required_size``.

    Returns None for other formats and for unusual variants of JPEG. Raises ``ValueError`` if the
    data is damaged.
    """
    profile = profile_of(picture)
    is_plain = picture.mode == "RGB" or (picture.mode == "L" and not profile)
    if picture.format not in JPEG_FORMATS or not is_plain:
        return None
    size = picture.size
    orientation = orientation_of(picture)
    required = required_size(size) if orientation < 5 else required_size(size[::-1])[::-1]
    decoded = jpeg.decode(data, size, required)
    if decoded is None:
        return None
    return _Stored(decoded.pixels, size, orientation, profile, decoded.warnings, decoded.extent)
