"""Cameras over HTTP: MJPEG streams, and pictures that are asked for again and again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from email.message import Message
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from raylens.net.client import describe_failure
from raylens.realtime.sources.base import (
    ClosableSource,
    ReportProblem,
    SourceAddress,
    SourceFrame,
    SourceOptions,
    SourceUnavailable,
)
from raylens.realtime.sources.mjpeg import (
    JpegSplitter,
    MultipartSplitter,
    Splitter,
    StreamError,
    guess_splitter,
)
from raylens.realtime.sources.passwords import Authenticator, Credentials
from raylens.realtime.sources.pictures import BrokenPicture, decode_picture

T = TypeVar("T")
MAX_REDIRECTS = 5
_HEADERS = {
    "Accept": "multipart/x-mixed-replace, image/jpeg, image/png, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": "raylens",
}
_UNKNOWN_TYPES = ("", "application/octet-stream", "binary/octet-stream")
_JPEG_STREAMS = ("video/x-motion-jpeg", "video/x-mjpeg", "video/mjpeg", "video/x-jpeg")


class HttpSource(ClosableSource):
    """The frames of an MJPEG stream, or of a URL that answers with one picture each time.

    It runs an event loop of its own, so that everything can be interrupted: a connection that
    isn't accepted, a TLS handshake, an answer that stops halfway.
    """

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        report: ReportProblem,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(address)
        self._options = options
        self._report = report
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._pictures: AsyncGenerator[bytes, None] | None = None
        self._opened_at: float | None = None

    def _read(self) -> SourceFrame | None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            return self._run(self._loop, self._next_frame())
        except asyncio.CancelledError:
            raise self._unavailable("it is closed") from None

    async def _next_frame(self) -> SourceFrame:
        is_first = self._pictures is None
        if self._pictures is None:
            self._pictures = self._receive()
        limit = self._options.open_timeout_s if is_first else self._options.read_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._next_picture(self._pictures)
        except TimeoutError:
            raise self._unavailable(f"no picture for {limit:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._unavailable(describe_failure(error)) from error
        except StreamError as error:
            raise self._unavailable(str(error)) from error

    async def _next_picture(self, pictures: AsyncGenerator[bytes, None]) -> SourceFrame:
        while True:
            data = await anext(pictures)
            if self._opened_at is None:
                self._opened_at = self._clock()
            received_at = self._clock()
            try:
                pixels = decode_picture(data, self._options)
            except BrokenPicture as error:
                self._report(f"{self.address.shown}: a picture was skipped: {error}")
                continue
            return SourceFrame(pixels, received_at - self._opened_at)

    async def _receive(self) -> AsyncGenerator[bytes, None]:
        """Yield pictures. Raises ``SourceUnavailable`` when the stream ends."""
        request = _Request(self.address)
        async with request.make_client() as http:
            while True:
                due_at = self._clock() + self._options.snapshot_interval_s
                async with request.send(http) as response:
                    self._check(response)
                    splitter, chunks = await self._choose(response)
                    if splitter is not None:
                        async with contextlib.aclosing(self._split(splitter, chunks)) as pictures:
                            async for picture in pictures:
                                yield picture
                        raise self._unavailable("the stream ended")
                    yield await self._collect(chunks)
                await asyncio.sleep(due_at - self._clock())

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 401:
            given = "is refused" if urlsplit(self.address.location).username else "is needed"
            raise self._unavailable(f"401: a user name and password {given}")
        if response.is_redirect:
            raise self._unavailable(f"{status}: it redirects elsewhere, which isn't followed")
        if status != 200:
            raise self._unavailable(f"{status} {response.reason_phrase}".strip())
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise self._unavailable(f"it is compressed ({encoding[:20]})")

    async def _choose(
        self, response: httpx.Response
    ) -> tuple[Splitter | None, AsyncGenerator[bytes, None]]:
        """Return an answer's bytes, and what splits them; None if they are a single picture."""
        header = Message()
        header["Content-Type"] = response.headers.get("content-type", "")
        kind = header.get_content_type() if response.headers.get("content-type") else ""
        limit = self._options.max_picture_bytes
        chunks = _chunks(response)
        if kind.startswith("multipart/"):
            boundary = header.get_param("boundary")
            return MultipartSplitter(str(boundary) if boundary else None, limit), chunks
        if kind in _JPEG_STREAMS:
            return JpegSplitter(limit), chunks
        if kind.startswith("image/"):
            return None, chunks
        if kind in _UNKNOWN_TYPES:
            beginning = await anext(chunks, b"")
            return guess_splitter(beginning, limit), _prepend(beginning, chunks)
        raise self._unavailable(f"it sends {kind[:80]}, which is neither MJPEG nor a picture")

    async def _split(
        self, splitter: Splitter, chunks: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            for picture in splitter.feed(chunk):
                yield picture

    async def _collect(self, chunks: AsyncGenerator[bytes, None]) -> bytes:
        data = bytearray()
        async for chunk in chunks:
            data += chunk
            if len(data) > self._options.max_picture_bytes:
                limit = self._options.max_picture_bytes
                raise self._unavailable(f"a picture of over {limit} bytes")
        return bytes(data)

    def _run(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
        task = self._task = loop.create_task(work)
        if self._closed.is_set():  # since the last look at it
            task.cancel()
        try:
            result: T = loop.run_until_complete(task)
            return result
        finally:
            self._task = None

    def _interrupt(self) -> None:
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)

    def _free(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        if self._pictures is not None:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                loop.run_until_complete(self._pictures.aclose())
        with contextlib.suppress(Exception):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _Request:
    """The request for an address: its URL without the password, and the host to connect to."""

    def __init__(self, address: SourceAddress) -> None:
        try:
            url = httpx.URL(address.location)
        except httpx.InvalidURL:
            raise SourceUnavailable(f"{address.shown}: not a URL", "source") from None
        self._shown = address.shown
        self._authenticator: Authenticator | None = None
        if url.userinfo:
            user, _, password = url.userinfo.decode("ascii").partition(":")
            self._authenticator = Authenticator(Credentials(unquote(user), unquote(password)))
        self._url = url.copy_with(username=None, password=None)
        self._is_pinned = address.host_address is not None
        self._headers = dict(_HEADERS)
        self._extensions: dict[str, Any] = {}
        if address.host_address is not None:
            self._headers["Host"] = self._url.netloc.decode("ascii")
            self._extensions["sni_hostname"] = self._url.raw_host.decode("ascii")
            self._url = self._url.copy_with(host=address.host_address)

    def make_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=None, trust_env=not self._is_pinned)

    @contextlib.asynccontextmanager
    async def send(self, http: httpx.AsyncClient) -> AsyncGenerator[httpx.Response, None]:
        """Ask for the pictures, and again with the password if the answer demands one.

        Only the heads of other answers are read: their bodies may never end.
        """
        response = await self._follow(http)
        try:
            if response.status_code == 401 and self._can_answer(response):
                await response.aclose()
                response = await self._follow(http)
            yield response
        finally:
            await response.aclose()

    async def _follow(self, http: httpx.AsyncClient) -> httpx.Response:
        """Send the request to where redirects lead, unless its address is pinned."""
        request = http.build_request(
            "GET", self._url, headers=self._make_headers(), extensions=self._extensions
        )
        for _ in range(MAX_REDIRECTS + 1):
            response = await http.send(request, stream=True)
            if self._is_pinned or response.next_request is None:
                return response
            await response.aclose()
            request = response.next_request
        raise SourceUnavailable(f"{self._shown}: over {MAX_REDIRECTS} redirects", "source")

    def _make_headers(self) -> httpx.Headers:
        headers = httpx.Headers(self._headers, encoding="utf-8")
        path = self._url.raw_path.decode("ascii")
        login = self._authenticator.authorize("GET", path) if self._authenticator else None
        if login is not None:
            headers["Authorization"] = login
        return headers

    def _can_answer(self, response: httpx.Response) -> bool:
        challenges = response.headers.get_list("www-authenticate")
        return self._authenticator is not None and self._authenticator.take(challenges)


async def _chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield an answer's bytes as they are sent: nothing is decompressed, which has no bound."""
    async for chunk in response.aiter_raw():
        yield chunk


async def _prepend(
    beginning: bytes, chunks: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    yield beginning
    async for chunk in chunks:
        yield chunk
