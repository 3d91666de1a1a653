"""An estimate of the work in a picture file's header, made before Pillow reads the header.

Pillow reads a header in Python, part by part, and decompresses text and profiles on the way. A
file that is made for it can keep it busy for minutes, or fill the memory. The estimate follows
Pillow's way through the header, but skips the content of the parts. Efforts are in microseconds,
as measured with Pillow 13 on one core of a server.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator

_MAX_EFFORT = 100_000
"""A usual header takes a hundredth of it."""

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_JPEG_WITHOUT_LENGTH = frozenset((0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
_SOF0, _SOS, _DQT, _APP1, _APP13 = 0xC0, 0xDA, 0xDB, 0xE1, 0xED
_JPEG_EFFORTS = {**dict.fromkeys(range(_SOF0, 0xD0), 0.1), 0xDE: 0.1, _DQT: 0.04, _APP13: 0.04}
"""Effort for a byte of each segment that Pillow parses."""

_PNG_COMPRESSED = (b"iCCP", b"iTXt", b"zTXt")
_PNG_MAX_DECOMPRESSED = 2**20
"""Bytes of a chunk's content after which Pillow gives up."""
_DEFLATE_RATIO = 1032
"""By how much deflate can compress at most."""

_TIFF_OFFSETS = (273, 324)
"""Tags of strips and tiles; Pillow makes an object for each."""
_TIFF_VALUE_EFFORTS = {1: 0.0, 2: 0.0, 5: 2.0, 7: 0.0, 10: 2.0}
"""Effort for a value by the type of the tag: bytes and text come whole, fractions are objects."""

_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, 0x3B
_GIF_CONTROL, _GIF_COMMENT, _GIF_APPLICATION = 0xF9, 0xFE, 0xFF

_AVIF_CONTAINERS = {b"moov": 0, b"trak": 0, b"meta": 4, b"iinf": 6, b"iprp": 0, b"ipco": 0}
"""Boxes that contain boxes, and the bytes before the first of these."""
_AVIF_LEVELS = 6
_AVIF_BYTES_PER_ITEM = {b"iinf": 20, b"iloc": 6, b"ipma": 3, b"iref": 2}
"""Boxes that can introduce items, and the fewest bytes for each."""
_AVIF_MAX_ITEMS = 9_000


def is_laborious(data: bytes) -> bool:
    """Whether it would take Pillow more than about a tenth of a second to read the header."""
    effort = 0.0
    try:
        for part in _parts(data):
            effort += part
            if effort > _MAX_EFFORT:
                return True
    except (struct.error, IndexError, OverflowError):
        pass  # the header is truncated, which Pillow finds as soon
    return False


def _parts(data: bytes) -> Iterator[float]:
    """Yield the effort for each part of the header."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG"):
        return _png(data)
    if data.startswith((b"II", b"MM")):
        return _tiff(data)
    if data.startswith(b"GIF8"):
        return _gif(data)
    if data[4:8] == b"ftyp":
        return _avif(data)
    return iter(())


def _jpeg(data: bytes) -> Iterator[float]:
    """Walk the segments up to the first scan. Format: ITU-T T.81, annex B."""
    offset = 2
    exif_length = 0
    while match := _JPEG_MARKER.search(data, offset):
        yield 2 + 0.3 * (match.start() - offset)
        marker, offset = data[match.end() - 1], match.end()
        if marker == _SOS or marker < _SOF0:
            return
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", data, offset)
        if marker == _APP1 and data.startswith(b"Exif\0\0", offset + 2):
            # Pillow appends each block to a copy of those before.
            exif_length += length
            yield 0.2 * length + 0.0001 * exif_length
        yield length * _JPEG_EFFORTS.get(marker, 0)
        offset += max(2, length)
    yield 0.3 * max(0, len(data) - offset)


def _png(data: bytes) -> Iterator[float]:
    """Walk the chunks up to the pixels. Format: PNG specification, third edition, section 5."""
    offset = 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind in (b"IDAT", b"fdAT", b"IEND"):
            return
        yield 2
        if kind in _PNG_COMPRESSED:
            yield 0.002 * min(_PNG_MAX_DECOMPRESSED, _DEFLATE_RATIO * length)
        offset += 12 + length


def _tiff(data: bytes) -> Iterator[float]:
    """Walk the tags of the first directory. Format: TIFF 6.0, section 2, and BigTIFF."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2] == 43
    (offset,) = struct.unpack_from(order + ("Q" if is_big else "L"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, offset)
    first = offset + (8 if is_big else 2)
    entry = struct.Struct(order + ("HHQ8x" if is_big else "HHL4x"))
    for index in range(count):
        tag, kind, values = entry.unpack_from(data, first + index * entry.size)
        yield 4
        if values <= len(data):  # Pillow skips a tag that is longer than the file
            yield values * (3 if tag in _TIFF_OFFSETS else _TIFF_VALUE_EFFORTS.get(kind, 0.2))


def _gif(data: bytes) -> Iterator[float]:
    """Walk the blocks up to the first frame. Format: GIF89a.

    Pillow fills the area of a frame at once if the file says how to dispose of it.
    """
    flags = data[10]
    offset = 13 + (3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0)
    is_disposed_of = False
    while data[offset] != _GIF_END:
        yield 1
        if data[offset] == _GIF_FRAME:
            width, height = struct.unpack_from("<HH", data, offset + 5)
            yield is_disposed_of * 0.002 * width * height
            return
        if data[offset] == _GIF_EXTENSION:
            is_disposed_of |= data[offset + 1] == _GIF_CONTROL and data[offset + 3] & 0x18 > 0
            offset = _gif_sub_blocks(data, offset)
            while data[offset]:
                yield 0.2
                offset += 1 + data[offset]
        offset += 1


def _gif_sub_blocks(data: bytes, offset: int) -> int:
    """Return the offset of the sub-blocks that Pillow skips up to an empty one.

    Before these, it reads the first one of most extensions, and a second one of NETSCAPE's, even
    if they are empty.
    """
    label, offset = data[offset + 1], offset + 2
    if label == _GIF_COMMENT:
        return offset
    first = data[offset + 1 : offset + 1 + data[offset]]
    is_loop = label == _GIF_APPLICATION and first.startswith(b"NETSCAPE2.0")
    for _ in range(2 if is_loop else 1):
        offset += 1 + data[offset]
    return offset


def _avif(data: bytes) -> Iterator[float]:
    """Walk the boxes. Format: ISO/IEC 14496-12, sections 4.2 and 8.11, and 23008-12, annex A.

    libavif searches all items for each mention of one, and the chunks of a sequence likewise. It
    makes an object for each extent of an item, and these may take no space in the file. Pillow
    may write the EXIF block anew.
    """
    items = 0.0
    exif_items: set[int] = set()
    lengths: Counter[int] = Counter()
    for kind, start, end in _boxes(data, 0, len(data), _AVIF_LEVELS):
        yield 1
        items += (end - start) / _AVIF_BYTES_PER_ITEM.get(kind, math.inf)
        if items > _AVIF_MAX_ITEMS:
            yield math.inf
        if kind == b"moov":
            yield 0.000_005 * (end - start) ** 2
        if kind == b"iloc":
            if data[start + 4] == 0:
                yield 130 * (end - start)
            for item, length in _item_lengths(data[start:end]):
                lengths[item] += length
        if kind == b"infe":
            (item, item_type) = struct.unpack_from(
                ">4xI2x4s" if data[start] > 2 else ">4xH2x4s", data, start
            )
            if item_type == b"Exif":
                exif_items.add(item)
    yield sum(lengths[item] for item in exif_items)


def _boxes(data: bytes, start: int, end: int, levels: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box, and where its content starts and ends."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, content)
            content += 8
        box_end = min(start + length, end) if length else end
        if box_end < content:
            return
        yield kind, content, box_end
        if levels > 1 and kind in _AVIF_CONTAINERS:
            has_long_count = kind == b"iinf" and data[content] > 0
            first = content + _AVIF_CONTAINERS[kind] + 2 * has_long_count
            yield from _boxes(data, first, box_end, levels - 1)
        start = box_end


def _item_lengths(iloc: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number and the length of each item."""
    version = iloc[0]
    offset_size, length_size = divmod(iloc[4], 16)
    base_size, index_size = divmod(iloc[5], 16)
    number_size = 4 if version == 2 else 2
    extent_size = offset_size + length_size + (index_size if version else 0)
    start = 6 + number_size
    while start + number_size <= len(iloc):
        item = int.from_bytes(iloc[start : start + number_size])
        start += number_size + (4 if version else 2) + base_size
        extents = int.from_bytes(iloc[start : start + 2])
        start += 2
        end = min(start + extents * extent_size, len(iloc))
        length_ends = range(start + extent_size, end + 1, extent_size or 1)
        yield item, sum(int.from_bytes(iloc[e - length_size : e]) for e in length_ends)
        start += extents * extent_size
