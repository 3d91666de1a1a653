"""Pictures and videos of requests as bytes: data URLs, web addresses, paths, raw base64 and
uploads, and the limits on them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from raylens.core.config import RequestLimits
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.core.types import MediaFile, PictureFile
from raylens.core.wire import MediaUrl
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


class _Kind(NamedTuple):
    """Pictures or videos, and what limits a file of them."""

    noun: str
    example: str
    """Beginning of a data URL."""
    max_bytes: int


class Media:
    """Reads the pictures and videos of requests. ``field`` names one in error messages.

    Without ``root``, no path is allowed.
    """

    def __init__(
        self, limits: RequestLimits, fetcher: Fetcher, root: MediaRoot | None = None
    ) -> None:
        self._limits = limits
        self._fetcher = fetcher
        self._root = root
        self._pictures = _Kind("picture", "data:image/jpeg;base64,…", limits.max_image_bytes)
        self._videos = _Kind("video", "data:video/mp4;base64,…", limits.max_video_bytes)

    def check_count(self, urls: Sequence[MediaUrl], field: str) -> None:
        """Raise ``InvalidRequest`` if a request has more pictures or videos than the limit, or if
        a video has more frames."""
        frames = Counter(url.frame_of for url in urls if url.frame_of is not None)
        files = sum(url.video is not None for url in urls)
        pictures = len(urls) - files - frames.total()
        limits = self._limits
        counts = [
            (field, pictures, "pictures", limits.max_images),
            (field, files + len(frames), "videos", limits.max_videos),
        ]
        counts += [
            (name, count, "frames", limits.max_video_frames) for name, count in frames.items()
        ]
        for name, count, noun, limit in counts:
            if count > limit:
                message = f"{name}: {count} {noun}; the limit is {limit}"
                raise InvalidRequest(message, name, limit, count)

    async def read(self, media: MediaUrl, deadline: float, accept_base64: bool) -> MediaFile:
        """Return the picture or video of a URL.

        With ``accept_base64``, the URL may also be raw base64, or a path in the media folder.
        Raises as :meth:`from_url` does.
        """
        read = self._read_text if accept_base64 else self._read_url
        kind = self._pictures if media.video is None else self._videos
        return media.to_file(await read(media.url, media.field, deadline, kind))

    async def from_url(self, url: str, field: str, deadline: float) -> PictureFile:
        """Return the picture of a data URL, of a web address or of a file URL.

        Raises ``InvalidRequest`` for any other URL, for a path and for invalid base64,
        ``PayloadTooLarge``, and what :meth:`raylens.net.fetcher.Fetcher.fetch` raises.
        """
        return PictureFile(await self._read_url(url, field, deadline, self._pictures), field)

    async def from_text(self, text: str, field: str, deadline: float) -> PictureFile:
        """Return the picture of a URL, of a path in the media folder, or of raw base64.

        Raises as :meth:`from_url` does.
        """
        return PictureFile(await self._read_text(text, field, deadline, self._pictures), field)

    def from_upload(self, data: bytes, field: str) -> PictureFile:
        """Return the picture of an uploaded file. Raises ``PayloadTooLarge``."""
        return PictureFile(_checked(data, field, self._pictures), field)

    async def _read_url(self, url: str, field: str, deadline: float, kind: _Kind) -> bytes:
        url = url.lstrip(_LEADING)
        match _scheme(url):
            case "data":
                return await _read_data_url(url, field, kind)
            case "http" | "https":
                url = url.rstrip(_LEADING)
                data = await self._fetcher.fetch(url, field, kind.max_bytes, deadline)
                return _checked(data, field, kind)
            case "file":
                return await self._read_file_url(url, field, kind)
            case scheme:
                source = f"{scheme}: URLs" if scheme else "paths and bare strings"
        raise InvalidRequest(
            f"{field}: {source} are not supported;"
            f" expected the {kind.noun} as a data URL, {kind.example}, or a web address",
            field,
        )

    async def _read_text(self, text: str, field: str, deadline: float, kind: _Kind) -> bytes:
        """Base64 may look like a path: that of a JPEG begins with ``/9j/``. So only an existing
        file is one."""
        if _scheme(text.lstrip(_LEADING)):
            return await self._read_url(text, field, deadline, kind)
        root = self._root
        if (
            root is not None
            and len(text) <= _MAX_PATH_CHARS
            and await asyncio.to_thread(root.has_file, text)
        ):
            return await _read_path(root, text, field, kind)
        return await _read_base64(text, field, kind)

    async def _read_file_url(self, url: str, field: str, kind: _Kind) -> bytes:
        """Return the file of a URL (RFC 8089) on this machine."""
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
        return await _read_path(self._root, unquote(parts.path), field, kind)


async def _read_path(root: MediaRoot, path: str, field: str, kind: _Kind) -> bytes:
    data = await asyncio.to_thread(root.read, path, kind.max_bytes, field)
    return _checked(data, field, kind)


async def _read_data_url(url: str, field: str, kind: _Kind) -> bytes:
    """Return the data of a data URL.

    Source: RFC 2397, as browsers read it (WHATWG Fetch, "data: URL processor").
    """
    head, comma, payload = url.partition(",")
    head = _without_line_breaks(head)
    if not comma:
        raise InvalidRequest(f"{field}: expected a comma before the data URL's data", field)
    payload = payload.partition("#")[0]
    if _BASE64.search(head):
        # An escape takes three characters for one of the text.
        _check_size((len(payload) - 2 * payload.count("%")) * 9 // 16, field, kind)
        if "%" in payload:
            payload = await asyncio.to_thread(unquote, payload, "latin-1")
        return await _read_base64(payload, field, kind)
    _check_size(len(payload) // 3, field, kind)
    return _checked(await asyncio.to_thread(_unescape, payload), field, kind)


async def _read_base64(text: str, field: str, kind: _Kind) -> bytes:
    """Return the data of raw base64; white space is ignored."""
    # Line breaks make up to a twentieth of the text.
    _check_size(len(text) * 3 // 4 * 19 // 20, field, kind)
    if len(text) < _THREAD_MIN_CHARS:
        data = _decode_base64(text, field)
    else:
        data = await asyncio.to_thread(_decode_base64, text, field)
    return _checked(data, field, kind)


def _checked(data: bytes, field: str, kind: _Kind) -> bytes:
    if not data:
        raise InvalidRequest(f"{field}: the {kind.noun} is empty (0 bytes)", field)
    _check_size(len(data), field, kind)
    return data


def _check_size(size: int, field: str, kind: _Kind) -> None:
    limit = kind.max_bytes
    if size > limit + 3:
        message = f"{field}: a {kind.noun} of {size} bytes; the limit is {limit} bytes"
        raise PayloadTooLarge(message, field, limit, size)


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
