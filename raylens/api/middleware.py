"""ASGI middleware for every request: its id, its body, and its place among those in flight."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.errors import error_response
from raylens.api.paths import route_path
from raylens.api.request_body import BodyReader, Disconnected
from raylens.core.errors import InvalidRequest, Overloaded, RaylensError
from raylens.core.logs import current_request_id

REQUEST_ID_HEADER = "X-Request-ID"
SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_WRITES = ("POST", "PUT", "DELETE")
INVALID_ID = InvalidRequest(
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
        if not SAFE_ID.fullmatch(request_id):
            await error_response(route_path(scope), INVALID_ID)(scope, receive, send)
            return
        current_request_id.set(request_id)
        scope.setdefault("state", {}).update(request_id=request_id, received_at=time.time())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id if self._echo else send)


class AdmissionMiddleware:
    """Reads the body of a request, and then gives it a place among those in flight.

    Refuses a POST while ``limit`` POSTs are in flight, before and after its body is read; other
    methods always pass. Requests whose path begins with one of ``queue_paths`` have limits of their
    own, ``max_queue_reads`` and, for those that change something, ``max_queue_writes``: if the job
    queue is slow or away, those that wait for it take no place of the rest. Event streams, whose
    path ends with ``/events``, and uploads have limits elsewhere.

    Serve's own limit on the ingress answers in plain text and refuses health checks too, so it is
    set above these limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        bodies: BodyReader,
        limit: int,
        max_queue_writes: int = 1,
        max_queue_reads: int = 1,
        queue_paths: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._bodies = bodies
        self._requests = _InFlight(limit)
        self._queue_writes = _InFlight(max_queue_writes)
        self._queue_reads = _InFlight(max_queue_reads)
        self._queue_paths = queue_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        in_flight = self._find_limit(scope)
        async with AsyncExitStack() as stack:
            try:
                in_flight.check()
                reading = self._bodies.read(scope, receive)
                scope, receive = await stack.enter_async_context(reading)
                in_flight.check()
            except Disconnected:
                return
            except RaylensError as error:
                await error_response(route_path(scope), error)(scope, receive, send)
                return
            in_flight.count += 1
            try:
                await self._app(scope, receive, send)
            finally:
                in_flight.count -= 1

    def _find_limit(self, scope: Scope) -> _InFlight:
        method, path = scope["method"], route_path(scope)
        if not path.startswith(self._queue_paths):
            return self._requests if method == "POST" else _InFlight(None)
        if path.endswith("/events") or self._bodies.is_upload(scope):
            return _InFlight(None)
        return self._queue_writes if method in _WRITES else self._queue_reads


@dataclass
class _InFlight:
    limit: int | None
    """None means that there is none."""
    count: int = 0

    def check(self) -> None:
        """Raise ``Overloaded`` if there is no place left."""
        if self.limit is not None and self.count >= self.limit:
            message = f"{self.count} requests are in flight; the limit is {self.limit}"
            raise Overloaded(message, None, self.limit, self.count, 1)
