"""Conversion of loaded pictures of any mode to 8-bit RGB.

Covers gray of up to 16 bits, palettes, CMYK, and transparency, which is composited onto white.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from preprocessing.profile import is_gray, picture_to_srgb

Pixels = NDArray[np.uint8]

_TIFF_PHOTOMETRIC, _TIFF_BITS = 262, 258
_STRIP = 1_000_000
"""Pixels converted at a time."""


def profile_of(picture: Image.Image) -> bytes | None:
    """Return the ICC profile embedded in the file."""
    profile: bytes | None = picture.info.get("icc_profile") or None
    return profile


def to_rgb(picture: Image.Image) -> tuple[Pixels, bytes | None, tuple[str, ...]]:
    """Return RGB pixels, the profile that remains to be applied, and warnings.

    Gray and CMYK profiles are applied here, because they don't fit RGB pixels.
    """
    flatten = _flattener(picture)
    profile = profile_of(picture)
    if profile is None or not _applies_before_rgb(profile, picture.mode):
        return _in_strips(picture, flatten), profile, ()

    def convert(strip: Image.Image) -> Image.Image:
        if strip.mode == "CMYK":
            return picture_to_srgb(strip, profile)
        return picture_to_srgb(flatten(strip).convert("L"), profile)

    try:
        return _in_strips(picture, convert), None, ()
    except (ImageCms.PyCMSError, OSError) as error:
        warning = f"color_profile: skipped ({error})"[:200]
        return _in_strips(picture, flatten), None, (warning,)


def _applies_before_rgb(profile: bytes, mode: str) -> bool:
    is_gray_picture = mode in ("1", "L", "LA") or mode.startswith("I;16")
    return mode == "CMYK" or (is_gray_picture and is_gray(profile))


def _in_strips(picture: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Convert the picture one strip at a time.

    The intermediate copies of a whole picture would take more memory than the picture itself.
    """
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    height = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, height):
        bottom = min(picture.height, top + height)
        pixels[top:bottom] = np.asarray(convert(picture.crop((0, top, picture.width, bottom))))
    return pixels


def _flattener(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the function that converts strips of the picture to 8-bit RGB."""
    if not picture.mode.startswith("I;16"):
        return _flatten
    table = _eight_bit_table(picture)
    return lambda strip: Image.fromarray(table[np.asarray(strip)]).convert("RGB")


def _flatten(strip: Image.Image) -> Image.Image:
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    layer = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _eight_bit_table(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the 8-bit level for each of the 65,536 levels of a 9- to 16-bit gray picture.

    TIFF tags give the number of bits, and whether 0 is white. The level that a PNG marks as
    transparent becomes white.
    """
    tags = getattr(picture, "tag_v2", {})
    highest = 2 ** int(tags.get(_TIFF_BITS, (16,))[0]) - 1
    scaled = np.rint(np.arange(65536) * (255 / highest))
    levels: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        levels = 255 - levels
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int) and transparent < len(levels):
        levels[transparent] = 255
    return levels
