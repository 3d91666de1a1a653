"""Names of sources, as people write them."""

from __future__ import annotations

import os
import re
import stat
from urllib.parse import unquote, urlsplit

from raylens.core.errors import InvalidRequest
from raylens.realtime.sources.base import SourceAddress, SourceKind

FIELD = "source"
_CAMERA = re.compile(r"(?:camera:)?([0-9]{1,3})|/dev/video([0-9]{1,3})")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_KINDS = {
    "rtsp": SourceKind.RTSP,
    "rtsps": SourceKind.RTSP,
    "http": SourceKind.HTTP,
    "https": SourceKind.HTTP,
}
_EXPECTED = "expected rtsp://, rtsps://, http:// or https://"


def parse_source(text: str) -> SourceAddress:
    """Return the address of a source: ``-``, a URL, ``camera:0`` or ``/dev/video0``, a folder or a
    file.

    Raises ``InvalidRequest``. The message doesn't contain the password.
    """
    if text == "-":
        return SourceAddress(SourceKind.STDIN, "")
    camera = _CAMERA.fullmatch(text)
    if camera is not None:
        return SourceAddress(SourceKind.CAMERA, f"/dev/video{camera[1] or camera[2]}")
    if _SCHEME.match(text):
        return parse_url(text)
    return _parse_path(text)


def parse_url(text: str) -> SourceAddress:
    """Return the address of a stream. Raises ``InvalidRequest``, without the URL's password."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise InvalidRequest(f"{FIELD}: {_EXPECTED}", FIELD)
    kind = _KINDS.get(scheme[1].lower())
    if kind is None:
        raise InvalidRequest(f"{FIELD}: unknown scheme {scheme[1][:20]}://; {_EXPECTED}", FIELD)
    if re.search(r"\s", text) or _CONTROL.search(text):
        raise InvalidRequest(f"{FIELD}: a URL has no spaces or line ends", FIELD)
    try:
        url = urlsplit(text)
        has_host = bool(url.hostname) and url.port != 0
    except ValueError:
        has_host = False
    if not has_host:
        raise InvalidRequest(
            f"{FIELD}: the URL's host or port is invalid; write # / ? and @ of a password as"
            " %23 %2F %3F and %40",
            FIELD,
        )
    if any(_CONTROL.search(unquote(part or "")) for part in (url.username, url.password)):
        raise InvalidRequest(
            f"{FIELD}: the user name or password holds a line end or another control character",
            FIELD,
        )
    return SourceAddress(kind, text)


def _parse_path(text: str) -> SourceAddress:
    try:
        mode = os.stat(text).st_mode
    except FileNotFoundError:
        raise InvalidRequest(f"{FIELD}: {text}: no such file or folder", FIELD) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{FIELD}: {text}: {reason}", FIELD) from None
    if stat.S_ISDIR(mode):
        return SourceAddress(SourceKind.FOLDER, text)
    if not stat.S_ISREG(mode):
        raise InvalidRequest(f"{FIELD}: {text}: neither a file nor a folder", FIELD)
    return SourceAddress(SourceKind.FILE, text)
