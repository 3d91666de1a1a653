"""What every request passes: its id, the room that there is, and the limits on its body."""

from __future__ import annotations

import asyncio
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.errors import error_response
from raylens.core.errors import InvalidRequest, Overloaded, PayloadTooLarge
from raylens.core.logs import request_id

REQUEST_ID_HEADER = "X-Request-ID"
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_BAD_ID = InvalidRequest(
    f"{REQUEST_ID_HEADER}: 1 to 128 visible ASCII characters are needed", REQUEST_ID_HEADER, 128
)


class RequestIdMiddleware:
    """Takes the request's id from ``X-Request-ID``, or makes one, for the answer and every log
    line; notes the time.

    ``echo`` off leaves the answer's header to the server in front: Serve's proxy sets it on every
    answer.
    """

    def __init__(self, app: ASGIApp, echo: bool = True) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = Headers(scope=scope).get(REQUEST_ID_HEADER) or uuid.uuid4().hex
        if not _SAFE_ID.fullmatch(identity):
            await error_response(scope["path"], _BAD_ID)(scope, receive, send)
            return
        request_id.set(identity)
        scope.setdefault("state", {}).update(request_id=identity, received_at=time.time())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = identity
            await send(message)

        await self._app(scope, receive, send_with_id if self._echo else send)


class ConcurrencyLimitMiddleware:
    """Refuses a POST while ``room`` of them are in flight, and leaves every other request be.

    Serve's own limit on the ingress answers in plain text, and shuts out health checks too: it
    stays far above this.
    """

    def __init__(self, app: ASGIApp, room: int) -> None:
        self._app = app
        self._room = room
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._in_flight >= self._room:
            error = Overloaded(
                f"{self._in_flight} requests are in flight; the limit is {self._room}",
                None,
                self._room,
                None,
                1,
            )
            await error_response(scope["path"], error)(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1


class BodyMiddleware:
    """Refuses a body over ``limit`` bytes with 413, and with 408 one that stops coming for
    ``patience`` seconds."""

    def __init__(self, app: ASGIApp, limit: int, patience: float) -> None:
        self._app = app
        self._limit = limit
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            await error_response(scope["path"], self._too_large(announced[:32]))(
                scope, receive, send
            )
            return
        received, complete = 0, False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is the client's going away, and may take its time
                return await receive()
            message = await self._next(receive)
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._limit:
                raise HTTPException(413, self._too_large(f"over {self._limit}").message)
            return message

        await self._app(scope, limited, send)

    async def _next(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self._patience):
                return await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"body: nothing of it came for {self._patience:g} seconds"
            ) from None

    def _too_large(self, actual: str) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"body: {actual} bytes; the limit is {self._limit} bytes", "body", self._limit, actual
        )
