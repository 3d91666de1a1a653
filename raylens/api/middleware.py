"""ASGI middleware for every request: its id, its body, and its place among those in flight."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import AsyncExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.clients import client_of
from raylens.api.errors import error_response
from raylens.api.paths import route_path
from raylens.api.request_body import BodyReader, Disconnected
from raylens.api.routes import RouteTable
from raylens.api.shared import Shared
from raylens.core.errors import InvalidRequest, RaylensError
from raylens.core.fairness import FairPlaces, current_client
from raylens.core.logs import current_request_id

REQUEST_ID_HEADER = "X-Request-ID"
WAITED_HEADER = "X-Raylens-Waited"
"""Seconds that a request has waited in the proxy, which replaces what the client sends. Without the
proxy's middleware a client can only shorten its own deadline."""
REPEATED_HEADER = "X-Raylens-Repeated"
"""Marks a request that the proxy repeats, which removes it from what clients send. Without the
proxy's middleware a client that sends it has each of its limits twice (ClientLimitsMiddleware)."""
_SECONDS = re.compile(r"[0-9]{1,4}\.[0-9]{3}")
SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_WRITES = ("POST", "PUT", "DELETE")
INVALID_ID = InvalidRequest(
    f"{REQUEST_ID_HEADER}: expected 1 to 128 visible ASCII characters", REQUEST_ID_HEADER, 128
)


class RequestIdMiddleware:
    """Reads the id of a request or a WebSocket from ``X-Request-ID``, or generates one, and notes
    the time of arrival.

    Every log line carries the id. With ``echo``, the answer's header carries it too; turn that off
    behind Serve's proxy, which sets the header on every answer. The address is the request's
    client, until its key is known.
    """

    def __init__(self, app: ASGIApp, echo: bool = True) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        app = self._app
        request_id = Headers(scope=scope).get(REQUEST_ID_HEADER) or uuid.uuid4().hex
        if not SAFE_ID.fullmatch(request_id):
            if scope["type"] == "http":
                app = error_response(route_path(scope), INVALID_ID)
            request_id = uuid.uuid4().hex
        current_request_id.set(request_id)
        current_client.set(client_of(scope.get("client")))
        received_at = time.time() - _waited(Headers(scope=scope))
        scope.setdefault("state", {}).update(request_id=request_id, received_at=received_at)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await app(scope, receive, send_with_id if self._echo else send)


def _waited(headers: Headers) -> float:
    text = headers.get(WAITED_HEADER, "")
    return float(text) if _SECONDS.fullmatch(text) else 0.0


class AdmissionMiddleware:
    """Reads the body of a request, and then gives it a place among those in flight.

    Refuses a POST while its client has all places of ``shared.requests``, or its fair share if
    others have some, before and after its body is read; other methods always pass. Requests whose
    path begins with one of ``queue_paths`` have places of their own, and those that change
    something others: if the job queue is slow or away, those that wait for it take no place of the
    rest. Event streams, whose path ends with ``/events``, and uploads have
    limits elsewhere.

    Serve's own limit on the ingress answers in plain text and refuses health checks too, so it is
    set above these limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        bodies: BodyReader,
        shared: Shared,
        queue_paths: tuple[str, ...],
        routes: RouteTable,
    ) -> None:
        self._app = app
        self._routes = routes
        self._bodies = bodies
        self._shared = shared
        self._queue_paths = queue_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._routes.template_of(scope):
            await self._app(scope, receive, send)  # which answers 404 or 405 without the body
            return
        places = self._find_places(scope)
        client = current_client.get()
        async with AsyncExitStack() as stack:
            try:
                if places is not None:
                    places.check(client)
                reading = self._bodies.read(scope, receive)
                scope, receive = await stack.enter_async_context(reading)
                if places is not None:
                    stack.enter_context(places.take(client))
            except Disconnected:
                return
            except RaylensError as error:
                await error_response(route_path(scope), error)(scope, receive, send)
                return
            await self._app(scope, receive, send)

    def _find_places(self, scope: Scope) -> FairPlaces | None:
        """Return what limits requests like this one; None if nothing does."""
        method, path = scope["method"], route_path(scope)
        if not path.startswith(self._queue_paths):
            return self._shared.requests if method == "POST" else None
        if path.endswith("/events") or self._bodies.is_upload(scope):
            return None
        return self._shared.queue_writes if method in _WRITES else self._shared.queue_reads
