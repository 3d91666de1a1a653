"""Which characters a font file has glyphs for.

Pillow can't tell. The formats are those of the OpenType specification, "cmap" and its neighbors.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_FACES = 64
"""Faces that are read from one collection."""
MAX_TABLE = 4_000_000
"""Bytes of the largest character map that is read."""
_LAST = 0x10FFFF


@dataclass(frozen=True)
class Coverage:
    """What one face of a font file can draw. ``characters`` are sorted code points."""

    index: int
    characters: NDArray[np.int32]
    has_color: bool


class BadFont(ValueError):
    """The file is not a font, or one that Pillow can't draw."""


def read_coverage(path: Path) -> list[Coverage]:
    """Return what each face of a TrueType or OpenType file covers.

    Raises ``BadFont`` and ``OSError``.
    """
    with path.open("rb") as file:
        try:
            return [
                _read_face(file, offset, index) for index, offset in enumerate(_face_offsets(file))
            ]
        except (struct.error, ValueError, IndexError, OverflowError) as error:
            raise BadFont(f"{path.name}: {error}") from error


def _face_offsets(file: BinaryIO) -> tuple[int, ...]:
    if file.read(4) != b"ttcf":
        return (0,)
    _, count = struct.unpack(">II", file.read(8))
    count = min(count, MAX_FACES)
    return struct.unpack(f">{count}I", file.read(4 * count))


def _read_face(file: BinaryIO, offset: int, index: int) -> Coverage:
    tables = _tables(file, offset)
    if "COLR" in tables and "CBDT" not in tables:
        file.seek(tables["COLR"][0])
        if struct.unpack(">H", file.read(2))[0] > 0:
            raise BadFont("color glyphs with gradients, which FreeType leaves to its caller")
    if not tables.keys() & {"glyf", "CFF ", "CFF2", "CBDT", "sbix"}:
        raise BadFont("no outlines")
    start, length = tables["cmap"]
    file.seek(start)
    characters = _characters(file.read(min(length, MAX_TABLE)))
    return Coverage(index, characters, bool(tables.keys() & {"COLR", "CBDT", "sbix"}))


def _tables(file: BinaryIO, offset: int) -> dict[str, tuple[int, int]]:
    """Return offset and length of each table of a face."""
    file.seek(offset)
    version, count = struct.unpack(">4sH6x", file.read(12))
    if version not in (b"\0\1\0\0", b"OTTO", b"true"):
        raise BadFont(f"version {version!r}")
    records = struct.iter_unpack(">4s4xII", file.read(16 * count))
    tables = {tag.decode("latin-1"): (start, length) for tag, start, length in records}
    if "cmap" not in tables:
        raise BadFont("no table cmap")
    return tables


def _characters(table: bytes) -> NDArray[np.int32]:
    """Return the code points of the best Unicode map in a table cmap."""
    (count,) = struct.unpack_from(">2xH", table)
    maps = {}
    for platform, encoding, offset in struct.iter_unpack(">HHI", table[4 : 4 + 8 * count]):
        if (platform == 0 and encoding != 5) or (platform, encoding) in ((3, 1), (3, 10)):
            (form,) = struct.unpack_from(">H", table, offset)
            maps[form] = offset
    if 12 in maps:
        return _segmented_coverage(table[maps[12] :])
    if 4 in maps:
        return _segment_mapping(table[maps[4] :])
    raise BadFont(f"character maps of formats {sorted(maps)}")


def _segmented_coverage(data: bytes) -> NDArray[np.int32]:
    """Read format 12: groups of first, last, and the glyph of the first."""
    (count,) = struct.unpack_from(">12xI", data)
    groups = np.frombuffer(data, ">u4", 3 * count, 16).reshape(-1, 3).astype(np.int64)
    return _ranges(groups[:, 0], groups[:, 1])


def _segment_mapping(data: bytes) -> NDArray[np.int32]:
    """Read format 4. Characters that it maps to glyph 0 have none."""
    (length, doubled) = struct.unpack_from(">2xH2xH", data)
    count = doubled // 2
    words = np.frombuffer(data, ">u2", min(len(data), length) // 2).astype(np.int64)
    last, first = words[7 : 7 + count], words[8 + count : 8 + 2 * count]
    delta, offset = words[8 + 2 * count : 8 + 3 * count], words[8 + 3 * count : 8 + 4 * count]
    characters = _ranges(first, last)
    segment = np.searchsorted(last, characters)
    place = 8 + 3 * count + segment + offset[segment] // 2 + characters - first[segment]
    indirect = words[np.minimum(place, len(words) - 1)]
    glyphs = np.where(offset[segment] == 0, characters, indirect)
    glyphs = np.where((offset[segment] > 0) & (indirect == 0), 0, glyphs + delta[segment]) & 0xFFFF
    known: NDArray[np.int32] = characters[(glyphs != 0) & (characters != 0xFFFF)]
    return known


def _ranges(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return all numbers of ranges that include both ends, sorted."""
    if (last < first).any() or (last > _LAST).any() or (last - first + 1).sum() > _LAST + 1:
        raise BadFont("a character map with impossible ranges")
    lengths = last - first + 1
    starts = np.repeat(first - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
    return np.unique(starts + np.arange(lengths.sum())).astype(np.int32)
