"""The end of a JPEG's pixels, if its end marker is missing.

Some phones write a trailer, such as a video, in the place of the end marker. Such a picture is
complete. One that was cut off in the middle is not, even if a trailer follows.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

import numpy as np

END_MARKER = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Start of frame: baseline, extended and progressive, with Huffman codes."""
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
"""Within coded data, FF is followed only by 00 or by a restart marker."""
_MAX_MARKERS = 20_000
_LOOKAHEAD = 8
"""Bytes beyond the pixels that the decoder may have read into its buffer."""
_MAX_TEXT = 256
"""Bytes of text or zeros in the place of a trailer."""
_TRAILERS = (b"ftyp", b"Image_UTC_Data", b"MotionPhoto", b"MCC_Data", b"SEFH", b"SEFT")
"""Text near the start of known trailers: MP4 videos, and the blocks of Samsung's phones."""


def find_end_of_pixels(data: bytes) -> int | None:
    """Return where the coded pixels end, or None if a scan or a part of the last one is missing.

    It is the place of the next marker: other bytes may come before it. Format: ITU-T T.81, annexes
    B and G.
    """
    scans = _Scans()
    coded_from = 0
    end = len(data)
    for offset, marker, content in _segments(data):
        if scans.are_complete:
            end = offset
            break
        if marker in _FRAMES:
            scans.start_frame(content)
        elif marker == _RESTART_INTERVAL:
            scans.restart_interval = int.from_bytes(content[:2], "big")
        elif marker == _START_OF_SCAN:
            scans.add(content)
            coded_from = offset
    has_all = scans.are_complete and _has_restarts(data[coded_from:end], scans.restarts)
    return end if has_all else None


def _has_restarts(coded: bytes, count: int) -> bool:
    """Whether there are ``count`` restart markers before the first one out of order.

    A decoder stops at a missing one, and leaves over whatever follows.
    """
    # A file can hold ten million of them.
    codes = np.frombuffer(coded, np.uint8)
    restarts = codes[1:][(codes[:-1] == 0xFF) & (codes[1:] & 0xF8 == 0xD0)]
    return np.array_equal(restarts[:count], 0xD0 + np.arange(count) % 8)


def is_trailer(tail: bytes) -> bool:
    """Whether the bytes that a decoder left over look like the beginning of a trailer.

    If pixels were missing, the decoder would have used up the trailer's beginning in their place.
    """
    if any(name in tail[:64] for name in _TRAILERS):
        return True
    known = tail[_LOOKAHEAD:]
    is_text = all(byte in (0, 9, 10, 13) or 32 <= byte < 127 for byte in known)
    return len(known) <= _MAX_TEXT and is_text


def tail_of(data: bytes, end: int, extraneous: int) -> bytes:
    """Return the bytes before ``end`` that are no pixels, and a few that may be.

    ``extraneous`` is how many the decoder has counted.
    """
    return data[max(0, end - extraneous - _LOOKAHEAD) : end]


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (offset, marker, content) of each segment; coded data between them is skipped."""
    offset = 2
    for _ in range(_MAX_MARKERS):
        match = _MARKER.search(data, offset)
        if match is None:
            return
        length = int.from_bytes(data[match.end() : match.end() + 2], "big")
        yield match.start(), match[1][0], data[match.end() + 2 : match.end() + length]
        offset = match.end() + max(2, length)


class _Scans:
    """Which coefficients of each component the scans so far contain, in full precision."""

    def __init__(self) -> None:
        self.restart_interval = 0
        """Blocks of pixels between two restart markers; 0 if there are none."""
        self._size = (0, 0)
        """(width, height) in pixels."""
        self._missing: dict[int, set[int]] = {}
        """Coefficients that are missing, by component."""
        self._sampling: dict[int, tuple[int, int]] = {}
        """Horizontal and vertical sampling factor, by component."""
        self._last: tuple[int, ...] = ()
        """The components of the last scan."""

    @property
    def are_complete(self) -> bool:
        return bool(self._missing) and not any(self._missing.values())

    @property
    def restarts(self) -> int:
        """Number of restart markers in the last scan."""
        if not self.restart_interval:
            return 0
        largest = [max(factors) for factors in zip(*self._sampling.values(), strict=True)]
        # A scan of one component consists of its own blocks; others of the largest blocks.
        own = self._sampling[self._last[0]] if len(self._last) == 1 else (1, 1)
        blocks: int = math.prod(
            math.ceil(pixels * factor / (8 * most))
            for pixels, factor, most in zip(self._size, own, largest, strict=True)
        )
        return math.ceil(blocks / self.restart_interval) - 1

    def start_frame(self, content: bytes) -> None:
        if len(content) < 6 or len(content) < 6 + 3 * content[5]:
            return
        _, height, width, count = struct.unpack_from(">BHHB", content)
        components = content[6 : 6 + 3 * count : 3]
        self._size = width, height
        self._missing = {component: set(range(64)) for component in components}
        self._sampling = {
            component: (max(1, factors >> 4), max(1, factors & 0x0F))
            for component, factors in zip(components, content[7::3], strict=False)
        }

    def add(self, content: bytes) -> None:
        """Add a scan by its header."""
        if not content or len(content) < 4 + 2 * content[0]:
            return
        count = content[0]
        first, last, approximation = struct.unpack_from("BBB", content, 1 + 2 * count)
        is_exact = approximation & 0x0F == 0
        self._last = tuple(
            component for component in content[1 : 1 + 2 * count : 2] if component in self._missing
        )
        for component in content[1 : 1 + 2 * count : 2]:
            if is_exact and component in self._missing:
                self._missing[component] -= set(range(first, last + 1))
