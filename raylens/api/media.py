"""Pictures in requests: data URLs, raw base64 and uploads to bytes, with the limits on them in one
place."""

from __future__ import annotations

import asyncio
import base64
import binascii

from raylens.core.config import RequestLimits
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.core.types import PictureFile

_LARGE = 256 * 1024
"""Text over this many characters is decoded in a thread, to keep the event loop free."""


class Media:
    """Reads the pictures of requests. ``field`` names the place in the request for error messages."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits

    def check_count(self, count: int, field: str) -> None:
        """Raises ``InvalidRequest`` over the limit on pictures in one request."""
        if count > self._limits.max_images:
            raise InvalidRequest(
                f"{field}: {count} pictures; the limit is {self._limits.max_images}",
                field,
                self._limits.max_images,
                count,
            )

    async def from_url(self, url: str, field: str) -> PictureFile:
        """The picture of a data URL.

        Raises ``InvalidRequest`` for any other URL or a path, and for broken base64, and
        ``PayloadTooLarge``.
        """
        head, comma, payload = url.partition(",")
        scheme = head.partition(":")[0].lower() if ":" in head[:16] else ""
        if scheme != "data":
            given = f"{scheme}: URLs" if scheme else "paths and bare strings"
            raise InvalidRequest(
                f"{field}: {given} are not fetched; send the picture itself as a data URL, data:image/jpeg;base64,…",
                field,
            )
        if not comma:
            raise InvalidRequest(f"{field}: the data URL has no comma before its data", field)
        if not head.lower().endswith(";base64"):
            raise InvalidRequest(
                f"{field}: a data URL with base64 is needed, data:image/jpeg;base64,…", field
            )
        return await self.from_base64(payload, field)

    async def from_base64(self, text: str, field: str) -> PictureFile:
        """The picture of raw base64, white space ignored. Raises as :meth:`from_url` does."""
        self._check_size(len(text) * 3 // 4 * 19 // 20, field)  # line breaks take up to a twentieth
        if len(text) < _LARGE:
            return self._checked(_decode_base64(text, field), field)
        return self._checked(await asyncio.to_thread(_decode_base64, text, field), field)

    def from_upload(self, data: bytes, field: str) -> PictureFile:
        return self._checked(data, field)

    def _checked(self, data: bytes, field: str) -> PictureFile:
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


def _decode_base64(text: str, field: str) -> bytes:
    if "%" in text[-12:]:
        text = text.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
    compact = "".join(text.split())
    if "-" in compact or "_" in compact:
        compact = compact.translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{field}: the base64 is broken ({error})", field) from None
