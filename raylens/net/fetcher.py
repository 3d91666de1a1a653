"""Downloads of files whose URLs come from untrusted callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from raylens import __version__
from raylens.core.config import FetchConfig
from raylens.core.errors import (
    DeadlineExceeded,
    FailureClass,
    InvalidRequest,
    PayloadTooLarge,
    RaylensError,
    UnsupportedMedia,
)
from raylens.core.lru import ByteLRU
from raylens.net.address import MAX_HOST_CHARS, AllowList
from raylens.net.client import GuardedClient, describe_failure, parse_url
from raylens.net.lookup import LookUp, look_up
from raylens.net.retry_after import parse_retry_after
from raylens.net.unpack import ENCODINGS, Unpacker

ATTEMPTS = 3
MAX_RETRY_AFTER_S = 5.0
MAX_VALIDATOR_CHARS = 1024
ENTRY_BYTES = 1024
"""What an entry of the cache takes beside its file, its validators and its URL."""
MAX_FRESH_S = 3600.0
"""Longest time that a file in the cache is used without asking its server."""
_MEDIA_TYPES = ("image/", "video/", "application/octet-stream", "binary/octet-stream", "text/plain")
"""Beginnings of the media types that a picture or a video may have. Careless servers send pictures
as text/plain."""
_BAD_REDIRECT = "redirects to what is no http:// or https:// URL"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class FetchFailed(InvalidRequest):
    """The URL leads to no file."""

    code = "fetch_failed"


class FetchInterrupted(FetchFailed):
    """The file could not be downloaded, for a reason that may be gone the next time."""

    failure_class = FailureClass.TRANSIENT


@dataclass(frozen=True)
class _File:
    """A downloaded file, and what its server said about later requests (RFC 9111)."""

    data: bytes
    validators: Mapping[str, str]
    """Headers of a request that asks whether the file has changed."""
    fresh_until: float


class Fetcher:
    """Downloads files from addresses that the configuration allows.

    Every hop of a redirect is checked anew, and the connection goes to an address that was checked
    (:class:`GuardedClient`). Bytes are counted as they arrive, unpacked. What may be gone the next
    time is tried ``ATTEMPTS`` times. Files are cached by their URLs, as long as their servers allow
    and then by validator.
    """

    def __init__(
        self,
        config: FetchConfig,
        look_up: LookUp = look_up,
        *,
        wait: Callable[[RetryCallState], float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        allowed = AllowList.parse(config.allow, excludes_others=config.mode == "list")
        user_agent = f"raylens/{__version__}"
        self._client = GuardedClient(allowed, config.timeout_s, user_agent, look_up)
        self._downloads = asyncio.Semaphore(config.max_at_once)
        self._hosts: WeakValueDictionary[bytes, asyncio.Semaphore] = WeakValueDictionary()
        """The downloads of each host from which there are any."""
        self._cache: ByteLRU[httpx.URL, _File] = ByteLRU(config.cache)
        self._wait = wait or _wait
        self._clock = clock

    async def close(self) -> None:
        await self._client.close()

    async def fetch(self, url: str, field: str, max_bytes: int, deadline: float) -> bytes:
        """Return the file at a URL. ``field`` is the request's name of it.

        Raises ``InvalidRequest`` if the URL is invalid or if downloads are off, ``AddressRefused``,
        ``FetchFailed``, ``PayloadTooLarge`` over ``max_bytes``, ``UnsupportedMedia`` for a web page
        and the like, and ``DeadlineExceeded``.
        """
        if self._config.mode == "off":
            raise InvalidRequest(
                f"{field}: this server downloads nothing; send the file itself as a data URL", field
            )
        parsed = parse_url(url, field)
        passed = f"the deadline passed before {field} was downloaded"
        limit = asyncio.Semaphore(self._config.max_per_host)
        host = self._hosts.setdefault(parsed.raw_host, limit)
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                async with host, self._downloads:
                    return await self._follow_in_time(parsed, field, max_bytes)
        except TimeoutError:
            raise DeadlineExceeded(passed, "deadline") from None

    async def _follow_in_time(self, url: httpx.URL, field: str, max_bytes: int) -> bytes:
        """Return the file. Waiting for other downloads doesn't count as the host's slowness."""
        timeout_s = self._config.timeout_s
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await self._follow(url, field, max_bytes)
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"no complete answer in {timeout_s:g} seconds"
            raise _failure(FetchInterrupted, url, message, field) from None

    async def _follow(self, url: httpx.URL, field: str, max_bytes: int) -> bytes:
        """Return the file to which a URL and its redirects lead."""
        for _ in range(self._config.max_redirects + 1):
            retrying = AsyncRetrying(
                stop=stop_after_attempt(ATTEMPTS),
                retry=retry_if_exception_type(FetchInterrupted),
                wait=self._wait,
                reraise=True,
            )
            answer: bytes | httpx.URL = await retrying(self._get, url, field, max_bytes)
            if isinstance(answer, bytes):
                return answer
            url = answer
        message = f"over {self._config.max_redirects} redirects"
        raise _failure(FetchFailed, url, message, field)

    async def _get(self, url: httpx.URL, field: str, max_bytes: int) -> bytes | httpx.URL:
        """Return the file at a URL, or the URL to which it redirects."""
        known = self._cache.get(url)
        if known is not None and self._clock() < known.fresh_until:
            _check_size(len(known.data), max_bytes, field)
            return known.data
        headers = {"Accept": "image/*,video/*;q=0.9,*/*;q=0.1", "Accept-Encoding": "identity"}
        headers |= known.validators if known else {}
        try:
            async with self._client.request("GET", url, headers, field) as response:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    return _target(url, response.headers["location"], field)
                if known is not None and response.status_code == 304:
                    data = known.data
                    _check_size(len(data), max_bytes, field)
                else:
                    _check_answer(response, url, field)
                    data = await _read(response, max_bytes, field)
                self._remember(url, response.headers, data, known)
                return data
        except httpx.InvalidURL:  # httpx reads the target of a redirect, too
            raise _failure(FetchFailed, url, _BAD_REDIRECT, field) from None
        except (OSError, httpx.HTTPError) as error:
            raise _failure(FetchInterrupted, url, describe_failure(error), field) from error

    def _remember(
        self, url: httpx.URL, headers: httpx.Headers, data: bytes, known: _File | None
    ) -> None:
        """Keep a file if its server lets caches keep it, and if it can be asked about it later."""
        directives = _cache_directives(headers)
        age = directives.get("max-age", "")
        fresh_s = min(float(age), MAX_FRESH_S) if age.isdecimal() else 0.0
        if "no-cache" in directives:
            fresh_s = 0.0
        validators = dict(known.validators) if known else {}
        for asks, has in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified")):
            if has in headers:
                validators[asks] = headers[has][: MAX_VALIDATOR_CHARS + 1]
        validators = {
            name: value for name, value in validators.items() if len(value) <= MAX_VALIDATOR_CHARS
        }
        self._cache.remove(url)
        if data and "no-store" not in directives and (fresh_s or validators):
            file = _File(data, validators, self._clock() + fresh_s)
            size = len(data) + sum(map(len, validators.values())) + len(str(url)) + ENTRY_BYTES
            self._cache.put(url, file, size)


def _cache_directives(headers: httpx.Headers) -> dict[str, str]:
    """Return the directives of ``Cache-Control`` with their values, in lower case."""
    directives = {}
    for directive in headers.get("cache-control", "").lower().split(","):
        name, _, value = directive.strip().partition("=")
        directives[name] = value.strip('"')
    return directives


def _target(url: httpx.URL, location: str, field: str) -> httpx.URL:
    """Return the URL to which a redirect leads. Raises ``FetchFailed`` if it is none."""
    try:
        return parse_url(str(url.join(location)), field)
    except (httpx.InvalidURL, InvalidRequest):
        raise _failure(FetchFailed, url, _BAD_REDIRECT, field) from None


def _check_answer(response: httpx.Response, url: httpx.URL, field: str) -> None:
    """Raise ``FetchFailed``, or ``UnsupportedMedia`` for a web page and the like."""
    status = response.status_code
    if status != 200:
        kind = FetchInterrupted if status in _TRANSIENT else FetchFailed
        message = f"answered {status} {response.reason_phrase[:64]}".rstrip()
        raise _failure(kind, url, message, field, response.headers.get("retry-after"))
    media_type = response.headers.get("content-type", "").strip().lower()
    if media_type and not media_type.startswith(_MEDIA_TYPES):
        message = f"{field}: {_host(url)} sent {media_type[:64]}, which is no picture or video"
        raise UnsupportedMedia(message, field)
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", *ENCODINGS):
        message = f"{field}: {_host(url)} sent it with Content-Encoding {encoding[:32]}"
        raise UnsupportedMedia(message, field)


async def _read(response: httpx.Response, max_bytes: int, field: str) -> bytes:
    """Return an answer's body, unpacked. Raises ``PayloadTooLarge``, and ``FetchFailed``."""
    length = response.headers.get("content-length", "")
    if length.isdecimal():
        _check_size(int(length[:20]), max_bytes, field)
    encoding = response.headers.get("content-encoding", "").strip().lower()
    unpacker = Unpacker(encoding, max_bytes) if encoding in ENCODINGS else None
    parts = []
    size = 0
    try:
        async for part in response.aiter_raw():
            if unpacker is not None:
                part = unpacker.unpack(part, is_last=False)
            size += len(part)
            _check_size(size, max_bytes, field)
            parts.append(part)
        if unpacker is not None:
            parts.append(unpacker.unpack(b"", is_last=True))
    except ValueError as error:
        raise FetchFailed(f"{field}: {error}", field) from None
    return b"".join(parts)


def _check_size(size: int, max_bytes: int, field: str) -> None:
    if size > max_bytes:
        message = f"{field}: a file of over {max_bytes} bytes, which is the limit"
        raise PayloadTooLarge(message, field, max_bytes, size)


def _failure(
    kind: type[FetchFailed],
    url: httpx.URL,
    message: str,
    field: str,
    retry_after: str | None = None,
) -> RaylensError:
    wait_s = parse_retry_after(retry_after, MAX_RETRY_AFTER_S)
    return kind(f"{field}: {_host(url)}: {message}", field, None, None, wait_s)


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")[:MAX_HOST_CHARS]


def _wait(state: RetryCallState) -> float:
    """Return the seconds before the next attempt: what the server asks for, or up to a second."""
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.retry_after if isinstance(failure, RaylensError) else None
    return _BACKOFF(state) if asked is None else asked


_BACKOFF = wait_random_exponential(multiplier=0.25, max=1.0)
