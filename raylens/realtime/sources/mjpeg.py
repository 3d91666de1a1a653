"""Pictures in a stream of bytes: JPEG files one after another, and multipart/x-mixed-replace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

START = b"\xff\xd8\xff"
MAX_HEAD_BYTES = 16 * 1024
"""Of a part's headers."""
MAX_DELIMITER_BYTES = 512
MAX_DASHES = 80
"""Before and after the name of a boundary, which has at most 70 characters itself."""
_SCAN = 0xDA
_END = 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without content: TEM and the restarts."""


class StreamError(ValueError):
    """The bytes are no stream of pictures, or a picture is too large."""


class Splitter(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the pictures that are complete with these bytes. Raises ``StreamError``."""
        ...


class JpegScanner:
    """Finds the end of the JPEG file at the beginning of a growing buffer.

    The thumbnail in a file's EXIF block is a JPEG file, too, so that the first end marker isn't
    always the file's. Format: ITU-T T.81, annex B.
    """

    def __init__(self) -> None:
        self._at = 2
        self._is_in_scan = False

    def find_end(self, buffer: bytearray) -> int | None:
        """Return the length of the file; None if it isn't complete.

        Raises ``StreamError`` if the bytes are no JPEG file.
        """
        while self._find_marker(buffer):
            marker = buffer[self._at + 1]
            if marker == 0xFF:  # a fill byte
                self._at += 1
            elif marker in _ALONE or (marker == 0 and self._is_in_scan):
                self._at += 2
            elif marker == _END:
                return self._at + 2
            elif marker in (0, 0xD8):
                raise StreamError("a marker is out of place")
            elif not self._skip_segment(buffer, marker):
                break
        return None

    def _find_marker(self, buffer: bytearray) -> bool:
        """Go to the next marker. Return whether it is there."""
        if self._is_in_scan:
            self._at = buffer.find(b"\xff", self._at)
            if self._at < 0:
                self._at = len(buffer)
        if self._at + 2 > len(buffer):
            return False
        if buffer[self._at] != 0xFF:
            raise StreamError("a marker is missing")
        return True

    def _skip_segment(self, buffer: bytearray, marker: int) -> bool:
        if self._at + 4 > len(buffer):
            return False
        length = int.from_bytes(buffer[self._at + 2 : self._at + 4])
        if length < 2:
            raise StreamError("a segment has no length")
        self._at += 2 + length
        self._is_in_scan = marker == _SCAN
        return True


class JpegSplitter:
    """Splits JPEG files that follow one another. What is between them is dropped."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._scanner: JpegScanner | None = None
        self._searched = 0
        """Bytes of a damaged file in which no other file begins."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while True:
            if self._scanner is None and not self._find_start():
                return
            assert self._scanner is not None
            try:
                end = self._scanner.find_end(self._buffer)
            except StreamError:
                end = self._find_next_start()
            if end is None:
                _check_size(len(self._buffer), self._max_bytes)
                return
            yield self._take(end)

    def _find_start(self) -> bool:
        start = self._buffer.find(START)
        if start < 0:
            del self._buffer[: -(len(START) - 1)]
            return False
        del self._buffer[:start]
        self._scanner = JpegScanner()
        return True

    def _find_next_start(self) -> int | None:
        """Return where a damaged file ends: at the beginning of the next one."""
        start = self._buffer.find(START, max(2, self._searched))
        self._searched = len(self._buffer) - (len(START) - 1)
        return None if start < 0 else start

    def _take(self, end: int) -> bytes:
        picture = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._scanner = None
        self._searched = 0
        return picture


class MultipartSplitter:
    """Splits the parts of a stream as cameras send them (RFC 2046, section 5.1, with deviations).

    The boundary may be announced with its dashes, or sent without them; the length of a part may
    be missing, and so may the line end after it. Without an announced boundary, the first line that
    begins with two dashes is it.

    Raises ``StreamError`` if the boundary is nothing but dashes.
    """

    def __init__(self, boundary: str | None, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._delimiter = None if boundary is None else _delimiter(boundary.encode())
        self._is_in_part = False
        self._length: int | None = None
        self._scanner: JpegScanner | None = None
        self._searched = 0
        """Bytes at the start of a part that hold no delimiter."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while True:
            if not self._is_in_part:
                if not self._read_head():
                    return
                continue
            part = self._read_part()
            if part is None:
                _check_size(len(self._buffer), self._max_bytes)
                return
            self._is_in_part = False
            if part:
                yield part

    def _read_head(self) -> bool:
        """Skip to the next part, and past its headers. Return whether all of that was there."""
        delimiter = self._find_delimiter()
        if delimiter is None:
            return False
        head = _HEAD.match(self._buffer, delimiter.end())
        if head is None:
            if len(self._buffer) - delimiter.end() > MAX_HEAD_BYTES:
                raise StreamError("the headers of a part have no end")
            return False
        length = _LENGTH.search(head[0])
        self._length = int(length[1]) if length and int(length[1]) else None
        if self._length is not None:
            _check_size(self._length, self._max_bytes)
        self._scanner = JpegScanner()
        self._searched = 0
        self._is_in_part = True
        del self._buffer[: head.end()]
        return True

    def _find_delimiter(self) -> re.Match[bytes] | None:
        if self._delimiter is None:
            first = _FIRST_LINE.match(self._buffer)
            if first is None:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise StreamError("no boundary between the parts")
                return None
            self._delimiter = _delimiter(first[1])
        match = self._delimiter.search(self._buffer)
        if match is None and len(self._buffer) > MAX_HEAD_BYTES:
            del self._buffer[:-MAX_DELIMITER_BYTES]
        return match

    def _read_part(self) -> bytes | None:
        if self._length is None:
            return self._read_part_without_length()
        return self._take(self._length) if len(self._buffer) >= self._length else None

    def _read_part_without_length(self) -> bytes | None:
        """Return a part as soon as it is complete. That is at the end of its JPEG file, which may
        come long before the next delimiter."""
        assert self._delimiter is not None
        assert self._scanner is not None
        end: int | None = None
        if self._buffer.startswith(START):
            try:
                end = self._scanner.find_end(self._buffer)
            except StreamError:
                end = None
        delimiter = self._delimiter.search(self._buffer, self._searched)
        self._searched = max(0, len(self._buffer) - MAX_DELIMITER_BYTES)
        if delimiter is not None and (end is None or delimiter.start() < end):
            end = delimiter.start()
        return None if end is None else self._take(end)

    def _take(self, end: int) -> bytes:
        part = bytes(self._buffer[:end])
        del self._buffer[:end]
        return part


_HEAD = re.compile(rb"(?:[^\r\n][^\n]*\n)*\r?\n")
_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:[ \t]*([0-9]{1,12})[ \t]*\r?$")
_FIRST_LINE = re.compile(rb"\s*(--[^\r\n]{1,200})\r?\n")


def _delimiter(boundary: bytes) -> re.Pattern[bytes]:
    """Return a pattern of the lines between the parts. Raises ``StreamError``.

    A search takes linear time because the name neither begins nor ends with a dash.
    """
    name = boundary.strip(b'"- \t\r\n')
    if not name:
        raise StreamError("the boundary between the parts has no name")
    dashes = rb"-{0,%d}" % MAX_DASHES
    line = dashes + re.escape(name) + dashes + rb"[ \t]*\r?\n"
    return re.compile(rb"(?:^|\r?\n|(?<=\xff\xd9))" + line)


def _check_size(count: int, limit: int) -> None:
    if count > limit:
        raise StreamError(f"a picture of over {limit} bytes")


def guess_splitter(beginning: bytes, max_bytes: int) -> Splitter:
    """Return the splitter of a stream that begins like this. Raises ``StreamError``."""
    if beginning.startswith(START[: len(beginning)]):
        return JpegSplitter(max_bytes)
    if beginning.lstrip().startswith(b"--"):
        return MultipartSplitter(None, max_bytes)
    raise StreamError("neither JPEG pictures nor multipart/x-mixed-replace")
