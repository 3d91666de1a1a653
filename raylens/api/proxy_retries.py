"""Repeats requests whose replica of the ingress dies before it answers.

If a replica of the ingress dies, Serve's proxy drops its requests, and Uvicorn would answer with a
500 in plain text. This middleware runs in the proxy. It keeps what has arrived of a request's body
until an answer begins:

- A request that may be repeated goes to another replica, ``MAX_ATTEMPTS`` times in all: a request
  that kills its replica must not kill all of them.
- Any other, such as a job without an ``Idempotency-Key``, gets a 503 with ``Retry-After``.
- An answer that has begun to stream ends with an error event. A job's events break off, and clients
  connect again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api import sse
from raylens.api.access_log import MAX_PATH_CHARS
from raylens.api.clients import client_of
from raylens.api.errors import dialect_path, error_body, error_response
from raylens.api.middleware import REPEATED_HEADER, REQUEST_ID_HEADER, SAFE_ID
from raylens.core.errors import Overloaded

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
PAUSE_S = 0.2
RETRY_AFTER_S = 1.0
MAX_KEPT_BYTES = 128 * 2**20
"""Of the bodies of all requests that have no answer yet. A request beyond isn't repeated."""
SHARES = 4
"""One client has at most one in so many of these bytes."""
ELAPSED = "raylens.elapsed"
"""Key of a scope: seconds that earlier attempts have taken, which the deadline includes."""
IDEMPOTENCY_HEADER = "Idempotency-Key"
RESPONSES = "/v1/responses"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
REPEATABLE = (
    "/v1/chat/completions",
    "/v1/completions",
    RESPONSES,
    "/v1/caption",
    "/v1/query",
    "/v1/detect",
    "/v1/point",
    "/v1/segment",
    "/v1/preprocess",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/api/v1/generate",
    "/caption",
    "/describe",
    "/describe/file",
    "/surveillance",
)
"""Ends of paths whose POSTs change nothing. The proxy doesn't know the application's prefix."""
IDEMPOTENT = ("/api/v1/jobs", "/api/v1/watches", "/caption/generate", "/v1/batches")
"""Ends of paths whose POSTs may be repeated if they have an ``Idempotency-Key``. Elsewhere the
application doesn't look at it."""
_MARK = REPEATED_HEADER.lower().encode()
_GONE = "the replica that worked on this request has died"
_BROKE_OFF = "the answer broke off"
"""The proxy doesn't learn why: the replica may have died, or the application may have failed."""


class RetryMiddleware:
    """Repeats requests as this module describes. It belongs outside of every other middleware."""

    def __init__(
        self,
        app: ASGIApp,
        max_kept_bytes: int = MAX_KEPT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._clock = clock
        self._room = max_kept_bytes
        self._share = max_kept_bytes // SHARES
        self._kept: Counter[str] = Counter()
        """Bytes of each client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _without_mark(_with_id(scope))
        started_at = self._clock()
        answer = _Answer(send)
        body = _Body(receive, self, client_of(scope.get("client")), _may_repeat(scope))
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                scope_of_attempt = {**scope, ELAPSED: self._clock() - started_at}
                if attempt > 1:
                    scope_of_attempt["headers"] = [*scope["headers"], (_MARK, b"1")]
                await self._app(scope_of_attempt, body.receive, answer.send_from(body))
                if answer.is_complete or body.is_disconnected:
                    return
                if answer.has_begun:
                    await _end_stream(scope, answer)
                    return
                logger.warning("attempt %d of %s: %s", attempt, _name_of(scope), _GONE)
                if attempt == MAX_ATTEMPTS or not body.is_kept:
                    break
                body.rewind()
                await asyncio.sleep(PAUSE_S)
        finally:
            body.forget()
        error = Overloaded(_GONE, retry_after=RETRY_AFTER_S)
        refusal = error_response(dialect_path(scope["path"]), error)
        request_id = Headers(scope=scope)[REQUEST_ID_HEADER]
        if SAFE_ID.fullmatch(request_id):
            refusal.headers[REQUEST_ID_HEADER] = request_id
        await refusal(scope, receive, send)

    def take_room(self, client: str, size: int) -> bool:
        """Return whether a client has room for so many bytes more, which are taken then."""
        if size > min(self._room, self._share - self._kept[client]):
            return False
        self._room -= size
        self._kept[client] += size
        return True

    def give_back_room(self, client: str, size: int) -> None:
        self._room += size
        self._kept[client] -= size
        if not self._kept[client]:
            del self._kept[client]


class _Body:
    """A request's body, which is kept for another attempt while there is room."""

    def __init__(
        self, receive: Receive, owner: RetryMiddleware, client: str, may_repeat: bool
    ) -> None:
        self._receive = receive
        self._owner = owner
        self._client = client
        self._data = bytearray()  # a list of small messages would take a hundred times their size
        self._size = 0
        self._has_begun = False
        self._has_more = True
        self._must_replay = False
        self.is_kept = may_repeat
        self.is_disconnected = False

    async def receive(self) -> Message:
        if self._must_replay:
            return self._replay()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_disconnected = True
        elif self.is_kept:
            self._keep(message)
        return message

    def _keep(self, message: Message) -> None:
        self._has_begun = True
        self._data += message.get("body", b"")
        self._has_more = message.get("more_body", False)
        size = sys.getsizeof(self._data)
        if self._owner.take_room(self._client, size - self._size):
            self._size = size
        else:
            self.forget()

    def _replay(self) -> Message:
        self._must_replay = False
        data = bytes(self._data)
        if not self.is_kept:
            self._data = bytearray()
        return {"type": "http.request", "body": data, "more_body": self._has_more}

    def rewind(self) -> None:
        self._must_replay = self._has_begun

    def forget(self) -> None:
        """Drop what has been read."""
        self._owner.give_back_room(self._client, self._size)
        self._size = 0
        self.is_kept = False
        if not self._must_replay:
            self._data = bytearray()


class _Answer:
    """What is known of an answer that passes."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.has_begun = False
        self.is_complete = False
        self.media_type = ""
        self.tail = b""
        """The last bytes that were sent."""

    def send_from(self, body: _Body) -> Send:
        """Return a ``send`` that notes what it sends. The first message ends the need for a
        body."""

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.has_begun = True
                headers = Headers(raw=message.get("headers", []))
                self.media_type = headers.get("content-type", "").partition(";")[0]
                body.forget()
            elif message["type"] == "http.response.body":
                self.tail = message.get("body", b"")[-2:] or self.tail
                self.is_complete = not message.get("more_body", False)
            await self.send(message)

        return send_and_note


async def _end_stream(scope: Scope, answer: _Answer) -> None:
    """End an answer's stream between two events with an error. Anything else breaks off."""
    logger.warning("the answer to %s broke off", _name_of(scope))
    if scope["method"] != "POST":
        return
    error = Overloaded(_BROKE_OFF)
    content = error_body(dialect_path(scope["path"]), error)
    if answer.media_type == "text/event-stream" and answer.tail in (b"", b"\n\n"):
        if scope["path"].endswith(RESPONSES):
            failure = {"type": "error", "code": error.code, "message": error.message}
            text = sse.event({**failure, "param": None}, "error")
        else:
            text = sse.event(content)
    elif answer.media_type == "application/x-ndjson" and answer.tail[-1:] in (b"", b"\n"):
        text = json.dumps(content) + "\n"
    else:
        return
    await answer.send({"type": "http.response.body", "body": text.encode()})


def _may_repeat(scope: Scope) -> bool:
    if scope["method"] in SAFE_METHODS:
        return True
    if scope["method"] != "POST":
        return False
    if scope["path"].endswith(IDEMPOTENT):
        return IDEMPOTENCY_HEADER in Headers(scope=scope)
    path: str = scope["path"]
    return path.endswith(REPEATABLE)


def _with_id(scope: Scope) -> Scope:
    """Return a scope with an id of the request, which all of its attempts share."""
    if REQUEST_ID_HEADER in Headers(scope=scope):
        return scope
    header = REQUEST_ID_HEADER.lower().encode(), uuid.uuid4().hex.encode()
    return {**scope, "headers": [*scope["headers"], header]}


def _without_mark(scope: Scope) -> Scope:
    """Return a scope without the header that marks repeated requests: only this proxy sets it."""
    return {**scope, "headers": [header for header in scope["headers"] if header[0] != _MARK]}


def _name_of(scope: Scope) -> str:
    """Return what the log calls a request. Its path is decoded, and may hold line breaks."""
    path = scope["path"][:MAX_PATH_CHARS]
    request_id = Headers(scope=scope)[REQUEST_ID_HEADER]
    if not SAFE_ID.fullmatch(request_id):
        request_id = "-"
    return f"{scope['method']} {path!r} ({request_id})"
