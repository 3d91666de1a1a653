"""What every request passes: its id, and the limit on its body."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.errors import error_response
from raylens.errors import InvalidRequest, PayloadTooLarge
from raylens.logs import request_id

REQUEST_ID_HEADER = "X-Request-ID"
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_BAD_ID = InvalidRequest(f"{REQUEST_ID_HEADER}: 1 to 128 visible ASCII characters are needed", REQUEST_ID_HEADER, 128)


class RequestIdMiddleware:
    """Takes the request's id from ``X-Request-ID``, or makes one, for the answer and every log line.

    ``echo`` off leaves the answer's header to the server in front: Serve's proxy sets it on every answer.
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
        scope.setdefault("state", {})["request_id"] = identity

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = identity
            await send(message)

        await self._app(scope, receive, send_with_id if self._echo else send)


class BodyLimitMiddleware:
    """Refuses a body over ``limit`` bytes with 413, by its announced length or as it arrives."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            await error_response(scope["path"], self._error(announced))(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, self._error(f"over {self._limit}").message)
            return message

        await self._app(scope, limited, send)

    def _error(self, actual: str) -> PayloadTooLarge:
        return PayloadTooLarge(f"body: {actual} bytes; the limit is {self._limit} bytes", "body", self._limit, actual)
