"""JPEG decoding with libjpeg-turbo: strict about damage, and at reduced scale if that suffices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from preprocessing.header import read_jpeg_layout
from preprocessing.jpeg_end import END_MARKER, find_end_of_pixels, is_trailer, tail_of
from preprocessing.resize import Size

_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
"""The decoder's message about bytes before the end marker."""
_MAX_PADDING = 256
"""Padding accepted before the end marker, in bytes. Cameras leave some; more than this replaces
missing pixels."""


@dataclass(frozen=True)
class DecodedJpeg:
    """A JPEG decoded at full or reduced scale."""

    pixels: NDArray[np.uint8]
    """Pixels as they are stored, before any EXIF rotation."""
    extent: tuple[float, float]
    """Width and height covered by ``pixels``, as a multiple of the picture's own; a reduced scale
    rounds up to whole pixels beyond the right and lower edge."""
    warnings: tuple[str, ...]
    data: bytes
    """The file, with the end marker that it may have lacked."""


def decode(data: bytes, size: Size, min_size: Size, color_space: str = "RGB") -> DecodedJpeg | None:
    """Decode a JPEG of ``size`` at the smallest scale that covers ``min_size``.

    Sizes are (width, height) in pixels. ``color_space`` is RGB, GRAY or CMYK. Returns None if the
    decoder does not support this variant of JPEG. Raises ``ValueError`` if the data is damaged.
    """
    eighths = _smallest_scale(size, min_size)
    scaled = {"min_width": ceil(size[0] * eighths / 8), "min_height": ceil(size[1] * eighths / 8)}
    warnings: tuple[str, ...] = ()
    try:
        pixels = simplejpeg.decode_jpeg(data, color_space, **scaled)
    except ValueError as error:
        message = str(error)
        complete = _complete(data)
        if _is_padding(data, message):
            pixels = simplejpeg.decode_jpeg(data, color_space, strict=False, **scaled)
            warnings = (f"decode: {message}",)
        elif complete is not None:
            data = complete
            pixels = simplejpeg.decode_jpeg(data, color_space, strict=False, **scaled)
            warnings = ("decode: the end marker of the JPEG is missing",)
        elif "Corrupt JPEG" in message or "Premature end" in message:
            raise
        else:
            return None
    extent = pixels.shape[1] * 8 / eighths / size[0], pixels.shape[0] * 8 / eighths / size[1]
    return DecodedJpeg(pixels, extent, warnings, data)


def _smallest_scale(size: Size, min_size: Size) -> int:
    """Return the smallest suitable scale in eighths.

    Only powers of two are candidates: scales between them decode slower than the full size.
    """
    for eighths in (1, 2, 4):
        width = ceil(size[0] * eighths / 8)
        height = ceil(size[1] * eighths / 8)
        if width >= min_size[0] and height >= min_size[1]:
            return eighths
    return 8


def _complete(data: bytes) -> bytes | None:
    """Return the file with the end marker that it lacks; None if more than that is missing."""
    end = find_end_of_pixels(data)
    if end is None:
        return None
    complete = data[:end] + END_MARKER
    try:
        simplejpeg.decode_jpeg(complete, "GRAY")
    except ValueError as error:
        match = _EXTRANEOUS.search(str(error))
        if match is None or not is_trailer(tail_of(data, end, int(match[1]))):
            return None
    return complete


def _is_padding(data: bytes, message: str) -> bool:
    """Whether the decoder's message is only about a little padding before the end marker."""
    match = _EXTRANEOUS.search(message)
    if match is None or int(match[1]) > _MAX_PADDING:
        return False
    end = read_jpeg_layout(data).end
    padding = data[end - int(match[1]) : end]
    return not padding.strip(b"\0") or not padding.strip(b"\xff")
