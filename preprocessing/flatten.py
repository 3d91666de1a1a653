"""Loaded pictures of any mode to 8-bit RGB: gray of up to 16 bits, palettes, CMYK, transparency
onto white."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from preprocessing.profile import is_gray, picture_to_srgb

Pixels = NDArray[np.uint8]

_TIFF_PHOTOMETRIC, _TIFF_BITS = 262, 258
_STRIP = 1_000_000
"""Pixels that are converted at a time."""


def profile_of(picture: Image.Image) -> bytes | None:
    """The ICC profile that a file carries."""
    profile: bytes | None = picture.info.get("icc_profile") or None
    return profile


def to_rgb(picture: Image.Image) -> tuple[Pixels, bytes | None, tuple[str, ...]]:
    """Pixels in RGB, the profile that is still to be applied, and warnings."""
    flat, profile = _flattener(picture), profile_of(picture)
    is_gray_picture = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16")
    if profile is None or not (picture.mode == "CMYK" or (is_gray_picture and is_gray(profile))):
        return _in_strips(picture, flat), profile, ()

    def convert(strip: Image.Image) -> Image.Image:
        return picture_to_srgb(strip if strip.mode == "CMYK" else flat(strip).convert("L"), profile)

    try:
        return _in_strips(picture, convert), None, ()
    except (ImageCms.PyCMSError, OSError) as error:
        return _in_strips(picture, flat), None, (f"color_profile: skipped ({error})"[:200],)


def _in_strips(picture: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Pixels:
    """The picture by ``convert``, a strip at a time: the copies on the way would take more memory
    than the picture."""
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    height = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, height):
        bottom = min(picture.height, top + height)
        pixels[top:bottom] = np.asarray(convert(picture.crop((0, top, picture.width, bottom))))
    return pixels


def _flattener(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What brings strips of the picture to RGB, transparent pixels laid onto white and 9 to 16 bits
    made 8."""
    if not picture.mode.startswith("I;16"):
        return _flat
    table = _eight_bits(picture)
    return lambda strip: Image.fromarray(table[np.asarray(strip)]).convert("RGB")


def _flat(strip: Image.Image) -> Image.Image:
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    layer = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _eight_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """The level of 8 bits for each of 65,536; a TIFF says how many bits it has, and whether 0 is
    white.

    The one that a PNG says is transparent becomes white.
    """
    tags = getattr(picture, "tag_v2", {})
    highest = 2 ** int(tags.get(_TIFF_BITS, (16,))[0]) - 1
    levels: NDArray[np.uint8] = np.clip(np.rint(np.arange(65536) * (255 / highest)), 0, 255).astype(
        np.uint8
    )
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        levels = 255 - levels
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int) and transparent < len(levels):
        levels[transparent] = 255
    return levels
