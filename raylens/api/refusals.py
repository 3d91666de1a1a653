"""Repeats recent refusals to clients that don't wait.

To refuse a request in a replica of the ingress takes some ten milliseconds of the machine's time:
it passes through the proxy and the ingress with its body. A client that floods the server would
take that time from others. This middleware runs in the proxy, and learns from refusals with
``Retry-After`` how much of a client the server takes:

- After a 503, a client may have one request fewer in flight than it had then. Each answer raises
  that limit a little (additive increase, as TCP's: Chiu and Jain, 1989).
- After a 429, which is about time, it has to wait for a moment.

Requests beyond get the last refusal again.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.clients import client_of, presented_keys
from raylens.api.middleware import REQUEST_ID_HEADER

REPEAT_S = 0.25
"""How long a 429 is repeated; shorter than any ``Retry-After``, so nobody who waits sees it."""
MEMORY_S = 1.0
"""How long after its last refusal, a repeated one or not, a client is limited: nobody is who waits
as ``Retry-After`` says."""
MIN_LIMIT = 16
"""So many requests of a client always reach the ingress, which knows what their model has room for:
another one may be full."""
MAX_CLIENTS = 10_000
MAX_BODY_BYTES = 4096
_OWN_HEADERS = (REQUEST_ID_HEADER.lower().encode(), b"server-timing")
"""Headers that belong to one answer only."""


@dataclass
class _Refusal:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)


@dataclass
class _Sender:
    """A client and a path, as the proxy knows them."""

    in_flight: int = 0
    refusal: _Refusal | None = None
    """The last one."""
    refused_at: float = -math.inf
    limit: float = math.inf
    """Of requests in flight."""
    waits_until: float = -math.inf

    def refuses(self, now: float) -> bool:
        """Whether the next request gets the last refusal again."""
        if self.refusal is None or now - self.refused_at > MEMORY_S:
            return False
        if now >= self.waits_until and self.in_flight + 1 <= self.limit:
            return False
        self.refused_at = now
        return True

    def note_refusal(self, refusal: _Refusal, now: float, min_limit: int) -> None:
        self.refusal, self.refused_at = refusal, now
        if refusal.status == HTTPStatus.TOO_MANY_REQUESTS:
            self.waits_until = now + REPEAT_S
        else:
            self.limit = max(min_limit, self.in_flight - 1)

    def note_answer(self) -> None:
        self.limit += 1 / self.limit


class RefusalMiddleware:
    """Repeats refusals of POSTs to the same client, as this module describes.

    A client is an address and the key that it sends, which may be unknown.
    """

    def __init__(
        self,
        app: ASGIApp,
        clock: Callable[[], float] = time.monotonic,
        min_limit: int = MIN_LIMIT,
    ) -> None:
        self._app = app
        self._min_limit = min_limit
        self._clock = clock
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()
        """Those with requests in flight, and those refused lately."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        name = _name_of_sender(scope)
        sender = self._find(name)
        if sender.refusal is not None and sender.refuses(self._clock()):
            await _repeat(sender.refusal, scope, send)
            return
        sender.in_flight += 1
        try:
            await self._app(scope, receive, self._watch(sender, send))
        finally:
            sender.in_flight -= 1
            is_needed = sender.in_flight or sender.refusal is not None
            if not is_needed and self._senders.get(name) is sender:
                del self._senders[name]

    def _find(self, name: bytes) -> _Sender:
        sender = self._senders.setdefault(name, _Sender())
        self._senders.move_to_end(name)
        if len(self._senders) > MAX_CLIENTS:
            self._senders.popitem(last=False)
        return sender

    def _watch(self, sender: _Sender, send: Send) -> Send:
        """Return a ``send`` that notes whether the request is refused."""
        refusal: _Refusal | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start":
                refusal = _begin_refusal(message)
                if refusal is None:
                    sender.note_answer()
            elif message["type"] == "http.response.body" and refusal is not None:
                refusal.body += message.get("body", b"")
                is_complete = not message.get("more_body", False)
                if is_complete and len(refusal.body) <= MAX_BODY_BYTES:
                    sender.note_refusal(refusal, self._clock(), self._min_limit)
            await send(message)

        return send_and_note


def _begin_refusal(message: Message) -> _Refusal | None:
    """Return what an answer's start tells of a refusal; None if it is none."""
    status = message["status"]
    if status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return None
    headers = [(name.lower(), value) for name, value in message.get("headers", ())]
    if all(name != b"retry-after" for name, _ in headers):
        return None
    return _Refusal(status, [header for header in headers if header[0] not in _OWN_HEADERS])


def _name_of_sender(scope: Scope) -> bytes:
    """Return a digest of the address and the key of who sends a request, and of its path: they may
    be long."""
    key = next(filter(None, presented_keys(Headers(scope=scope))), "")
    parts = (client_of(scope.get("client")), key, scope["path"])
    return hashlib.sha256(repr(parts).encode()).digest()


async def _repeat(refusal: _Refusal, scope: Scope, send: Send) -> None:
    request_id = Headers(scope=scope).get(REQUEST_ID_HEADER)
    headers = list(refusal.headers)
    if request_id is not None:
        headers.append((REQUEST_ID_HEADER.lower().encode(), request_id.encode("latin-1")))
    start: dict[str, Any] = {"type": "http.response.start", "status": refusal.status}
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(refusal.body)})
