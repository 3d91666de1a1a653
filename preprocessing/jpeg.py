"""JPEG straight to pixels with libjpeg-turbo: strict about damage, and at a part of the size where
that is enough.

Format: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from preprocessing.resize import Size

_SCAN, _END = 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within coded data, FF stands before 00 or a restart marker only."""
_MAX_MARKERS = 20_000
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_PADDING = 256
"""Bytes of padding that are accepted before the end: cameras leave some. More of it stands where
pixels should be."""


@dataclass(frozen=True)
class Layout:
    """How many scans the first picture of a file has, and where its end marker stands (the file's
    end without one)."""

    scans: int
    end: int


def layout(data: bytes) -> Layout:
    """Walks the markers of a JPEG, a sane number of them; what follows the first picture does not
    count."""
    place, scans = 2, 0
    for _ in range(_MAX_MARKERS):
        found = _NEXT_MARKER.search(data, place)
        if found is None:
            break
        marker, place = data[found.start() + 1], found.end()
        if marker == _END:
            return Layout(scans, found.start())
        scans += marker == _SCAN
        place += int.from_bytes(data[place : place + 2], "big")
    return Layout(scans, len(data))


@dataclass(frozen=True)
class Read:
    """``pixels`` as stored, and the factors by which they reach over the picture's own right and
    lower edge."""

    pixels: NDArray[np.uint8]
    reach: tuple[float, float]
    warnings: tuple[str, ...]


def read(data: bytes, size: Size, enough: Size, space: str = "RGB") -> Read | None:
    """The pixels of a JPEG of ``size`` (width, height), at the least part of it that covers
    ``enough``.

    ``space`` is RGB, GRAY or CMYK. None where the decoder does not know this kind of JPEG. Raises
    ``ValueError`` where it stumbles over the data.
    """
    # Halves are as cheap as it gets; what lies between them takes longer than the whole picture.
    eighths = next(
        (
            n
            for n in (1, 2, 4)
            if all(ceil(s * n / 8) >= e for s, e in zip(size, enough, strict=True))
        ),
        8,
    )
    least = {"min_width": ceil(size[0] * eighths / 8), "min_height": ceil(size[1] * eighths / 8)}
    warnings: tuple[str, ...] = ()
    try:
        pixels = simplejpeg.decode_jpeg(data, space, **least)
    except ValueError as error:
        if _is_padding(data, str(error)):
            pixels, warnings = (
                simplejpeg.decode_jpeg(data, space, strict=False, **least),
                (f"decode: {error}",),
            )
        elif "Corrupt JPEG" in str(error) or "Premature end" in str(error):
            raise
        else:
            return None
    reach = pixels.shape[1] * 8 / eighths / size[0], pixels.shape[0] * 8 / eighths / size[1]
    return Read(pixels, reach, warnings)


def _is_padding(data: bytes, complaint: str) -> bool:
    """Whether the decoder complains of a little padding before the end, and of nothing else."""
    found = _EXTRANEOUS.search(complaint)
    if found is None or int(found[1]) > _MAX_PADDING:
        return False
    end = layout(data).end
    padding = data[end - int(found[1]) : end]
    return not padding.strip(b"\0") or not padding.strip(b"\xff")
