"""A picture file to upright RGB pixels, with every limit checked on the header, before anything is
decoded."""

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
from preprocessing.formats import DECODED, sniff
from preprocessing.geometry import ORIENTATIONS, Geometry
from preprocessing.resize import Size
from raylens.core.errors import InvalidRequest, PayloadTooLarge, RaylensError, UnsupportedMedia

Pixels = NDArray[np.uint8]
"""A picture as (height, width, 3) RGB."""

_PLUGINS = tuple(name.upper() for name in DECODED)
_MODES = frozenset(
    {
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "I;16",
        "I;16B",
        "I;16L",
        "I;16N",
    }
)
_SHOWN = "gray of 1 to 16 bits, palettes, RGB, YCbCr, CMYK and alpha"
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""What turns a stored picture upright, by EXIF orientation."""
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_SCANS = 16
"""A JPEG whose every scan covers the largest allowed picture may have this many; smaller pictures
more."""
_JPEGS = ("JPEG", "MPO")

# Pillow's own guard would refuse without saying our limit; ``_check_header`` is stricter and runs
# before any decoding.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files, which are the senders' business


@dataclass(frozen=True)
class DecodeLimits:
    """Limits on one picture file: bytes, pixels and the sides in pixels."""

    max_bytes: int
    max_pixels: int
    min_side: int
    max_side: int


@dataclass(frozen=True)
class Decoded:
    """``pixels`` upright, in the color space of ``profile`` (an ICC profile; None is sRGB);
    ``found``: what it was."""

    pixels: Pixels
    geometry: Geometry
    profile: bytes | None
    found: str
    warnings: tuple[str, ...] = ()


def decode(
    data: bytes, limits: DecodeLimits, enough: Callable[[Size], Size] | None = None
) -> Decoded:
    """The first frame of a picture file. Transparent pixels are laid onto white, 16 bits brought
    down to 8.

    ``enough`` tells from the upright size which size suffices: a JPEG may then be decoded at a
    half, a quarter or an eighth of its own. Raises ``PayloadTooLarge``, ``UnsupportedMedia`` where
    the bytes are none of ``DECODED``, and ``InvalidRequest`` where the file is damaged or too
    small.
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
            found = f"{_name(data)}, {picture.mode}"
            return _upright(
                _read_jpeg(picture, data, enough or _whole) or _read(picture, data), found
            )
        except RaylensError:
            raise
        except Exception as error:  # a broken file can break its reader in any way
            raise _damaged(data, error) from error


def _whole(size: Size) -> Size:
    return size


def _open(data: bytes) -> Image.Image:
    """The file with its header read."""
    if not data:
        raise UnsupportedMedia("image: it is empty (0 bytes)", "image")
    try:
        return Image.open(io.BytesIO(data), formats=_PLUGINS)
    except Exception as error:  # as above
        kind = sniff(data)
        if kind in DECODED:
            raise _damaged(data, error) from error
        found = f"this is {kind}" if kind else "this is no picture that is known here"
        raise UnsupportedMedia(
            f"image: {found}, {len(data)} bytes that begin with {data[:8]!r};"
            f" {', '.join(DECODED[:-1])} or {DECODED[-1]} is needed",
            "image",
        ) from error


def _damaged(data: bytes, error: Exception) -> InvalidRequest:
    is_unknown = isinstance(error, UnidentifiedImageError)
    reason = ", or of a kind that can't be decoded" if is_unknown else f" ({error})"
    return InvalidRequest(
        f"image: the {_name(data)} of {len(data)} bytes is truncated or damaged{reason}"[:300],
        "image",
    )


def _check_header(picture: Image.Image, data: bytes, limits: DecodeLimits) -> None:
    width, height = picture.size
    shape = f"image: {width}×{height} pixels"
    if width * height > limits.max_pixels:
        raise PayloadTooLarge(
            f"{shape}; the limit is {limits.max_pixels} pixels in all",
            "image",
            limits.max_pixels,
            width * height,
        )
    if max(width, height) > limits.max_side:
        raise PayloadTooLarge(
            f"{shape}; the limit is {limits.max_side} pixels a side",
            "image",
            limits.max_side,
            max(width, height),
        )
    if min(width, height) < limits.min_side:
        raise InvalidRequest(
            f"{shape}; at least {limits.min_side} pixels a side are needed",
            "image",
            limits.min_side,
            min(width, height),
        )
    scans = jpeg.layout(data).scans if picture.format in _JPEGS else 1
    if scans * width * height > _SCANS * limits.max_pixels:
        allowed = _SCANS * limits.max_pixels // (width * height)
        raise PayloadTooLarge(
            f"{shape} in {scans} scans; the limit is {allowed} scans", "image", allowed, scans
        )
    if picture.mode not in _MODES:
        raise UnsupportedMedia(
            f"image: pixels of mode {picture.mode!r}; {_SHOWN} can be decoded", "image"
        )
    tags = getattr(picture, "tag_v2", {})
    tile = tags.get(_TIFF_TILE_WIDTH, 1) * tags.get(_TIFF_TILE_LENGTH, 1)
    if tile > limits.max_pixels:
        raise PayloadTooLarge(
            f"image: tiles of {tile} pixels; the limit is {limits.max_pixels}",
            "image",
            limits.max_pixels,
            tile,
        )


@dataclass(frozen=True)
class _Stored:
    """``pixels`` of a picture of ``size`` as the file has them.

    ``reach``: the factors by which they reach over the picture's own right and lower edge.
    ``is_turned``: the reader has turned them upright.
    """

    pixels: Pixels
    size: Size
    orientation: int
    profile: bytes | None
    warnings: tuple[str, ...] = ()
    reach: tuple[float, float] = (1.0, 1.0)
    is_turned: bool = False


def _upright(stored: _Stored, found: str) -> Decoded:
    pixels, orientation = stored.pixels, stored.orientation
    if orientation in _TURNS and not stored.is_turned:
        pixels = np.asarray(_TURNS[orientation](pixels), np.uint8)
    geometry = Geometry(stored.size, stored.size, (stored.reach[0], 0, 0, 0, stored.reach[1], 0))
    geometry = geometry.then((pixels.shape[1], pixels.shape[0]), ORIENTATIONS[orientation])
    return Decoded(
        pixels, geometry, stored.profile, f"{found}, orientation {orientation}", stored.warnings
    )


def _read(picture: Image.Image, data: bytes) -> _Stored:
    """By Pillow, which turns a TIFF upright as it loads it, and may find a PNG's EXIF block only
    behind the pixels."""
    is_tiff, size = picture.format == "TIFF", picture.size
    before = _orientation(picture) if is_tiff else 1
    picture.load()
    if picture.format == "PNG":
        _check_png(data)
        _scale_transparency(picture, data)
    if picture.format in _JPEGS:
        jpeg.read(
            data, size, size, "CMYK" if picture.mode == "CMYK" else "GRAY"
        )  # raises where it is damaged
    pixels, profile, warnings = to_rgb(picture)
    if is_tiff:
        size = size if before < 5 else size[::-1]
        return _Stored(pixels, size, before, profile, warnings, is_turned=True)
    return _Stored(pixels, size, _orientation(picture), profile, warnings)


def _check_png(data: bytes) -> None:
    """Raises ``ValueError`` where a chunk that matters has a wrong checksum, or the last one is
    missing.

    Pillow looks at the checksums of headers only. Format: PNG specification, third edition, section
    5.
    """
    place, kind, view = 8, b"", memoryview(data)
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ValueError("the end is missing")
        length, kind = struct.unpack_from(">I4s", data, place)
        content, (checksum,) = (
            view[place + 4 : place + 8 + length],
            struct.unpack_from(">I", data, place + 8 + length),
        )
        if kind[:1].isupper() and zlib.crc32(content) != checksum:
            raise ValueError(f"the checksum of {kind.decode('latin-1')} is wrong")
        place += 12 + length


def _scale_transparency(picture: Image.Image, data: bytes) -> None:
    """Pillow spreads gray of 2 and 4 bits over 8, but not the level that is transparent."""
    level, bits = picture.info.get("transparency"), data[24]
    if picture.mode == "L" and isinstance(level, int) and bits in (2, 4):
        picture.info["transparency"] = level * 255 // (2**bits - 1)


def _name(data: bytes) -> str:
    return sniff(data) or "picture"


def _read_jpeg(picture: Image.Image, data: bytes, enough: Callable[[Size], Size]) -> _Stored | None:
    """A JPEG, at a part of its size where that is ``enough``; None for other files and for unusual
    kinds of JPEG.

    Raises ``ValueError`` where the data is damaged.
    """
    profile = profile_of(picture)
    if picture.format not in _JPEGS or not (
        picture.mode == "RGB" or (picture.mode == "L" and not profile)
    ):
        return None
    size, orientation = picture.size, _orientation(picture)
    needed = enough(size) if orientation < 5 else enough(size[::-1])[::-1]
    read = jpeg.read(data, size, needed)
    return (
        None
        if read is None
        else _Stored(read.pixels, size, orientation, profile, read.warnings, read.reach)
    )


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (
        Exception
    ):  # the tags are the sender's: whatever is wrong with them, the picture is still there
        return 1
    return orientation if orientation in ORIENTATIONS else 1
