"""Reads the bodies of requests, within limits on their size and on the time that they take.

A body is read as a whole before its request takes a place among those in flight. What a stranger
can hold is therefore a place among the unfinished bodies. If these run out, the one that has
arrived for the longest time gives way: a client that sends its body at once is never shut out by
others that don't.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from raylens.api.clients import client_of
from raylens.api.json_limits import check_json
from raylens.api.paths import route_path
from raylens.core.config import RequestLimits
from raylens.core.errors import InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedMedia
from raylens.net.unpack import ENCODINGS, Unpacker

TIMEOUT_HEADER = "X-Request-Timeout"
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?")
_UNCHANGED = ("", "identity")
MAX_UPLOADS = 64
"""Uploads that one replica receives at a time."""
MAX_UPLOADS_PER_CLIENT = 32
_FORM = "multipart/form-data"
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


def parse_timeout(header: str | None, limit: float) -> float:
    """Return the seconds of an ``X-Request-Timeout``; without one, ``limit``.

    Raises ``InvalidRequest``.
    """
    if header is None:
        return limit
    seconds = float(header) if _NUMBER.fullmatch(header) else math.nan
    if not 0 < seconds <= limit:
        raise InvalidRequest(
            f"{TIMEOUT_HEADER}: {header[:32]!r}; expected a number of seconds over 0;"
            f" the limit is {limit:g}",
            TIMEOUT_HEADER,
            limit,
        )
    return seconds


class Disconnected(Exception):
    """The client has closed the connection before its body was complete."""


class BodyReader:
    """Reads bodies of at most ``limits.max_body_bytes``, in the seconds of ``X-Request-Timeout`` or
    at most ``max_seconds``.

    Bodies with the Content-Encoding gzip or deflate are unpacked, within the same limit. The paths
    of ``uploads`` have other limits in bytes, and their bodies are passed on as they arrive.
    """

    def __init__(
        self,
        limits: RequestLimits,
        max_seconds: float,
        unfinished: UnfinishedBodies,
        unfinished_uploads: UnfinishedBodies,
        uploads: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._limits = limits
        self._max_seconds = max_seconds
        self._uploads = uploads
        self._unfinished = unfinished
        self._unfinished_uploads = unfinished_uploads

    def is_upload(self, scope: Scope) -> bool:
        """Whether a request's body is passed on as it arrives."""
        return scope["method"] == "POST" and route_path(scope) in self._uploads

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive) -> AsyncIterator[tuple[Scope, Receive]]:
        """Yield a request's scope and ``receive`` with its body, which is complete and unpacked.

        Raises ``UnsupportedMedia``, ``PayloadTooLarge``, ``InvalidRequest``, ``RequestTimeout`` and
        ``Disconnected``. For an upload, the ``receive`` raises them as an ``HTTPException``.
        """
        headers = Headers(scope=scope)
        has_body = "content-length" in headers or "transfer-encoding" in headers
        if not has_body or scope["method"] not in _WITH_BODY:
            yield scope, receive
            return
        is_upload = self.is_upload(scope)
        max_bytes = self._limits.max_body_bytes
        if is_upload:
            max_bytes = self._uploads[route_path(scope)]
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in (*ENCODINGS, *_UNCHANGED):
            message = f"Content-Encoding: {encoding[:32]!r}; expected gzip, deflate or none"
            raise UnsupportedMedia(message, "Content-Encoding")
        content_length = headers.get("content-length", "")
        if content_length.isdecimal() and int(content_length[:32]) > max_bytes:
            raise _too_large(content_length[:32], max_bytes)
        seconds = parse_timeout(headers.get(TIMEOUT_HEADER), self._max_seconds)
        body = _Body(max_bytes, seconds, asyncio.get_running_loop().time())
        client = client_of(scope.get("client"))
        unpacker = Unpacker(encoding, max_bytes) if encoding in ENCODINGS else None
        if unpacker is not None:
            scope = _without_encoding(scope)
        if is_upload:
            body.unpacker = unpacker
            with self._unfinished_uploads.enter(client) as place:
                yield scope, self._pass_on(body, place, receive)
            return
        content = await self._read_whole(body, receive, client)
        if unpacker is not None:
            content = await asyncio.to_thread(_unpack, unpacker, content, max_bytes)
        if not headers.get("content-type", "").lower().startswith(_FORM):
            check_json(content, self._limits.max_json_bytes, self._limits.max_json_values)
        yield scope, _replay(content, receive)

    async def _read_whole(self, body: _Body, receive: Receive, client: str) -> bytes:
        parts = []
        with self._unfinished.enter(client) as place:
            while not body.is_complete:
                parts.append(body.add(await self._receive_in_time(body, place, receive)))
                if not body.is_complete:
                    place.grow(len(parts[-1]))
        return b"".join(parts)

    async def _receive_in_time(self, body: _Body, place: Place, receive: Receive) -> Message:
        """Raises ``RequestTimeout`` if the next message is late, or if the place is lost."""
        if place.is_lost:
            raise _too_slow()
        try:
            async with asyncio.timeout_at(self._next_part_at(body)) as place.timeout:
                return await receive()
        except TimeoutError:
            raise (_too_slow() if place.is_lost else self._explain_timeout(body)) from None

    def _next_part_at(self, body: _Body) -> float:
        """Return when the next part of a body must be there, in the event loop's time."""
        limits = self._limits
        in_all_s = limits.body_patience_s + body.received_bytes / limits.min_body_bytes_per_s
        return min(
            body.last_at + limits.body_patience_s,
            body.started + min(body.max_seconds, in_all_s),
        )

    def _explain_timeout(self, body: _Body) -> RequestTimeout:
        limits = self._limits
        now = asyncio.get_running_loop().time()
        seconds = now - body.started
        if now - body.last_at >= limits.body_patience_s or not body.received_bytes:
            message = f"no data received; the limit is {limits.body_patience_s:g} seconds"
        elif seconds >= body.max_seconds:
            message = f"not complete; the limit is {body.max_seconds:g} seconds"
        else:
            rate = body.received_bytes / seconds
            limit = limits.min_body_bytes_per_s
            message = f"{rate:.0f} bytes a second; the limit is {limit}"
        return RequestTimeout(f"body: {message}", "body")

    def _pass_on(self, body: _Body, place: Place, receive: Receive) -> Receive:
        """Return a ``receive`` that checks the parts of a body as they arrive."""

        async def receive_in_time() -> Message:
            if body.is_complete:  # only the client's disconnect follows, however long it takes
                return await receive()
            try:
                message = await self._receive_in_time(body, place, receive)
                if message["type"] != "http.request":
                    return message
                message = {**message, "body": body.add(message)}
            except (InvalidRequest, PayloadTooLarge, RequestTimeout) as error:
                raise HTTPException(error.http_status, error.message) from None
            if body.is_complete:
                place.leave()
            return message

        return receive_in_time


@dataclass
class _Body:
    """A body that arrives."""

    max_bytes: int
    max_seconds: float
    started: float
    """When it began, in the event loop's time."""
    unpacker: Unpacker | None = None
    """Unpacks its parts as they arrive."""
    last_at: float = 0.0
    """When its last part came."""
    received_bytes: int = 0
    """As they were sent."""
    unpacked_bytes: int = 0
    is_complete: bool = False

    def __post_init__(self) -> None:
        self.last_at = self.started

    def add(self, message: Message) -> bytes:
        """Return the unpacked data of a message.

        Raises ``PayloadTooLarge``, ``InvalidRequest`` for damaged data, and ``Disconnected``.
        """
        if message["type"] != "http.request":
            raise Disconnected
        data: bytes = message.get("body", b"")
        self.is_complete = not message.get("more_body", False)
        self.received_bytes += len(data)
        self.last_at = asyncio.get_running_loop().time()
        if self.unpacker is not None:
            try:
                data = self.unpacker.unpack(data, self.is_complete)
            except ValueError as error:
                raise InvalidRequest(f"body: {error}", "body") from None
        self.unpacked_bytes += len(data)
        if self.unpacked_bytes > self.max_bytes:
            raise _too_large(f"over {self.max_bytes}", self.max_bytes)
        return data


@dataclass(eq=False)
class Place:
    """The place of an unfinished body."""

    client: str
    bodies: UnfinishedBodies
    on_loss: Callable[[], object] = lambda: None
    timeout: asyncio.Timeout | None = None
    """Of the message that it waits for."""
    is_lost: bool = False
    received_bytes: int = 0

    def grow(self, count: int) -> None:
        """Note that a part has come. The body may lose its place for it."""
        if self.is_lost:  # while the part was on its way
            return
        self.received_bytes += count
        self.bodies.make_room(count)

    def resize(self, count: int) -> None:
        """Note how many bytes are held by now. The place may be lost for it."""
        self.grow(count - self.received_bytes)

    def leave(self) -> None:
        self.bodies.remove(self)

    def lose(self) -> None:
        """End the body for the sake of others."""
        self.is_lost = True
        self.leave()
        self.on_loss()
        if self.timeout is not None:
            with suppress(RuntimeError):  # it has just ended anyway
                self.timeout.reschedule(asyncio.get_running_loop().time())


class UnfinishedBodies:
    """The bodies that arrive, oldest first, of each client; and what sessions hold."""

    def __init__(
        self,
        limit: float = math.inf,
        limit_per_client: float = math.inf,
        max_bytes: float = math.inf,
    ) -> None:
        self.limit = limit
        self.limit_per_client = limit_per_client
        self.max_bytes = max_bytes
        self._bytes = 0
        self._count = 0
        self._clients: dict[str, dict[Place, None]] = {}

    @contextmanager
    def enter(self, client: str) -> Iterator[Place]:
        """Hold a place within the context, as :meth:`take` does."""
        place = self.take(client)
        try:
            yield place
        finally:
            place.leave()

    def take(self, client: str, on_loss: Callable[[], object] = lambda: None) -> Place:
        """Take a place, which its owner leaves. If there is none left, another body loses its own:
        the oldest of the same client, or of the client that holds the most."""
        own = self._clients.get(client, {})
        if len(own) >= self.limit_per_client:
            self._oldest_of(client).lose()
        elif self._count >= self.limit:
            self._oldest_of(max(self._clients, key=lambda name: len(self._clients[name]))).lose()
        place = Place(client, self, on_loss)
        self._clients.setdefault(client, {})[place] = None
        self._count += 1
        return place

    def make_room(self, count: int) -> None:
        """Count the bytes of a part. If all bodies hold too many, the client that holds the most
        loses its oldest ones."""
        self._bytes += count
        while self._bytes > self.max_bytes and self._clients:
            self._oldest_of(max(self._clients, key=self._bytes_of)).lose()

    def remove(self, place: Place) -> None:
        places = self._clients.get(place.client, {})
        if place not in places:
            return
        del places[place]
        self._count -= 1
        self._bytes -= place.received_bytes
        if not places:
            del self._clients[place.client]

    def _oldest_of(self, client: str) -> Place:
        return next(iter(self._clients[client]))

    def _bytes_of(self, client: str) -> int:
        return sum(place.received_bytes for place in self._clients[client])


def _unpack(unpacker: Unpacker, content: bytes, max_bytes: int) -> bytes:
    """Return an unpacked body. Raises ``InvalidRequest`` and ``PayloadTooLarge``."""
    try:
        data = unpacker.unpack(content, is_last=True)
    except ValueError as error:
        raise InvalidRequest(f"body: {error}", "body") from None
    if len(data) > max_bytes:
        raise _too_large(f"over {max_bytes}", max_bytes)
    return data


def _replay(content: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that begins with a complete body."""
    is_sent = False

    async def receive_whole() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    return receive_whole


def _without_encoding(scope: Scope) -> Scope:
    """Return the scope of a request whose body is unpacked."""
    gone = (b"content-encoding", b"content-length")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in gone]
    return {**scope, "headers": headers}


def _too_large(actual: str, max_bytes: int) -> PayloadTooLarge:
    message = f"body: {actual} bytes; the limit is {max_bytes} bytes"
    return PayloadTooLarge(message, "body", max_bytes, actual)


def _too_slow() -> RequestTimeout:
    return RequestTimeout("body: too slow, while others wait for its place", "body")
