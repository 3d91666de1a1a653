"""Pictures of requests as bytes: data URLs, raw base64 and uploads, and the limits on them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from raylens.core.config import RequestLimits
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.core.types import PictureFile

_BASE64 = re.compile(r"; *base64[ \t\n\f\r]*$", re.IGNORECASE)
"""The end of a data URL's head that announces base64."""
_LEADING = "".join(map(chr, range(33)))
"""Control characters and spaces, which may precede a URL."""
_THREAD_MIN_CHARS = 256 * 1024
"""Longer base64, in characters, is decoded in a thread, to keep the event loop free."""


class Media:
    """Reads the pictures of requests. ``field`` names a picture's field in error messages."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits

    def check_count(self, count: int, field: str) -> None:
        """Raise ``InvalidRequest`` if a request has more pictures than the limit."""
        limit = self._limits.max_images
        if count > limit:
            raise InvalidRequest(
                f"{field}: {count} pictures; the limit is {limit}", field, limit, count
            )

    async def from_url(self, url: str, field: str) -> PictureFile:
        """Return the picture of a data URL.

        Source: RFC 2397, as browsers read it (WHATWG Fetch, "data: URL processor"). Raises
        ``InvalidRequest`` for any other URL, for a path and for invalid base64, and
        ``PayloadTooLarge``.
        """
        head, comma, payload = url.lstrip(_LEADING).partition(",")
        head = _without_line_breaks(head)
        scheme = head.partition(":")[0].lower() if ":" in head[:16] else ""
        if scheme != "data":
            source = f"{scheme}: URLs" if scheme else "paths and bare strings"
            raise InvalidRequest(
                f"{field}: {source} are not supported;"
                " expected the picture as a data URL, data:image/jpeg;base64,…",
                field,
            )
        if not comma:
            raise InvalidRequest(f"{field}: expected a comma before the data URL's data", field)
        payload = payload.partition("#")[0]
        if _BASE64.search(head):
            # An escape takes three characters for one of the text.
            self._check_size((len(payload) - 2 * payload.count("%")) * 9 // 16, field)
            if "%" in payload:
                payload = await asyncio.to_thread(unquote, payload, "latin-1")
            return await self.from_base64(payload, field)
        self._check_size(len(payload) // 3, field)
        return self._to_picture(await asyncio.to_thread(_unescape, payload), field)

    async def from_base64(self, text: str, field: str) -> PictureFile:
        """Return the picture of raw base64; white space is ignored.

        Raises ``InvalidRequest`` for invalid base64, and ``PayloadTooLarge``.
        """
        # Line breaks make up to a twentieth of the text.
        self._check_size(len(text) * 3 // 4 * 19 // 20, field)
        if len(text) < _THREAD_MIN_CHARS:
            data = _decode_base64(text, field)
        else:
            data = await asyncio.to_thread(_decode_base64, text, field)
        return self._to_picture(data, field)

    def from_upload(self, data: bytes, field: str) -> PictureFile:
        """Return the picture of an uploaded file. Raises ``PayloadTooLarge``."""
        return self._to_picture(data, field)

    def _to_picture(self, data: bytes, field: str) -> PictureFile:
        if not data:
            raise InvalidRequest(f"{field}: the picture is empty (0 bytes)", field)
        self._check_size(len(data), field)
        return PictureFile(data, field)

    def _check_size(self, size: int, field: str) -> None:
        limit = self._limits.max_image_bytes
        if size > limit + 3:
            raise PayloadTooLarge(
                f"{field}: a picture of {size} bytes; the limit is {limit} bytes",
                field,
                limit,
                size,
            )


def _unescape(payload: str) -> bytes:
    return unquote_to_bytes(_without_line_breaks(payload))


def _without_line_breaks(url: str) -> str:
    """Return a URL, or a part of it, without line breaks and tabs, which mean nothing there."""
    return url.replace("\n", "").replace("\r", "").replace("\t", "")


def _decode_base64(text: str, field: str) -> bytes:
    compact = "".join(text.split())
    if "-" in compact or "_" in compact:
        compact = compact.translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{field}: invalid base64 ({error})", field) from None
