"""Compressed HTTP bodies, unpacked as they arrive and within a limit."""

from __future__ import annotations

import zlib

ENCODINGS = ("gzip", "x-gzip", "deflate")
"""Values of Content-Encoding that :class:`Unpacker` reads."""
MAX_MEMBERS = 1000
_ANY_HEADER = 32 + zlib.MAX_WBITS
"""Zlib's code for data with the header of gzip or of zlib."""
_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 2


class Unpacker:
    """Unpacks one body of at most ``max_bytes``, whose Content-Encoding is ``encoding``."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._start = b""
        """The first bytes, until there are enough to tell whether there is a header."""
        self._has_started = encoding != "deflate"
        self._decompressor = zlib.decompressobj(_ANY_HEADER)
        self._left = max_bytes
        self._members = 1

    def unpack(self, packed: bytes, is_last: bool) -> bytes:
        """Return the unpacked data of a part; one byte over the limit, if there is more.

        A gzip file may have several members, one after the other (RFC 1952, section 2.2). Raises
        ``ValueError`` if the data is damaged.
        """
        data = b""
        packed = self._skip_start(packed, is_last)
        while packed and len(data) <= self._left:
            if self._decompressor.eof:
                self._members += 1
                if self._members > MAX_MEMBERS:
                    raise ValueError(f"over {MAX_MEMBERS} members of gzip")
                self._decompressor = zlib.decompressobj(_ANY_HEADER)
            try:
                data += self._decompressor.decompress(packed, self._left + 1 - len(data))
            except zlib.error as error:
                raise ValueError(f"unpacking it failed: {error}") from None
            packed = self._decompressor.unused_data
        if is_last and not (self._decompressor.eof or self._left < len(data)):
            raise ValueError("its compressed data is cut off")
        self._left -= len(data)
        return data

    def _skip_start(self, packed: bytes, is_last: bool) -> bytes:
        """Return the packed data, once enough has arrived to tell whether it has a header.

        Many programs send "deflate" without one (RFC 9110, section 8.4.1.2).
        """
        if self._has_started:
            return packed
        packed = self._start + packed
        if not is_last and len(packed) < _HEADER_BYTES:
            self._start = packed
            return b""
        self._has_started = True
        if packed and not _has_header(packed[:_HEADER_BYTES]):
            self._decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        return packed


def _has_header(start: bytes) -> bool:
    """Whether data begins with the header of gzip (RFC 1952) or of zlib (RFC 1950)."""
    return start == _GZIP or (start[0] & 15 == 8 and int.from_bytes(start, "big") % 31 == 0)
