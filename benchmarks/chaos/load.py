"""Requests to all proxies of a cluster, as a load balancer would spread them, and what became of
each."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import httpx
import numpy as np

from testing.pictures import encode_picture, random_pixels

PATH = "/v1/chat/completions"
TIMEOUT_S = 90.0
CLIENTS = 12
PAUSE_S = 0.8
"""Between two requests of a client."""
BURST = 16
"""Requests that begin together just before a kill, so that what is killed has some of them."""
PICTURES = 32


class Outcome(Enum):
    ANSWERED = "answered"
    REFUSED = "clear 503"
    LOST = "died with its proxy or node"
    """The connection, which nothing behind it can mend."""
    CUT = "stream ended by an error event"
    BROKEN = "stream broken"
    FAILED = "failed"


@dataclass(frozen=True)
class Result:
    outcome: Outcome
    seconds: float
    reason: str = ""


@dataclass
class Proxies:
    """Chooses a proxy for each new connection."""

    ports: Callable[[], Sequence[int]]
    killed: set[int] = field(default_factory=set)
    """Ports of proxies that were killed, alone or with their node."""
    _turn: Any = field(default_factory=itertools.count)

    def in_turn(self) -> list[int]:
        """Return all ports, the next one first."""
        ports = list(self.ports())
        start = next(self._turn) % len(ports)
        return ports[start:] + ports[:start]


class Load:
    """Plain and streamed questions about pictures, from several clients at once."""

    def __init__(self, model: str, proxies: Proxies) -> None:
        self._model = model
        self._proxies = proxies
        self._http = httpx.AsyncClient(
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=0),
        )
        self._pictures = [_picture(seed) for seed in range(PICTURES)]
        self._number = itertools.count()
        self._is_on = False
        self._open: set[asyncio.Task[None]] = set()
        self.results: list[Result] = []
        self.grew = asyncio.Event()
        """Set whenever there is a result."""

    def start(self) -> None:
        self._is_on = True
        for _ in range(CLIENTS):
            self._spawn(self._keep_asking())

    def burst(self) -> None:
        for _ in range(BURST):
            self._spawn(self._ask())

    async def stop(self) -> list[Result]:
        """Wait for the requests in flight. Returns all results since the last stop."""
        self._is_on = False
        while self._open:
            await asyncio.wait(self._open)
        results, self.results = self.results, []
        return results

    async def wait_for(self, count: int) -> None:
        """Wait until there are so many results."""
        while len(self.results) < count:
            self.grew.clear()
            await self.grew.wait()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _keep_asking(self) -> None:
        while self._is_on:
            await self._ask()
            await asyncio.sleep(PAUSE_S)

    async def _ask(self) -> None:
        number = next(self._number)
        is_stream = number % 2 == 1
        parts = [
            {"type": "text", "text": f"What is it? ({number})"},
            {"type": "image_url", "image_url": {"url": self._pictures[number % PICTURES]}},
        ]
        messages = [{"role": "user", "content": parts}]
        body = {"model": self._model, "messages": messages, "stream": is_stream}
        started = time.perf_counter()
        outcome, reason = await self._send(body, is_stream)
        self.results.append(Result(outcome, time.perf_counter() - started, reason))
        self.grew.set()

    async def _send(self, body: dict[str, Any], is_stream: bool) -> tuple[Outcome, str]:
        for port in self._proxies.in_turn():
            received = bytearray()
            try:
                url = f"http://127.0.0.1:{port}{PATH}"
                async with self._http.stream("POST", url, json=body) as response:
                    async for data in response.aiter_bytes():
                        received += data
            except httpx.ConnectError:
                continue  # nothing was sent: a load balancer takes the next one
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__}: {error}"
                if port in self._proxies.killed:
                    return Outcome.LOST, reason
                return (Outcome.BROKEN if received else Outcome.FAILED), reason
            if is_stream and response.status_code == 200:
                return judge_stream(received.decode())
            return judge(response.status_code, response.headers, bytes(received))
        return Outcome.FAILED, "no proxy takes connections"

    async def close(self) -> None:
        await self._http.aclose()


def judge(status: int, headers: httpx.Headers, body: bytes) -> tuple[Outcome, str]:
    """Return what became of a request with a complete answer that isn't a stream."""
    try:
        content = json.loads(body)
    except ValueError:
        return Outcome.FAILED, f"{status}: {body[:80]!r}"
    if status == 200 and content["choices"][0]["message"]["content"]:
        return Outcome.ANSWERED, ""
    message = content.get("error", {}).get("message", "")
    if status == 503 and message and headers.get("retry-after", "").isdecimal():
        return Outcome.REFUSED, message
    return Outcome.FAILED, f"{status}: {body[:120]!r}"


def judge_stream(text: str) -> tuple[Outcome, str]:
    """Return what became of a stream whose connection was closed in order."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    last = events[-1] if events else ""
    if last == "[DONE]":
        # An error is an event of its own; some clients want [DONE] after it.
        last = events[-2] if len(events) > 1 else ""
        if last.startswith('{"error"'):
            return Outcome.CUT, last
        return Outcome.ANSWERED, ""
    if last.startswith('{"error"'):
        return Outcome.CUT, last
    return Outcome.BROKEN, f"the last event is {last[-80:]!r}"


def _picture(seed: int) -> str:
    # Large enough to take some time in the preprocessor, and to travel through the object store.
    pixels = np.kron(random_pixels(64, 64, seed), np.ones((16, 16, 1), np.uint8))
    return f"data:image/png;base64,{base64.b64encode(encode_picture(pixels)).decode()}"


def count(results: Sequence[Result]) -> Counter[Outcome]:
    return Counter(result.outcome for result in results)
