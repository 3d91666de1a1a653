"""Keeps the requests of a client that floods the server out of the ingress.

To refuse a request in a replica of the ingress takes some ten milliseconds of the machine's time:
it passes through the proxy and the ingress with its body. A client that floods the server would
take that time from others. This middleware runs in the proxy, and learns how much of a client the
server takes, much as TCP does (Jacobson, 1988; Chiu and Jain, 1989):

- At first a client may have some requests in flight. Those beyond wait, their bodies unread. While
  some wait, time lets in more.
- After a 503 with ``Retry-After`` it may have fewer in flight than it had then: by 30% after the
  first one, and by one after others. Each answer raises that limit a little. Those beyond get the
  last refusal again at once.
- After a 429 because of a rate, every request gets it again for a moment.

The proxy knows paths, but not models: bodies are unread. A client whose requests for a full model
wait here therefore has its requests for others on the same path refused with them.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.clients import client_of, presented_keys
from raylens.api.middleware import REQUEST_ID_HEADER, SAFE_ID, WAITED_HEADER
from raylens.api.proxy_retries import ELAPSED

REPEAT_S = 0.25
"""How long a 429 is repeated; shorter than any ``Retry-After``, so nobody who waits sees it."""
MEMORY_S = 1.0
"""How long after its last refusal, a repeated one or not, it is remembered: nobody gets it again
who waits as ``Retry-After`` says."""
FIRST_LIMIT = 32
"""Of the requests in flight of a client that has not been refused."""
GROWTH = 10
GROWTH_S = 0.1
"""While requests beyond that wait, the limit grows by ``GROWTH`` every ``GROWTH_S``: answers may
take long. On a slow machine the ingress can work on a hundred requests a second. More would queue
up there, before those of others and before the first refusal."""
FIRST_DECREASE = 0.7
"""What of the requests in flight the server is thought to take after its first refusal."""
BODY_S = 0.1
"""A request whose body takes longer isn't in flight until that is complete: the ingress bounds such
requests, and slow ones must not hold up others of the same address."""
MIN_LIMIT = 16
"""So many requests of a client always reach the ingress, which knows what their model has room for:
it may have been another one that was full."""
MAX_CLIENTS = 10_000
MAX_BODY_BYTES = 4096
USED_UP = b";r=0;"
"""Of a rate, in the header ``RateLimit``."""
_OWN_HEADERS = (REQUEST_ID_HEADER.lower().encode(), b"server-timing")
"""Headers that belong to one answer only."""


@dataclass
class _Refusal:
    status: int
    is_rate: bool
    """Whether a rate is used up: only time helps."""
    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)


@dataclass
class _Sender:
    """A client and a path, as the proxy knows them."""

    limit: float
    """Of requests in flight."""
    open: int = 0
    """Requests that have begun and not ended, those with an unfinished body included."""
    in_flight: int = 0
    """Those of them that count towards the limit."""
    refusal: _Refusal | None = None
    """The last one."""
    refused_at: float = -math.inf
    waiting: deque[asyncio.Future[bool]] = field(default_factory=deque)
    """Requests that wait for a place."""
    growth: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        return self.in_flight + 1 <= self.limit

    def refuses(self, now: float) -> bool:
        """Whether the next request gets the last refusal again."""
        if self.refusal is None:
            return False
        if self.refusal.is_rate:
            return True
        if self.has_room:
            return False
        self.refused_at = now
        return True

    def forget_refusal(self, now: float, first_limit: int) -> None:
        if self.refusal is None:
            return
        if now - self.refused_at >= (REPEAT_S if self.refusal.is_rate else MEMORY_S):
            self.refusal, self.limit = None, first_limit

    def note_refusal(self, refusal: _Refusal, now: float, min_limit: int) -> None:
        if not refusal.is_rate:
            # At first, many of those in flight have not yet been refused.
            taken = self.in_flight - 1 if self.refusal else FIRST_DECREASE * self.in_flight
            self.limit = min(self.limit, max(min_limit, taken))
        self.refusal, self.refused_at = refusal, now
        while self.waiting:
            self._answer_next(False)

    def note_answer(self) -> None:
        if self.refusal is not None:
            self.limit += 1 / self.limit
            self._admit_waiting()

    def take_place(self) -> None:
        self.in_flight += 1

    def give_back_place(self) -> None:
        self.in_flight -= 1
        self._admit_waiting()

    async def wait_for_place(self) -> bool:
        """Return whether there is one, which is taken then; if not, the server has refused a
        request meanwhile."""
        loop = asyncio.get_running_loop()
        if self.growth is None:
            self.growth = loop.call_later(GROWTH_S, self._grow)
        turn: asyncio.Future[bool] = loop.create_future()
        self.waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result():
                self.give_back_place()
            raise

    def _grow(self) -> None:
        self.growth = None
        if self.waiting:
            self.limit += GROWTH
            self.growth = asyncio.get_running_loop().call_later(GROWTH_S, self._grow)
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self.waiting and self.has_room:
            self._answer_next(True)

    def _answer_next(self, is_admitted: bool) -> None:
        turn = self.waiting.popleft()
        if not turn.done():  # its client may have left
            turn.set_result(is_admitted)
            self.in_flight += is_admitted


class _Place:
    """The place of a request among those of its sender that are in flight. It has been taken."""

    def __init__(self, sender: _Sender) -> None:
        self._sender = sender
        self._is_held = True
        self._has_ended = False
        self._timer = asyncio.get_running_loop().call_later(BODY_S, self._give_back)
        sender.open += 1

    def watch(self, receive: Receive) -> Receive:
        """Return a ``receive`` that holds the place from the end of the body on."""

        async def receive_and_note() -> Message:
            message = await receive()
            if not message.get("more_body", False):
                self._timer.cancel()
                if not (self._is_held or self._has_ended):
                    self._is_held = True
                    self._sender.take_place()
            return message

        return receive_and_note

    def end(self) -> None:
        self._has_ended = True
        self._timer.cancel()
        self._sender.open -= 1
        self._give_back()

    def _give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._sender.give_back_place()


class RefusalMiddleware:
    """Limits POSTs of a client to the same path, as this module describes.

    A client is an address and the key that it sends, which may be unknown.
    """

    def __init__(
        self,
        app: ASGIApp,
        clock: Callable[[], float] = time.monotonic,
        min_limit: int = MIN_LIMIT,
        first_limit: int = FIRST_LIMIT,
    ) -> None:
        self._app = app
        self._first_limit = first_limit
        self._min_limit = min_limit
        self._clock = clock
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()
        """Those with open requests, and the last ones that were refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        name = _name_of_sender(scope)
        sender = self._find(name)
        sender.forget_refusal(self._clock(), self._first_limit)
        arrived_at = self._clock()
        must_wait = sender.refusal is None and not sender.has_room
        if not (must_wait and await sender.wait_for_place()):
            if sender.refusal is not None and sender.refuses(self._clock()):
                await _repeat(sender.refusal, scope, send)
                return
            sender.take_place()
        place = _Place(sender)
        receive = place.watch(receive)
        waited = self._clock() - arrived_at + scope.get(ELAPSED, 0.0)
        scope = _with_waiting_time(scope, waited)
        try:
            if must_wait:
                first = await receive()
                if first["type"] == "http.disconnect":
                    return
                receive = _replay(first, receive)
            await self._app(scope, receive, self._watch(sender, send))
        finally:
            place.end()
            is_needed = sender.open or sender.waiting or sender.refusal is not None
            if not is_needed and self._senders.get(name) is sender:
                del self._senders[name]

    def _find(self, name: bytes) -> _Sender:
        sender = self._senders.setdefault(name, _Sender(self._first_limit))
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
    """Return what an answer's start tells of a refusal that holds for the next request, too; None
    if it is none."""
    status = message["status"]
    headers = [(name.lower(), value) for name, value in message.get("headers", ())]
    by_name = dict(headers)
    is_rate = status == HTTPStatus.TOO_MANY_REQUESTS and USED_UP in by_name.get(b"ratelimit", b"")
    if b"retry-after" not in by_name or not (is_rate or status == HTTPStatus.SERVICE_UNAVAILABLE):
        return None
    own = [header for header in headers if header[0] not in _OWN_HEADERS]
    return _Refusal(status, is_rate, own)


def _name_of_sender(scope: Scope) -> bytes:
    """Return a digest of the address and the key of who sends a request, and of its path: they may
    be long."""
    key = next(filter(None, presented_keys(Headers(scope=scope))), "")
    parts = (client_of(scope.get("client")), key, scope["path"])
    return hashlib.sha256(repr(parts).encode()).digest()


def _with_waiting_time(scope: Scope, seconds: float) -> Scope:
    """Return a scope that tells the ingress how long a request has waited here, which its deadline
    includes."""
    name = WAITED_HEADER.lower().encode()
    headers = [header for header in scope["headers"] if header[0] != name]
    return {**scope, "headers": [*headers, (name, f"{seconds:.3f}".encode())]}


def _replay(first: Message, receive: Receive) -> Receive:
    """Return a ``receive`` that begins with a message that has been received."""
    begun = [first]

    async def replay() -> Message:
        return begun.pop() if begun else await receive()

    return replay


async def _repeat(refusal: _Refusal, scope: Scope, send: Send) -> None:
    request_id = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    headers = list(refusal.headers)
    if SAFE_ID.fullmatch(request_id):
        headers.append((REQUEST_ID_HEADER.lower().encode(), request_id.encode("latin-1")))
    start: dict[str, Any] = {"type": "http.response.start", "status": refusal.status}
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(refusal.body)})
