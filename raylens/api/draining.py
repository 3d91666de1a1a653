"""What Serve's proxy does while a server, or the proxy itself, drains."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api import sse
from raylens.api.errors import dialect_path, error_response
from raylens.api.middleware import REQUEST_ID_HEADER, SAFE_ID
from raylens.core.draining import Draining
from raylens.core.errors import Overloaded

RETRY_AFTER_S = 10.0
BODY_S = 1.0
"""How long the body of a refused request is read. To close a connection whose client still sends
would lose the answer."""
READY = ("/ready", "/-/healthz")
"""Ends of paths that tell a load balancer whether to send requests."""
ALIVE = ("/health", "/live")
EVENTS = "/events"
SERVICE_RESTART = 1012
"""The code that closes a WebSocket whose client should open another one."""
CLOSE_S = 5.0
"""How long an application may take to end once its WebSocket is closed."""
PATIENCE_S = 600.0
"""How long one may take to end the answer that runs, unless the drain ends before."""
DRAINS = "raylens.drains"
"""The key of an ASGI message that tells an application of a drain. It isn't part of what clients
send, so none can forge it."""
SECONDS_LEFT = "seconds_left"
"""The key of a drain's time until the server ends, whatever is left."""
Drain = Mapping[str, Any]
"""What else ``/ready`` shows of a server that drains."""


class DrainMiddleware:
    """Refuses new requests while the server drains, and hands over streams of events.

    ``find_drain`` returns None while the server doesn't drain. If it does, a new request gets 503
    and its connection is closed; what has begun is answered. ``/health`` and ``/live`` go on to
    answer, and ``/ready`` tells how many requests are left.

    ``proxy_drains`` tells whether Serve drains this proxy, as on a node that leaves the cluster.
    Then requests are still answered, and each connection is closed after its answer, so that
    clients find another proxy.

    In both cases a stream of events ends, and a WebSocket after the answer that runs, and the
    client reconnects elsewhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        find_drain: Callable[[], Drain | None] = lambda: None,
        proxy_drains: Callable[[ASGIApp], Callable[[], bool]] = lambda app: lambda: False,
    ) -> None:
        self._app = app
        self._find_drain = find_drain
        self._proxy_drains = proxy_drains(app)
        self._draining = Draining(lambda: find_drain() is not None or self._proxy_drains())
        self._web_sockets = WebSocketDrainMiddleware(app, self._draining, self._patience_s)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _ends(scope, ALIVE):
            await self._app(scope, receive, send)
            return
        drain = self._find_drain()
        if drain is not None:
            await self._refuse(drain, scope, receive, send)
        elif _ends(scope, READY):
            await self._app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    def _patience_s(self) -> float:
        drain = self._find_drain() or {}
        return float(drain.get(SECONDS_LEFT, PATIENCE_S)) - CLOSE_S

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining.has_begun:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        self._in_flight += 1
        try:
            if scope["type"] == "http" and _ends(scope, (EVENTS,)):
                await self._stream(scope, receive, send_and_close)
            else:
                await self._web_sockets(scope, receive, send_and_close)
        finally:
            self._in_flight -= 1

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for events, and end the answer early if this proxy drains."""
        stream = _EventStream(send)
        await _run_until(self._app(scope, receive, stream.send), self._end(stream))

    async def _end(self, stream: _EventStream) -> None:
        await self._draining.wait()
        await stream.begun.wait()
        await stream.hand_over()

    async def _refuse(self, drain: Drain, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": SERVICE_RESTART})
            return
        if _ends(scope, READY):
            body = {"status": "draining", **drain, "requests": self._in_flight}
            answer: ASGIApp = JSONResponse(body, 503)
        else:
            await _read_body(scope, receive)
            message = "this server is about to stop and takes no new requests"
            error = Overloaded(message, retry_after=RETRY_AFTER_S)
            answer = error_response(dialect_path(scope["path"]), error)
        await answer(scope, receive, _closing(scope, send))


class WebSocketDrainMiddleware:
    """Tells an application of a drain in a message of each of its WebSockets; everything else
    passes.

    What the client sends after that is dropped. The application ends the answer that runs, and
    closes the connection. If it hasn't after ``patience_s`` seconds, this middleware does.
    """

    def __init__(
        self, app: ASGIApp, draining: Draining, patience_s: Callable[[], float] = lambda: PATIENCE_S
    ) -> None:
        self._app = app
        self._draining = draining
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        socket = _WebSocket(receive, send)
        try:
            await _run_until(self._app(scope, socket.receive, socket.send), self._end(socket))
        finally:
            socket.stop_receiving()

    async def _end(self, socket: _WebSocket) -> None:
        await self._draining.wait()
        await socket.accepted.wait()
        socket.tell_of_drain()
        await asyncio.sleep(self._patience_s())
        with suppress(Exception):  # the client has gone
            await socket.close()
        await asyncio.sleep(CLOSE_S)  # the server tells the application, which ends by itself


class _WebSocket:
    """Passes on the messages of a connection until the server drains."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_closed = False
        self._drain: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._is_told = False
        self._receiving: asyncio.Future[Message] | None = None
        """It outlives a call of :meth:`receive` that is canceled."""
        self.accepted = asyncio.Event()

    def tell_of_drain(self) -> None:
        self._drain.set_result({"type": "websocket.receive", "text": "", DRAINS: True})

    async def receive(self) -> Message:
        """Return the next message; after that of the drain, only the client's disconnect."""
        while True:
            if self._receiving is None:
                self._receiving = asyncio.ensure_future(self._receive())
            awaited = {self._receiving} if self._is_told else {self._receiving, self._drain}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if self._drain.done() and not self._is_told:
                self._is_told = True
                return self._drain.result()
            received, self._receiving = self._receiving, None
            message = received.result()
            if not self._is_told or message["type"] != "websocket.receive":
                return message

    def stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()

    async def send(self, message: Message) -> None:
        if self._is_closed:
            return
        self._is_closed = message["type"] == "websocket.close"
        await self._send(message)
        if message["type"] == "websocket.accept":
            self.accepted.set()

    async def close(self) -> None:
        await self.send({"type": "websocket.close", "code": SERVICE_RESTART})


async def _run_until(answer: Awaitable[None], end: Coroutine[None, None, None]) -> None:
    """Run an application, and cancel it if ``end`` returns before."""
    answering = asyncio.ensure_future(answer)
    ending = asyncio.create_task(end)
    try:
        await asyncio.wait({answering, ending}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    finally:
        for task in (answering, ending):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


class _EventStream:
    """Passes on the messages of an answer, and can end it between two events."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_stream = False
        self._has_ended = False
        self.begun = asyncio.Event()
        """Set once the client has got an event."""

    async def send(self, message: Message) -> None:
        if self._has_ended:
            return
        if message["type"] == "http.response.start":
            content_type = Headers(raw=list(message.get("headers", ()))).get("content-type", "")
            self._is_stream = content_type.startswith("text/event-stream")
        await self._send(message)
        if self._is_stream and message["type"] == "http.response.body":
            self.begun.set()

    async def hand_over(self) -> None:
        self._has_ended = True
        body = sse.handover().encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _ends(scope: Scope, paths: tuple[str, ...]) -> bool:
    # The proxy doesn't know the application's prefix.
    return scope.get("method") in ("GET", "HEAD") and scope["path"].endswith(paths)


async def _read_body(scope: Scope, receive: Receive) -> None:
    """Read what the client sends anyway; one that asks before sends nothing."""
    if "expect" in Headers(scope=scope):
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_S):
            while (await receive()).get("more_body", False):
                pass


def _closing(scope: Scope, send: Send) -> Send:
    request_id = Headers(scope=scope).get(REQUEST_ID_HEADER, "")

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Connection"] = "close"
            if message["status"] == 503:
                headers["Retry-After"] = str(int(RETRY_AFTER_S))
            if SAFE_ID.fullmatch(request_id):
                headers[REQUEST_ID_HEADER] = request_id
        await send(message)

    return send_and_close
