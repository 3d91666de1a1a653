"""Checks of a picture file's header. No pixel is decoded, and neither numpy nor OpenCV imported."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from numbers import Real

from PIL import ExifTags, Image, UnidentifiedImageError

from preprocessing.effort import is_laborious
from preprocessing.formats import HAS_HEIC, HEIC, SUPPORTED, sniff
from preprocessing.png import clean_png
from raylens.core.errors import InvalidRequest, PayloadTooLarge, RaylensError, UnsupportedMedia

JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names of JPEG files."""

_PLUGINS = tuple("HEIF" if name == HEIC else name.upper() for name in SUPPORTED)
_MODES = frozenset(
    (
        "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr",
        "I;16", "I;16B", "I;16L", "I;16N",
    )
)  # fmt: skip
"""Pillow's pixel modes that can be converted to 8-bit RGB."""
_MODES_IN_WORDS = "gray of 1 to 16 bits, a palette, RGB, YCbCr or CMYK, with or without alpha"
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_SCANS = 16
"""Maximum scans of a JPEG of ``max_pixels``; a smaller picture may have more in proportion."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within coded data, FF is followed only by 00 or by a restart marker."""
_MAX_MARKERS = 20_000

# Pillow's own pixel limit would not name ours. ``check_header`` is stricter and runs before any
# decoding.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd files. They are the sender's concern, not the operator's.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow would import its plugins at the first file, which would wait for them.
Image.init()
if HAS_HEIC:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


@dataclass(frozen=True)
class PictureLimits:
    """Limits on one picture file: bytes, pixels, and its sides in pixels."""

    max_bytes: int
    max_pixels: int
    min_side: int
    max_side: int
    max_filter_s: float = 5.0
    """What a filter may take, by estimate. A dearer one is skipped."""


@dataclass(frozen=True)
class JpegLayout:
    """Structure of the first picture of a JPEG file."""

    scans: int
    """Number of scans."""
    end: int
    """Offset of the end marker, or the length of the file if there is none."""


def check_file(data: bytes, limits: PictureLimits, field: str) -> None:
    """Check a picture file without decoding it; ``field`` is the request's name for it.

    Raises ``PayloadTooLarge``, ``UnsupportedMedia`` or ``InvalidRequest`` as
    :func:`preprocessing.decode.decode` does, except for damage beyond the header.
    """
    try:
        check_length(data, limits)
        data, _ = clean_png(data)
        with open_picture(data) as picture:
            check_header(picture, data, limits)
    except RaylensError as error:
        raise error.about(field) from None


def check_length(data: bytes, limits: PictureLimits) -> None:
    """Raise ``PayloadTooLarge`` if the file has too many bytes."""
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(
            f"image: {len(data)} bytes; the limit is {limits.max_bytes} bytes",
            "image",
            limits.max_bytes,
            len(data),
        )


def open_picture(data: bytes) -> Image.Image:
    """Open the file and read its header.

    Raises ``UnsupportedMedia`` if it is not in a supported format, ``PayloadTooLarge`` if its
    header would take long to read, and ``InvalidRequest`` if that is damaged.
    """
    if not data:
        raise UnsupportedMedia("image: the file is empty (0 bytes)", "image")
    if is_laborious(data):
        raise PayloadTooLarge(
            f"image: the header of the {format_name(data)} of {len(data)} bytes has too many parts,"
            " or parts that are too large",
            "image",
        )
    try:
        return Image.open(io.BytesIO(data), formats=_PLUGINS)
    except Exception as error:  # a damaged file can make Pillow raise anything
        name = sniff(data)
        if name in SUPPORTED:
            raise damaged(data, error) from error
        problem = f"this is {name}" if name else "not a known picture format"
        if name == HEIC:
            problem = "this is HEIC, which the server reads only with the extra heic (pillow-heif)"
        raise UnsupportedMedia(
            f"image: {problem}, {len(data)} bytes that begin with {data[:8]!r};"
            f" expected {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}",
            "image",
        ) from error


def check_header(picture: Image.Image, data: bytes, limits: PictureLimits) -> None:
    """Check what the header of an open picture announces.

    Raises ``PayloadTooLarge`` if a limit is exceeded, ``UnsupportedMedia`` if the pixel mode is
    not supported, and ``InvalidRequest`` if the picture is too small or the header is damaged.
    """
    try:
        _check_size(picture.size, limits)
        if picture.format in JPEG_FORMATS:
            _check_scans(picture.size, read_jpeg_layout(data).scans, limits)
        _check_mode(picture.mode)
        _check_tiles(picture, limits)
    except RaylensError:
        raise
    except Exception as error:  # a damaged tag can have any type
        raise damaged(data, error) from error


def upright_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) of a picture file after EXIF rotation.

    Raises ``PayloadTooLarge``, ``UnsupportedMedia`` or ``InvalidRequest`` as
    :func:`open_picture` does.
    """
    data, _ = clean_png(data)
    with open_picture(data) as picture:
        width, height = picture.size
        # Pillow has already swapped the sides of a TIFF.
        is_upright = picture.format == "TIFF" or orientation_of(picture) < 5
        return (width, height) if is_upright else (height, width)


def orientation_of(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if none can be read."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # unreadable tags are no reason to refuse the picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def damaged(data: bytes, error: Exception) -> InvalidRequest:
    """Return the error that tells the sender of the decoder's ``error``."""
    is_unidentified = isinstance(error, UnidentifiedImageError)
    reason = ", or a variant that is not supported" if is_unidentified else f" ({error})"
    message = f"image: the {format_name(data)} of {len(data)} bytes is truncated or damaged{reason}"
    return InvalidRequest(message[:300], "image")


def format_name(data: bytes) -> str:
    return sniff(data) or "picture"


def read_jpeg_layout(data: bytes) -> JpegLayout:
    """Walk the markers of the first picture, up to a limit; later pictures are ignored.

    Format: ITU-T T.81, annex B.
    """
    offset = 2
    scans = 0
    for _ in range(_MAX_MARKERS):
        match = _NEXT_MARKER.search(data, offset)
        if match is None:
            break
        marker = data[match.start() + 1]
        offset = match.end()
        if marker == _END_OF_IMAGE:
            return JpegLayout(scans, match.start())
        scans += marker == _START_OF_SCAN
        offset += int.from_bytes(data[offset : offset + 2], "big")
    return JpegLayout(scans, len(data))


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
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


def _check_scans(size: tuple[int, int], scans: int, limits: PictureLimits) -> None:
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


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise UnsupportedMedia(
            f"image: pixel mode {mode!r} is not supported; expected {_MODES_IN_WORDS}", "image"
        )


def _check_tiles(picture: Image.Image, limits: PictureLimits) -> None:
    """Raise if a TIFF's tiles are too large.

    The decoder holds a whole tile, however small the picture is.
    """
    tags = getattr(picture, "tag_v2", {})
    sides = tags.get(_TIFF_TILE_WIDTH, 1), tags.get(_TIFF_TILE_LENGTH, 1)
    if not all(isinstance(side, Real) for side in sides):
        # A text times a number would be a text of gigabytes.
        raise TypeError("the size of its tiles is not a number")
    tile = sides[0] * sides[1]
    if tile > limits.max_pixels:
        raise PayloadTooLarge(
            f"image: tiles of {tile} pixels; the limit is {limits.max_pixels} pixels",
            "image",
            limits.max_pixels,
            tile,
        )
