"""Limits on connections and on the heads of requests, which Uvicorn doesn't have, refusals that are
repeated at once, and requests that are repeated if their replica dies.

They hold in the process of Serve's proxy, which calls :func:`install` before it starts Uvicorn:
``raylens run`` names it in ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import uvicorn.config
from httptools import parse_url
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deployments.draining import machine_drain, proxy_draining
from raylens.api.clients import client_of
from raylens.api.draining import DrainMiddleware
from raylens.api.proxy_retries import RetryMiddleware
from raylens.api.refusals import RefusalMiddleware

MAX_HEAD_BYTES = 64 * 1024
"""Of the target and the headers of a request."""
MAX_HEADERS = 200
HEAD_TIMEOUT_S = 15.0
"""Longest time from the first byte of a request, or from a connection, to the end of its head."""
LINGER_S = 1.0
"""How long a refused connection may go on to send, in seconds."""
MAX_IDLE = 1024
"""Connections without a request. If there are more, the oldest that never sent one is closed, or
else the oldest of all: of the same address if that holds more than :data:`MAX_IDLE_PER_ADDRESS`, or
else of the one that holds the most."""
MAX_IDLE_PER_ADDRESS = 256
_ADVICE_TO_SERVE = frozenset({b"serve_multiplexed_model_id", b"x_session_id"})
"""Headers that Serve reads, and fails on if they are not UTF-8."""


def install() -> list[Middleware]:
    """Have Uvicorn use :class:`BoundedProtocol` in this process. Returns the proxy's middleware."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = BoundedProtocol  # type: ignore[assignment]
    draining = Middleware(DrainMiddleware, find_drain=machine_drain, proxy_drains=proxy_draining)
    # Serve puts each around those before it.
    return [Middleware(RefusalMiddleware), Middleware(RetryMiddleware), draining]


class BoundedProtocol(HttpToolsProtocol):
    """An HTTP connection whose heads are limited in bytes and in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._refusal: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = False
        """Whether a head has begun, and not ended."""
        self._head_bytes = 0
        """Of its parts that are complete."""
        self._raw_bytes = 0
        """Of data in its middle."""
        self.has_answered = False
        self._await_request()
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        if self._awaits_request:
            self._start_timer()  # for empty lines, too, which may come before a request
        had_begun = self._is_in_head
        super().data_received(data)
        if had_begun and self._is_in_head:
            self._count(len(data))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = self._raw_bytes = 0
        self._start_timer()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._check(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._end_head()
        refusal = self._find_fault()
        if refusal is not None:
            self._refusal = refusal
            raise ValueError(refusal[1])  # httptools stops, and Uvicorn answers
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        has_next = bool(self.pipeline)
        super().on_response_complete()
        self.has_answered = True
        if not self.transport.is_closing() and not has_next:
            self._await_request()

    def handle_websocket_upgrade(self) -> None:
        self._end_head()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what can't be parsed, or what :meth:`on_headers_complete` refuses."""
        self._end_head()
        status, message = self._refusal or (HTTPStatus.BAD_REQUEST, msg)
        self._refusal = status, message
        body = json.dumps({"detail": message}).encode()
        headers = (
            b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        if self.transport.is_closing():
            return
        self.transport.write(STATUS_LINE[status] + headers + body)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or not self.transport.can_write_eof():
            self.transport.close()
            return
        # Closing at once, while the client still sends, would lose the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _find_fault(self) -> tuple[int, str] | None:
        """Return why a complete head is refused, as status and message; None if it isn't."""
        hosts = [value for name, value in self.headers if name == b"host"]
        target = parse_url(self.url).host if b"://" in self.url else None
        if target is not None and [target.lower()] != [_name_of(host) for host in hosts]:
            return HTTPStatus.BAD_REQUEST, "Host: it differs from the host of the request's target"
        headers = (header for header in self.headers if not _confuses_serve(*header))
        self.headers[:] = [_without_strange_id(*header) for header in headers]
        return None

    def _check(self, more_bytes: int) -> None:
        """Count a part of a head. Raises ``ValueError`` if it is too large: httptools stops then,
        and Uvicorn answers."""
        self._head_bytes += more_bytes
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refusal = _head_too_large()
            raise ValueError(self._refusal[1])

    def _count(self, more_bytes: int) -> None:
        """Count data in the middle of a head, which httptools keeps until a header is complete."""
        self._raw_bytes += more_bytes
        if self._raw_bytes > MAX_HEAD_BYTES:
            self._refusal = _head_too_large()
            self.send_400_response(self._refusal[1])

    def _await_request(self) -> None:
        """Count the connection as idle. If no byte follows, Uvicorn closes it after a while."""
        self._awaits_request = True
        IDLE.add(self)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_timeout)

    def _end_head(self) -> None:
        self._is_in_head = False
        self._awaits_request = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        IDLE.remove(self)

    def _on_timeout(self) -> None:
        if self._is_in_head:
            message = f"the head of the request is not complete after {HEAD_TIMEOUT_S:g} seconds"
            self._refusal = HTTPStatus.REQUEST_TIMEOUT, message
            self.send_400_response(message)
        else:
            self.transport.close()

    @property
    def address(self) -> str:
        return client_of(self.client)


class IdleConnections:
    """The connections that have no request, of each address, oldest first."""

    def __init__(self) -> None:
        self._addresses: dict[str, dict[BoundedProtocol, None]] = {}
        self._count = 0

    def add(self, connection: BoundedProtocol) -> None:
        """Add a connection, and close another one if there are too many."""
        own = self._addresses.setdefault(connection.address, {})
        if connection in own:
            return
        own[connection] = None
        self._count += 1
        if len(own) > MAX_IDLE_PER_ADDRESS:
            self._close_one(own, connection)
        elif self._count > MAX_IDLE:
            self._close_one(max(self._addresses.values(), key=len), connection)

    def _close_one(self, connections: dict[BoundedProtocol, None], newest: BoundedProtocol) -> None:
        # Whoever keeps a connection between its requests should not lose it to those without any.
        silent = (other for other in connections if not other.has_answered and other is not newest)
        closed = next(silent, None) or next(iter(connections))
        self.remove(closed)
        closed.transport.close()

    def remove(self, connection: BoundedProtocol) -> None:
        own = self._addresses.get(connection.address, {})
        if connection not in own:
            return
        del own[connection]
        self._count -= 1
        if not own:
            del self._addresses[connection.address]


IDLE = IdleConnections()
"""Those of this process."""


def _head_too_large() -> tuple[int, str]:
    limits = f"{MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers"
    return (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        f"the head of the request is too large; the limit is {limits}",
    )


def _name_of(host: bytes) -> bytes:
    """Return a Host without its port, in lower case."""
    return parse_url(b"http://" + host).host.lower() if host else b""


def _without_strange_id(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a header that Serve can read, and the application still refuses if it is wrong."""
    if name == b"x-request-id" and not value.isascii():
        return name, b"not ASCII"
    return name, value


def _confuses_serve(name: bytes, value: bytes) -> bool:
    if name.replace(b"-", b"_") not in _ADVICE_TO_SERVE:
        return False
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False
