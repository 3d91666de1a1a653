"""ASGI middleware for every request: its id, the limit on concurrency, the limits on its body."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.errors import error_response
from raylens.api.paths import route_path
from raylens.core.errors import InvalidRequest, Overloaded, PayloadTooLarge, UnsupportedMedia
from raylens.core.logs import current_request_id
from raylens.net.unpack import ENCODINGS, Unpacker

REQUEST_ID_HEADER = "X-Request-ID"
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_WRITES = ("POST", "PUT", "DELETE")
_INVALID_ID = InvalidRequest(
    f"{REQUEST_ID_HEADER}: expected 1 to 128 visible ASCII characters", REQUEST_ID_HEADER, 128
)


class RequestIdMiddleware:
    """Reads the request's id from ``X-Request-ID``, or generates one, and notes the time of
    arrival.

    Every log line carries the id. With ``echo``, the answer's header carries it too; turn that off
    behind Serve's proxy, which sets the header on every answer.
    """

    def __init__(self, app: ASGIApp, echo: bool = True) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID_HEADER) or uuid.uuid4().hex
        if not _SAFE_ID.fullmatch(request_id):
            await error_response(route_path(scope), _INVALID_ID)(scope, receive, send)
            return
        current_request_id.set(request_id)
        scope.setdefault("state", {}).update(request_id=request_id, received_at=time.time())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id if self._echo else send)


class ConcurrencyLimitMiddleware:
    """Refuses a POST while ``limit`` POSTs are in flight; other methods always pass.

    Requests whose path begins with one of ``queue_paths`` have limits of their own,
    ``max_queue_reads`` and, for those that change something, ``max_queue_writes``: if the job queue
    is slow or away, those that wait for it take no place of the rest. Event streams, whose path
    ends with ``/events``, have a limit elsewhere.

    Serve's own limit on the ingress answers in plain text and refuses health checks too, so it is
    set above these limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        max_queue_writes: int = 1,
        max_queue_reads: int = 1,
        queue_paths: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._requests = _InFlight(limit)
        self._queue_writes = _InFlight(max_queue_writes)
        self._queue_reads = _InFlight(max_queue_reads)
        self._queue_paths = queue_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        in_flight = self._find_limit(scope)
        if in_flight is None:
            await self._app(scope, receive, send)
            return
        if in_flight.count >= in_flight.limit:
            await error_response(route_path(scope), in_flight.error())(scope, receive, send)
            return
        in_flight.count += 1
        try:
            await self._app(scope, receive, send)
        finally:
            in_flight.count -= 1

    def _find_limit(self, scope: Scope) -> _InFlight | None:
        if scope["type"] != "http":
            return None
        method, path = scope["method"], route_path(scope)
        if not path.startswith(self._queue_paths):
            return self._requests if method == "POST" else None
        if path.endswith("/events"):
            return None
        return self._queue_writes if method in _WRITES else self._queue_reads


_UNCHANGED = ("", "identity")


@dataclass
class _InFlight:
    limit: int
    count: int = 0

    def error(self) -> Overloaded:
        message = f"{self.count} requests are in flight; the limit is {self.limit}"
        return Overloaded(message, None, self.limit, self.count, 1)


class BodyMiddleware:
    """Refuses a body over ``max_bytes`` with 413, and a body that stalls for ``timeout_s`` seconds
    with 408.

    Unpacks bodies with the Content-Encoding gzip or deflate, within the same limit, and refuses
    others with 415. ``exceptions`` holds other limits for some paths.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        timeout_s: float,
        exceptions: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._exceptions.get(route_path(scope), self._max_bytes)
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in (*ENCODINGS, *_UNCHANGED):
            message = f"Content-Encoding: {encoding[:32]!r}; expected gzip, deflate or none"
            unsupported = UnsupportedMedia(message, "Content-Encoding")
            await error_response(route_path(scope), unsupported)(scope, receive, send)
            return
        content_length = headers.get("content-length", "")
        if content_length.isdecimal() and int(content_length) > max_bytes:
            error = _too_large(content_length[:32], max_bytes)
            await error_response(route_path(scope), error)(scope, receive, send)
            return
        received_bytes = 0
        is_complete = False
        unpacker = Unpacker(encoding, max_bytes) if encoding in ENCODINGS else None
        if unpacker is not None:
            scope = _without_encoding(scope)

        async def receive_limited() -> Message:
            nonlocal received_bytes, is_complete
            if is_complete:  # only the client's disconnect follows, however long it takes
                return await receive()
            message = await self._receive_in_time(receive)
            if unpacker is not None and message["type"] == "http.request":
                message = {**message, "body": _unpack(unpacker, message)}
            received_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if received_bytes > max_bytes:
                raise HTTPException(413, _too_large(f"over {max_bytes}", max_bytes).message)
            return message

        await self._app(scope, receive_limited, send)

    async def _receive_in_time(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"body: no data received; the limit is {self._timeout_s:g} seconds"
            ) from None


def _unpack(unpacker: Unpacker, message: Message) -> bytes:
    """Return the unpacked data of a message. Raises ``HTTPException`` if it is damaged."""
    is_last = not message.get("more_body", False)
    try:
        return unpacker.unpack(message.get("body", b""), is_last)
    except ValueError as error:
        raise HTTPException(400, f"body: {error}") from None


def _without_encoding(scope: Scope) -> Scope:
    """Return the scope of a request whose body is unpacked."""
    gone = (b"content-encoding", b"content-length")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in gone]
    return {**scope, "headers": headers}


def _too_large(actual: str, max_bytes: int) -> PayloadTooLarge:
    message = f"body: {actual} bytes; the limit is {max_bytes} bytes"
    return PayloadTooLarge(message, "body", max_bytes, actual)
