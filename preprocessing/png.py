"""What a PNG file holds beside its picture: large text and profiles, and damaged chunks.

Pillow refuses such files. They are no reason to refuse the picture, so they are left out before.
Format: PNG specification, third edition, sections 5, 11 and 13.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CONTENT = 2**20
"""Bytes of a chunk's decompressed content; Pillow refuses more."""
_MAX_TOTAL = 4 * MAX_CONTENT
"""Bytes of the decompressed contents of all chunks."""
MAX_CHUNKS = 50_000
_CUT_OFF = b"CUT "
"""Stands for the type of a chunk that is cut off: the end of the picture isn't looked for."""
_END = b"\0\0\0\0IEND\xaeB`\x82"
_FRAME = 12
"""Bytes of a chunk's length, type and checksum."""
_COLOR_TYPE_AT = 25
_LEAST_SIZES = {b"acTL": 8, b"cHRM": 32, b"fcTL": 26, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1}
"""Bytes of the contents of ancillary chunks that Pillow reads; tRNS depends on the color type."""
_TEXTS = (b"iTXt", b"tEXt", b"zTXt")


@dataclass(frozen=True)
class Chunk:
    start: int
    end: int
    kind: bytes
    is_intact: bool
    """Whether its checksum is right."""

    @property
    def is_critical(self) -> bool:
        return self.kind[:1].isupper()


def clean_png(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the file without ancillary chunks that are damaged or too large, and warnings.

    An IEND chunk that is missing or damaged is replaced: whether the pixels are complete is for the
    decoder to see. Returns the file itself if nothing is wrong with it, and if it has too many
    chunks to look at.
    """
    if not data.startswith(SIGNATURE):
        return data, ()
    view = memoryview(data)
    kept = [view[: len(SIGNATURE)]]
    warnings: dict[str, None] = {}
    budget = _MAX_TOTAL
    has_end = is_cut_off = False
    for number, chunk in enumerate(_chunks(data)):
        if number > MAX_CHUNKS:
            return data, ()
        if chunk.kind == b"IEND":
            has_end = data[chunk.start : chunk.end] == _END
            break
        is_cut_off = chunk.kind == _CUT_OFF
        problem, size = _judge(data, chunk, min(budget, MAX_CONTENT))
        budget -= size
        if problem is None:
            kept.append(view[chunk.start : chunk.end])
        else:
            name = chunk.kind.decode("latin-1")
            warnings[f"decode: the chunk {name} was ignored: {problem}"] = None
    if not has_end and not is_cut_off:
        warnings["decode: the end of the PNG is missing or damaged"] = None
    if not warnings:
        return data, ()
    if not is_cut_off:
        kept.append(memoryview(_END))
    return b"".join(kept), tuple(warnings)[:8]


def _judge(data: bytes, chunk: Chunk, limit: int) -> tuple[str | None, int]:
    """Return what is wrong with an ancillary chunk, and the size of its text or profile.

    ``limit`` bounds that size, in bytes.
    """
    if chunk.is_critical:
        return None, 0
    if not chunk.is_intact:
        return "its checksum is wrong", 0
    if chunk.end - chunk.start - _FRAME < _least_size(chunk.kind, data):
        return "it is too short", 0
    if chunk.kind not in (b"iCCP", *_TEXTS):
        return None, 0
    size = _content_size(data, chunk, limit)
    return ("its content is too large", 0) if size is None else (None, size)


def _least_size(kind: bytes, data: bytes) -> int:
    """Return the least size of a chunk's content, in bytes."""
    if kind != b"tRNS":
        return _LEAST_SIZES.get(kind, 0)
    color_type = data[_COLOR_TYPE_AT] if len(data) > _COLOR_TYPE_AT else 0
    return {0: 2, 2: 6}.get(color_type, 1)


def _chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks up to the end of the picture.

    The last one may be cut off. It then counts as critical, for the decoder to judge. A rest that
    is too short for a chunk is left out.
    """
    view = memoryview(data)
    offset = len(SIGNATURE)
    while offset + _FRAME <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + _FRAME + length
        if end > len(data):
            yield Chunk(offset, len(data), _CUT_OFF, True)
            return
        is_intact = True
        if not kind[:1].isupper():
            checksum = data[end - 4 : end]
            is_intact = zlib.crc32(view[offset + 4 : end - 4]).to_bytes(4, "big") == checksum
        yield Chunk(offset, end, kind, is_intact)
        if kind == b"IEND":
            return
        offset = end


def _content_size(data: bytes, chunk: Chunk, limit: int) -> int | None:
    """Return the size of a text's or profile's content; None if it is over ``limit``."""
    content = data[chunk.start + 8 : chunk.end - 4]
    compressed = _compressed_part(chunk.kind, content)
    if compressed is None:
        return len(content) if len(content) <= limit else None
    decompressor = zlib.decompressobj()
    try:
        # One byte more: no limit at all would be written as 0.
        size = len(decompressor.decompress(compressed, limit + 1))
    except zlib.error:
        return 0  # Pillow ignores it, or says what is wrong
    return size if size <= limit else None


def _compressed_part(kind: bytes, content: bytes) -> bytes | None:
    """Return the compressed part of a chunk; None if it has none."""
    _, _, rest = content.partition(b"\0")
    if kind == b"tEXt":
        return None
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return None
        _, _, rest = rest[2:].partition(b"\0")
        return rest.partition(b"\0")[2]
    return rest[1:]
