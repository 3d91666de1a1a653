"""A proxy between FFmpeg and an RTSP server, which can be stopped at any time.

FFmpeg connects by itself, and nothing in another thread can end its waiting. It therefore talks
to this proxy, which connects to the camera, and which also does what FFmpeg does not: it connects
to a given address, verifies TLS names, refuses redirects and says why it failed.
Protocol: RFC 2326, with the media interleaved (10.12).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import ssl
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from raylens.core.concurrency import until_first
from raylens.net.client import describe_failure
from raylens.realtime.sources.base import SourceAddress, SourceOptions
from raylens.realtime.sources.passwords import Authenticator, Credentials

PORTS = {"rtsp": 554, "rtsps": 322}
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 2**20
MAX_REQUESTS = 16
"""Number of unanswered requests that are kept, so that they can be sent again with a password."""
_MEDIA = b"$"
_HEADER = re.compile(rb"(?im)^([a-z-]+)[ \t]*:[ \t]*([^\r\n]*)")
JOIN_TIMEOUT_S = 1.0


class ProxyFailure(Exception):
    """Why a proxy has ended, in words for users."""


@dataclass(frozen=True)
class _Message:
    head: bytes
    body: bytes = b""

    @property
    def first_line(self) -> list[str]:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    def headers(self, name: str) -> list[str]:
        return [
            value.decode("latin-1").strip()
            for key, value in _HEADER.findall(self.head)
            if key.lower() == name.encode()
        ]

    def header(self, name: str) -> str:
        return next(iter(self.headers(name)), "")


class RtspProxy:
    """Passes on an RTSP session, in a thread of its own, between :meth:`start` and :meth:`stop`."""

    def __init__(self, address: SourceAddress, options: SourceOptions) -> None:
        url = urlsplit(address.location)
        self._options = options
        self._host = url.hostname or ""
        self._target = address.host_address or self._host
        self._port = url.port or PORTS[url.scheme.lower()]
        self._tls = ssl.create_default_context() if url.scheme.lower() == "rtsps" else None
        host = f"[{self._host}]" if ":" in self._host else self._host
        port = f":{url.port}" if url.port else ""
        self._remote = f"{url.scheme.lower()}://{host}{port}"
        self._path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._authenticator: Authenticator | None = None
        if url.username is not None:
            credentials = Credentials(unquote(url.username), unquote(url.password or ""))
            self._authenticator = Authenticator(credentials)
        self._requests: OrderedDict[str, tuple[_Message, bool]] = OrderedDict()
        """Unanswered requests by their numbers, and whether they had a password."""
        self._local = ""
        self._is_set_up = False
        self._writing = asyncio.Lock()
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="rtsp-proxy", daemon=True)
        self._is_stopped = False
        self.failure: str | None = None
        """Why the proxy ended, if it did so by itself."""

    def start(self) -> str:
        """Listen, and return the URL for FFmpeg. Its path is secret: others on this machine must
        not see the camera through the proxy."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._listener.setblocking(False)
        port = self._listener.getsockname()[1]
        self._local = f"rtsp://127.0.0.1:{port}/{secrets.token_urlsafe(24)}"
        self._task = self._loop.create_task(self._serve(self._listener))
        self._thread.start()
        if self._is_stopped:
            self.stop()
        return self._local + self._path

    def stop(self) -> None:
        """End both connections, and FFmpeg's waiting with them. It does not block."""
        self._is_stopped = True
        task = self._task
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(task.cancel)

    def join(self) -> None:
        """Wait until the thread has ended, after :meth:`stop`."""
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIMEOUT_S)
        else:
            self._loop.close()

    def _run(self) -> None:
        assert self._task is not None
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.failure = describe_failure(error)
        finally:
            self._loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(listener.close)
            # The reason must be known before FFmpeg's connection ends.
            try:
                camera = await stack.enter_async_context(_closing(self._connect()))
                player = await stack.enter_async_context(_closing(self._accept(listener)))
                await until_first(self._send_requests(player, camera), self._answer(camera, player))
            except ProxyFailure as failure:
                self.failure = str(failure)
            except TimeoutError:
                self.failure = f"no answer for {self._options.read_timeout_s:g} s"
            except (OSError, EOFError) as error:
                is_end = isinstance(error, EOFError)
                self.failure = "the stream ended" if is_end else describe_failure(error)

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._options.open_timeout_s):
                reader, writer = await asyncio.open_connection(
                    self._target,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                    limit=MAX_HEAD_BYTES,
                )
        except TimeoutError:
            limit = self._options.open_timeout_s
            raise ProxyFailure(f"no connection within {limit:g} s") from None
        return _Connection(reader, writer)

    async def _accept(self, listener: socket.socket) -> _Connection:
        async with asyncio.timeout(self._options.open_timeout_s):
            accepted, _ = await self._loop.sock_accept(listener)
        listener.close()
        reader, writer = await asyncio.open_connection(sock=accepted, limit=MAX_HEAD_BYTES)
        return _Connection(reader, writer)

    async def _send_requests(self, player: _Connection, camera: _Connection) -> None:
        """Pass on FFmpeg's requests, with the camera's own URL and the password."""
        is_ffmpeg = False
        while True:
            message = await player.read()
            if isinstance(message, bytes) and is_ffmpeg:
                await self._write(camera, message)
                continue
            is_ffmpeg = is_ffmpeg or self._is_from_ffmpeg(message)
            if isinstance(message, bytes) or not is_ffmpeg:
                raise ProxyFailure("another program has connected in place of FFmpeg")
            self._check_order(message)
            head = message.head.replace(self._local.encode(), self._remote.encode())
            await self._send(camera, _Message(head, message.body))

    def _check_order(self, message: _Message) -> None:
        """Raise ``ProxyFailure`` if FFmpeg plays a session in which it has set up no stream."""
        method = message.first_line[0]
        self._is_set_up = self._is_set_up or method == "SETUP"
        if method == "PLAY" and not self._is_set_up:
            raise ProxyFailure("no video")

    def _is_from_ffmpeg(self, message: _Message | bytes) -> bool:
        """Whether a first message knows the secret path."""
        return isinstance(message, _Message) and self._local.encode() in message.head

    async def _send(self, camera: _Connection, request: _Message) -> None:
        method, uri = (*request.first_line, "", "")[:2]
        header = self._authenticator and self._authenticator.authorize(method, uri)
        self._requests[request.header("cseq")] = (request, header is not None)
        while len(self._requests) > MAX_REQUESTS:
            self._requests.popitem(last=False)
        head = request.head
        if header is not None:
            head = head.removesuffix(b"\r\n") + f"Authorization: {header}\r\n\r\n".encode()
        await self._write(camera, head + request.body)

    async def _write(self, camera: _Connection, data: bytes) -> None:
        async with self._writing:
            await camera.write(data)

    async def _answer(self, camera: _Connection, player: _Connection) -> None:
        """Pass on what the camera sends: answers and media."""
        while True:
            async with asyncio.timeout(self._options.read_timeout_s):
                message = await camera.read()
            if isinstance(message, bytes):
                await player.write(message)
            elif not await self._is_repeated(message, camera):
                await player.write(message.head + message.body)

    async def _is_repeated(self, answer: _Message, camera: _Connection) -> bool:
        """Send a request again, with a password, if its answer asks for one.

        Raises ``ProxyFailure`` for answers that end the session.
        """
        first = answer.first_line
        if not first[0].startswith("RTSP/"):
            return False  # a request of the camera's own
        status = first[1] if len(first) > 1 else ""
        request, had_password = self._requests.pop(answer.header("cseq"), (None, False))
        if status.startswith("3"):
            raise ProxyFailure(f"{status}: it redirects elsewhere, which isn't followed")
        if status == "401":
            challenges = answer.headers("www-authenticate")
            is_stale = any("stale=true" in text.lower().replace('"', "") for text in challenges)
            if self._authenticator is None:
                raise ProxyFailure("401: a user name and password is needed")
            if request is None or (had_password and not is_stale):
                raise ProxyFailure("401: the user name or password is wrong")
            if not self._authenticator.take(challenges):
                raise ProxyFailure("401: it asks for a password in an unknown way")
            await self._send(camera, request)
            return True
        if status.startswith(("4", "5")) and request and request.first_line[0] in _NEEDED:
            raise ProxyFailure(f"{status} {' '.join(first[2:])}".strip())
        return False


_NEEDED = ("DESCRIBE", "SETUP", "PLAY")
"""Requests without which nothing can be seen."""


class _Connection:
    """Reads whole messages from one side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> _Message | bytes:
        """Return a request or an answer, or interleaved media as they are.

        Raises ``EOFError``, ``ProxyFailure`` and ``OSError``.
        """
        first = await self._reader.readexactly(1)
        while first in b"\r\n":  # between messages
            first = await self._reader.readexactly(1)
        if first == _MEDIA:
            header = await self._reader.readexactly(3)
            return first + header + await self._reader.readexactly(int.from_bytes(header[1:]))
        try:
            head = first + await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise ProxyFailure("it doesn't speak RTSP") from None
        message = _Message(head)
        length = message.header("content-length")
        count = int(length) if length.isdecimal() else 0
        if count > MAX_BODY_BYTES:
            raise ProxyFailure(f"an answer of {count} bytes")
        return _Message(head, await self._reader.readexactly(count))

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def _closing(opening: Any) -> Any:
    connection = await opening
    try:
        yield connection
    finally:
        connection.close()
        await asyncio.sleep(0)  # lets the transport close its socket
