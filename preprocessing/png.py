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


def without_ballast(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the file without ancillary chunks that are damaged or too large, and warnings.

    The file itself, if there are none, and if it has too many chunks to look at.
    """
    if not data.startswith(SIGNATURE):
        return data, ()
    kept: list[tuple[int, int]] = [(0, len(SIGNATURE))]
    warnings: dict[str, None] = {}
    budget = _MAX_TOTAL
    for number, chunk in enumerate(_chunks(data)):
        if number > MAX_CHUNKS:
            return data, ()
        problem = None
        if not chunk.is_critical:
            if not chunk.is_intact:
                problem = "its checksum is wrong"
            elif chunk.kind in (b"iCCP", *_TEXTS):
                size = _content_size(data, chunk, min(budget, MAX_CONTENT))
                budget -= size or 0
                problem = "its content is too large" if size is None else None
        if problem is None:
            kept.append((chunk.start, chunk.end))
        else:
            name = chunk.kind.decode("latin-1")
            warnings[f"decode: the chunk {name} was ignored: {problem}"] = None
    if not warnings:
        return data, ()
    return b"".join(data[start:end] for start, end in kept), tuple(warnings)[:8]


def _chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks, the last one perhaps cut off."""
    view = memoryview(data)
    offset = len(SIGNATURE)
    while offset < len(data):
        if offset + 12 > len(data):
            yield Chunk(offset, len(data), b"IEND", True)  # a rest, for the decoder to judge
            return
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        is_intact = True
        if not kind[:1].isupper():
            checksum = data[end - 4 : end]
            is_intact = zlib.crc32(view[offset + 4 : end - 4]).to_bytes(4, "big") == checksum
        yield Chunk(offset, min(end, len(data)), kind, is_intact)
        if kind == b"IEND":
            if end < len(data):
                yield Chunk(end, len(data), b"REST", True)
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
