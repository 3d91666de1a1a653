"""Decoding of a picture file to upright RGB pixels.

Every limit is checked on the header before any pixel is decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from preprocessing import jpeg
from preprocessing.flatten import profile_of, to_rgb
from preprocessing.formats import SUPPORTED, sniff
from preprocessing.geometry import ORIENTATIONS, Geometry
from preprocessing.resize import Size
from raylens.core.errors import InvalidRequest, PayloadTooLarge, RaylensError, UnsupportedMedia

Pixels = NDArray[np.uint8]
"""A picture as (height, width, 3) RGB."""

_PLUGINS = tuple(name.upper() for name in SUPPORTED)
_MODES = frozenset(
    (
        "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr",
        "I;16", "I;16B", "I;16L", "I;16N",
    )
)  # fmt: skip
"""Pillow's pixel modes that can be converted to 8-bit RGB."""
_MODES_IN_WORDS = "gray of 1 to 16 bits, a palette, RGB, YCbCr or CMYK, with or without alpha"
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
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_SCANS = 16
"""Maximum scans of a JPEG of ``max_pixels``; a smaller picture may have more in proportion."""
_JPEG_FORMATS = ("JPEG", "MPO")

# Pillow's own pixel limit would not name ours. ``_check_header`` is stricter and runs before any
# decoding.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd files. They are the sender's concern, not the operator's.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class DecodeLimits:
    """Limits on one picture file: bytes, pixels, and its sides in pixels."""

    max_bytes: int
    max_pixels: int
    min_side: int
    max_side: int


@dataclass(frozen=True)
class Decoded:
    """An upright picture and its geometry."""

    pixels: Pixels
    """Upright pixels in the color space of ``profile``."""
    geometry: Geometry
    profile: bytes | None
    """ICC profile that remains to be applied; None means sRGB."""
    description: str
    """Format, pixel mode and EXIF orientation of the file."""
    warnings: tuple[str, ...] = ()


def decode(
    data: bytes, limits: DecodeLimits, required_size: Callable[[Size], Size] | None = None
) -> Decoded:
    """Decode the first frame of a picture file to 8-bit RGB, transparency composited onto white.

    ``required_size`` maps the upright size to the smallest size that suffices. A JPEG may then be
    decoded at a half, a quarter or an eighth of its size. Raises ``PayloadTooLarge`` if a limit is
    exceeded, ``UnsupportedMedia`` if the format or the pixel mode is not supported, and
    ``InvalidRequest`` if the file is damaged or the picture is too small.
    """
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(
            f"image: {len(data)} bytes; the limit is {limits.max_bytes} bytes",
            "image",
            limits.max_bytes,
            len(data),
        )
    with _open(data) as picture:
        try:
            _check_header(picture, data, limits)
            description = f"{_format_name(data)}, {picture.mode}"
            stored = _decode_jpeg(picture, data, required_size or _full_size)
            if stored is None:
                stored = _decode_with_pillow(picture, data)
            return _turn_upright(stored, description)
        except RaylensError:
            raise
        except Exception as error:  # a damaged file can make Pillow raise anything
            raise _damaged(data, error) from error


def _full_size(size: Size) -> Size:
    return size


def _open(data: bytes) -> Image.Image:
    """Open the file and read its header."""
    if not data:
        raise UnsupportedMedia("image: the file is empty (0 bytes)", "image")
    try:
        return Image.open(io.BytesIO(data), formats=_PLUGINS)
    except Exception as error:  # a damaged file can make Pillow raise anything
        name = sniff(data)
        if name in SUPPORTED:
            raise _damaged(data, error) from error
        problem = f"this is {name}" if name else "not a known picture format"
        raise UnsupportedMedia(
            f"image: {problem}, {len(data)} bytes that begin with {data[:8]!r};"
            f" expected {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}",
            "image",
        ) from error


def _damaged(data: bytes, error: Exception) -> InvalidRequest:
    is_unidentified = isinstance(error, UnidentifiedImageError)
    reason = ", or a variant that is not supported" if is_unidentified else f" ({error})"
    message = (
        f"image: the {_format_name(data)} of {len(data)} bytes is truncated or damaged{reason}"
    )
    return InvalidRequest(message[:300], "image")


def _check_header(picture: Image.Image, data: bytes, limits: DecodeLimits) -> None:
    """Raise if the header violates a limit or announces an unsupported pixel mode."""
    _check_size(picture.size, limits)
    if picture.format in _JPEG_FORMATS:
        _check_scans(picture.size, jpeg.read_layout(data).scans, limits)
    if picture.mode not in _MODES:
        raise UnsupportedMedia(
            f"image: pixel mode {picture.mode!r} is not supported; expected {_MODES_IN_WORDS}",
            "image",
        )
    tags = getattr(picture, "tag_v2", {})
    tile = tags.get(_TIFF_TILE_WIDTH, 1) * tags.get(_TIFF_TILE_LENGTH, 1)
    if tile > limits.max_pixels:
        raise PayloadTooLarge(
            f"image: tiles of {tile} pixels; the limit is {limits.max_pixels} pixels",
            "image",
            limits.max_pixels,
            tile,
        )


def _check_size(size: Size, limits: DecodeLimits) -> None:
    width, height = size
    message = f"image: {width}×{height} pixels"
    if width * height > limits.max_pixels:
        raise PayloadTooLarge(
            f"{message}; the limit is {limits.max_pixels} pixels in total",
            "image",
            limits.max_pixels,
            width * height,
        )
    if max(size) > limits.max_side:
        raise PayloadTooLarge(
            f"{message}; the limit is {limits.max_side} pixels per side",
            "image",
            limits.max_side,
            max(size),
        )
    if min(size) < limits.min_side:
        raise InvalidRequest(
            f"{message}; expected at least {limits.min_side} pixels per side",
            "image",
            limits.min_side,
            min(size),
        )


def _check_scans(size: Size, scans: int, limits: DecodeLimits) -> None:
    """Raise if decoding every scan would touch too many pixels."""
    width, height = size
    if scans * width * height > _SCANS * limits.max_pixels:
        allowed = _SCANS * limits.max_pixels // (width * height)
        raise PayloadTooLarge(
            f"image: {width}×{height} pixels in {scans} scans; the limit is {allowed} scans",
            "image",
            allowed,
            scans,
        )


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


def _turn_upright(stored: _Stored, description: str) -> Decoded:
    pixels = stored.pixels
    orientation = stored.orientation
    if orientation in _ROTATE_UPRIGHT and not stored.is_upright:
        pixels = np.asarray(_ROTATE_UPRIGHT[orientation](pixels), np.uint8)
    width_extent, height_extent = stored.extent
    geometry = Geometry(stored.size, stored.size, (width_extent, 0, 0, 0, height_extent, 0))
    geometry = geometry.then((pixels.shape[1], pixels.shape[0]), ORIENTATIONS[orientation])
    return Decoded(
        pixels,
        geometry,
        stored.profile,
        f"{description}, orientation {orientation}",
        stored.warnings,
    )


def _decode_with_pillow(picture: Image.Image, data: bytes) -> _Stored:
    """Decode with Pillow.

    Pillow turns a TIFF upright as it loads it, and it may find the EXIF block of a PNG only after
    the pixels.
    """
    is_tiff = picture.format == "TIFF"
    size = picture.size
    tiff_orientation = _orientation(picture) if is_tiff else 1
    picture.load()
    if picture.format == "PNG":
        _check_png(data)
        _scale_transparency(picture, data)
    if picture.format in _JPEG_FORMATS:
        color_space = "CMYK" if picture.mode == "CMYK" else "GRAY"
        jpeg.decode(data, size, size, color_space)  # raises if the data is damaged
    pixels, profile, warnings = to_rgb(picture)
    if is_tiff:
        size = size if tiff_orientation < 5 else size[::-1]
        return _Stored(pixels, size, tiff_orientation, profile, warnings, is_upright=True)
    return _Stored(pixels, size, _orientation(picture), profile, warnings)


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


def _format_name(data: bytes) -> str:
    return sniff(data) or "picture"


def _decode_jpeg(
    picture: Image.Image, data: bytes, required_size: Callable[[Size], Size]
) -> _Stored | None:
    """Decode a JPEG, at reduced scale if that covers ``required_size``.

    Returns None for other formats and for unusual variants of JPEG. Raises ``ValueError`` if the
    data is damaged.
    """
    profile = profile_of(picture)
    is_plain = picture.mode == "RGB" or (picture.mode == "L" and not profile)
    if picture.format not in _JPEG_FORMATS or not is_plain:
        return None
    size = picture.size
    orientation = _orientation(picture)
    required = required_size(size) if orientation < 5 else required_size(size[::-1])[::-1]
    decoded = jpeg.decode(data, size, required)
    if decoded is None:
        return None
    return _Stored(decoded.pixels, size, orientation, profile, decoded.warnings, decoded.extent)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if none can be read."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # unreadable tags are no reason to refuse the picture
        return 1
    return orientation if orientation in ORIENTATIONS else 1
