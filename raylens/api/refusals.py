"""Repeats recent refusals to clients that don't wait.

To refuse a request in a replica of the ingress takes some ten milliseconds of the machine's time:
it passes through the proxy and the ingress with its body. A client that floods the server would
take that time from others. This middleware runs in the proxy. After a refusal with ``Retry-After``,
it answers the client's next requests for the same path by itself for a moment.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.clients import client_of, presented_keys
from raylens.api.middleware import REQUEST_ID_HEADER

REPEAT_S = 0.25
"""How long a refusal is repeated; shorter than any ``Retry-After``, so nobody who waits sees it."""
MAX_CLIENTS = 10_000
MAX_BODY_BYTES = 4096
_REFUSALS = (429, 503)
_OWN_HEADERS = (REQUEST_ID_HEADER.lower().encode(), b"server-timing")
"""Headers that belong to one answer only."""


@dataclass
class _Refusal:
    until: float
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False


class RefusalMiddleware:
    """Repeats the last refusal of a POST to the same client, for :data:`REPEAT_S`.

    A client is the key that it sends, whether it is known or not, or else an address.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._refusals: OrderedDict[tuple[str, str], _Refusal] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        sender = _sender_of(scope)
        refusal = self._refusals.get(sender)
        if refusal is not None and refusal.is_complete and self._clock() < refusal.until:
            await _repeat(refusal, scope, send)
            return
        await self._app(scope, receive, self._watch(sender, send))

    def _watch(self, sender: tuple[str, str], send: Send) -> Send:
        """Return a ``send`` that remembers a refusal."""
        refusal: _Refusal | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start":
                headers = [(name.lower(), value) for name, value in message.get("headers", ())]
                if message["status"] in _REFUSALS and any(n == b"retry-after" for n, _ in headers):
                    kept = [header for header in headers if header[0] not in _OWN_HEADERS]
                    refusal = _Refusal(self._clock() + REPEAT_S, message["status"], kept)
            elif message["type"] == "http.response.body" and refusal is not None:
                refusal.body += message.get("body", b"")
                if len(refusal.body) > MAX_BODY_BYTES:
                    refusal = None
                elif not message.get("more_body", False):
                    refusal.is_complete = True
                    self._remember(sender, refusal)
            await send(message)

        return send_and_note

    def _remember(self, sender: tuple[str, str], refusal: _Refusal) -> None:
        self._refusals[sender] = refusal
        self._refusals.move_to_end(sender)
        if len(self._refusals) > MAX_CLIENTS:
            self._refusals.popitem(last=False)


def _sender_of(scope: Scope) -> tuple[str, str]:
    """Return who sends a request, and its path."""
    key = next(filter(None, presented_keys(Headers(scope=scope))), "")
    if not key:
        return f"address {client_of(scope.get('client'))}", scope["path"]
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(), scope["path"]


async def _repeat(refusal: _Refusal, scope: Scope, send: Send) -> None:
    request_id = Headers(scope=scope).get(REQUEST_ID_HEADER)
    headers = list(refusal.headers)
    if request_id is not None:
        headers.append((REQUEST_ID_HEADER.lower().encode(), request_id.encode("latin-1")))
    start: dict[str, Any] = {"type": "http.response.start", "status": refusal.status}
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(refusal.body)})
