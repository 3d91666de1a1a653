"""Pictures of requests as bytes: data URLs, web addresses, paths, raw base64 and uploads, and the
limits on them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from raylens.core.config import RequestLimits
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.core.types import PictureFile
from raylens.net.fetcher import Fetcher
from raylens.net.media_root import MediaRoot

_BASE64 = re.compile(r"; *base64[ \t\n\f\r]*$", re.IGNORECASE)
"""The end of a data URL's head that announces base64."""
_LEADING = "".join(map(chr, range(33)))
"""Control characters and spaces, which may precede a URL."""
_MAX_SCHEME_CHARS = 16
_MAX_PATH_CHARS = 4096
_THREAD_MIN_CHARS = 256 * 1024
"""Longer base64, in characters, is decoded in a thread, to keep the event loop free."""


class Media:
    """Reads the pictures of requests. ``field`` names a picture's field in error messages.

    Without ``root``, no path is allowed.
    """

    def __init__(
        self, limits: RequestLimits, fetcher: Fetcher, root: MediaRoot | None = None
    ) -> None:
        self._limits = limits
        self._fetcher = fetcher
        self._root = root

    def check_count(self, count: int, field: str) -> None:
        """Raise ``InvalidRequest`` if a request has more pictures than the limit."""
        limit = self._limits.max_images
        if count > limit:
            raise InvalidRequest(
                f"{field}: {count} pictures; the limit is {limit}", field, limit, count
            )

    async def from_url(self, url: str, field: str, deadline: float) -> PictureFile:
        """Return the picture of a data URL, of a web address or of a file URL.

        Raises ``InvalidRequest`` for any other URL, for a path and for invalid base64,
        ``PayloadTooLarge``, and what :meth:`raylens.net.fetcher.Fetcher.fetch` raises.
        """
        url = url.lstrip(_LEADING)
        match _scheme(url):
            case "data":
                return await self._from_data_url(url, field)
            case "http" | "https":
                limit = self._limits.max_image_bytes
                data = await self._fetcher.fetch(url.rstrip(_LEADING), field, limit, deadline)
                return self._to_picture(data, field)
            case "file":
                return await self._from_file_url(url, field)
            case scheme:
                source = f"{scheme}: URLs" if scheme else "paths and bare strings"
        raise InvalidRequest(
            f"{field}: {source} are not supported;"
            " expected the picture as a data URL, data:image/jpeg;base64,…, or a web address",
            field,
        )

    async def from_text(self, text: str, field: str, deadline: float) -> PictureFile:
        """Return the picture of a URL, of a path in the media folder, or of raw base64.

        Base64 may look like a path: that of a JPEG begins with ``/9j/``. So only an existing file
        is one. Raises as :meth:`from_url` does.
        """
        if _scheme(text.lstrip(_LEADING)):
            return await self.from_url(text, field, deadline)
        root = self._root
        if (
            root is not None
            and len(text) <= _MAX_PATH_CHARS
            and await asyncio.to_thread(root.has_file, text)
        ):
            return await self._from_path(root, text, field)
        return await self.from_base64(text, field)

    async def _from_file_url(self, url: str, field: str) -> PictureFile:
        """Return the picture of a file URL (RFC 8089) of this machine."""
        if self._root is None:
            raise InvalidRequest(
                f"{field}: this server reads no files of its own; its configuration has no"
                " media_root",
                field,
            )
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise InvalidRequest(f"{field}: not a URL ({error})", field) from None
        if parts.netloc.lower() not in ("", "localhost"):
            raise InvalidRequest(f"{field}: expected file:/// and a path", field)
        return await self._from_path(self._root, unquote(parts.path), field)

    async def _from_path(self, root: MediaRoot, path: str, field: str) -> PictureFile:
        limit = self._limits.max_image_bytes
        return self._to_picture(await asyncio.to_thread(root.read, path, limit, field), field)

    async def _from_data_url(self, url: str, field: str) -> PictureFile:
        """Return the picture of a data URL.

        Source: RFC 2397, as browsers read it (WHATWG Fetch, "data: URL processor").
        """
        head, comma, payload = url.partition(",")
        head = _without_line_breaks(head)
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


def _scheme(url: str) -> str:
    """Return the scheme of a URL in lower case; empty if it has none."""
    start = _without_line_breaks(url[:_MAX_SCHEME_CHARS])
    return start.partition(":")[0].lower() if ":" in start else ""


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
