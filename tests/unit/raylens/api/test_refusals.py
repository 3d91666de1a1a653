"""Refusals that the proxy repeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from raylens.api.middleware import WAITED_HEADER
from raylens.api.refusals import (
    BODY_S,
    FIRST_DECREASE,
    GROWTH,
    GROWTH_S,
    MEMORY_S,
    REPEAT_S,
    RefusalMiddleware,
)
from testing.virtual_time import VirtualTimePolicy

USED_UP = {"Retry-After": "1", "RateLimit": '"requests";r=0;t=60'}


@dataclass
class Server:
    """Refuses or answers, and counts what reaches it."""

    status: int = 429
    headers: dict[str, str] = field(default_factory=lambda: dict(USED_UP))
    size: int = 1
    requests: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests.append(scope["path"])
        headers = {**self.headers, "X-Request-ID": "first"}
        content = {"detail": "full" * self.size}
        await JSONResponse(content, self.status, headers)(scope, receive, send)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def app(server: Server, now: list[float]) -> RefusalMiddleware:
    return RefusalMiddleware(server, lambda: now[0])


async def send(
    app: Any,
    path: str = "/v1/query",
    key: str = "",
    address: str = "192.0.2.1",
    method: str = "POST",
    content: AsyncIterator[bytes] | None = None,
    waited: str | None = None,
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if waited is not None:
        headers[WAITED_HEADER] = waited
    transport = httpx.ASGITransport(app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        headers["X-Request-ID"] = "own"
        return await client.request(method, path, headers=headers, content=content)


async def test_a_429_is_repeated_without_the_server(
    app: RefusalMiddleware, server: Server, now: list[float]
) -> None:
    first = await send(app)
    now[0] += 0.9 * REPEAT_S
    again = await send(app)
    assert len(server.requests) == 1
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["Retry-After"] == "1"
    assert again.headers["X-Request-ID"] == "own"


async def test_it_is_forgotten_after_a_moment(
    app: RefusalMiddleware, server: Server, now: list[float]
) -> None:
    await send(app)
    now[0] += REPEAT_S
    server.status = 200
    assert (await send(app)).status_code == 200
    assert (await send(app)).status_code == 200


@pytest.mark.parametrize(
    "other",
    [{"path": "/v1/caption"}, {"key": "rl-b"}, {"key": ""}, {"key": "rl-a", "method": "GET"}],
    ids=str,
)
async def test_others_are_not_refused(
    app: RefusalMiddleware, server: Server, other: dict[str, Any]
) -> None:
    await send(app, key="rl-a")
    await send(app, **{"key": "rl-a", **other})
    assert len(server.requests) == 2


@pytest.mark.parametrize("key", ["", "EMPTY"])
async def test_addresses_are_told_apart_whatever_key_they_send(
    app: RefusalMiddleware, server: Server, key: str
) -> None:
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        await send(app, address=address, key=key)
    assert len(server.requests) == 2


async def test_what_strangers_make_up_is_not_remembered(
    app: RefusalMiddleware, server: Server
) -> None:
    server.status = 404
    for number in range(50):
        await send(app, f"/{number}" + "x" * 1000, key=f"rl-{number}")
    assert not app._senders


async def read_body(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


@dataclass
class Full:
    """Answers as many requests at a time as it has places, once they are let go."""

    places: int = 3
    arrived: int = 0
    in_flight: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.arrived += 1
        if self.in_flight >= self.places:
            headers = {"Retry-After": "1"}
            await JSONResponse({"detail": "full"}, 503, headers)(scope, receive, send)
            return
        self.in_flight += 1
        await read_body(receive)
        await self.go.wait()
        self.in_flight -= 1
        await JSONResponse({"answer": "x"})(scope, receive, send)


async def test_a_client_that_met_a_full_server_has_as_much_in_flight_as_that_took() -> None:
    server = Full()
    app = RefusalMiddleware(server, min_limit=1)
    waiting = [asyncio.create_task(send(app)) for _ in range(3)]
    await asyncio.sleep(0)
    for _ in range(20):
        assert (await send(app)).status_code == 503
    assert server.arrived == 4  # one refusal was enough
    assert (await send(app, key="another")).status_code == 503
    assert server.arrived == 5
    server.go.set()
    assert [(await task).status_code for task in waiting] == [200] * 3
    assert (await send(app)).status_code == 200


async def test_the_first_refusal_lowers_the_limit_by_more_than_later_ones() -> None:
    server = Full(places=20)
    app = RefusalMiddleware(server, min_limit=1)
    waiting = [asyncio.create_task(send(app)) for _ in range(20)]
    await asyncio.sleep(0)
    assert (await send(app)).status_code == 503
    (sender,) = app._senders.values()
    assert sender.limit == FIRST_DECREASE * 21
    server.places = 0
    server.go.set()
    await asyncio.gather(*waiting)
    assert sender.limit > FIRST_DECREASE * 21
    assert (await send(app)).status_code == 503
    assert sender.limit == 1  # one was in flight, and was refused


async def test_the_limit_rises_with_answers_and_is_forgotten(now: list[float]) -> None:
    server = Full(places=2)
    app = RefusalMiddleware(server, lambda: now[0], min_limit=1)
    waiting = [asyncio.create_task(send(app)) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await send(app)).status_code == 503
    server.go.set()
    await asyncio.gather(*waiting)
    for _ in range(8):
        assert (await send(app)).status_code == 200
    server.go.clear()
    server.places = 10
    arrived = server.arrived
    waiting = [asyncio.create_task(send(app)) for _ in range(6)]
    await asyncio.sleep(0.01)
    assert 3 <= server.arrived - arrived < 6
    now[0] += MEMORY_S + 1
    waiting += [asyncio.create_task(send(app)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert server.arrived - arrived >= 6
    server.go.set()
    await asyncio.gather(*waiting)


async def test_a_burst_waits_until_the_server_has_shown_what_it_takes() -> None:
    server = Full(places=3)
    app = RefusalMiddleware(server, min_limit=1, first_limit=4)
    burst = [asyncio.create_task(send(app)) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
    while sum(task.done() for task in burst) < 47:
        await asyncio.sleep(0)
    assert server.arrived == 4  # one refusal was enough for all
    server.go.set()
    statuses = [response.status_code for response in await asyncio.gather(*burst)]
    assert sorted(statuses) == [200] * 3 + [503] * 47


async def test_a_burst_on_a_server_with_room_is_let_in_by_its_answers() -> None:
    server = Full(places=100)
    app = RefusalMiddleware(server, first_limit=4)
    burst = [asyncio.create_task(send(app)) for _ in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert server.arrived == 4
    server.go.set()
    assert {response.status_code for response in await asyncio.gather(*burst)} == {200}


@dataclass
class SlowReader:
    """Answers when it has the whole body."""

    arrived: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.arrived += 1
        await read_body(receive)
        await JSONResponse({})(scope, receive, send)


class TestPatience:
    @pytest.fixture
    def event_loop_policy(self) -> VirtualTimePolicy:
        return VirtualTimePolicy()

    async def test_slow_bodies_hold_up_nobody(self) -> None:
        server = SlowReader()
        app = RefusalMiddleware(server, first_limit=4)

        async def trickle() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.sleep(60)

        trickles = [asyncio.create_task(send(app, content=trickle())) for _ in range(4)]
        await asyncio.sleep(2 * BODY_S)
        complete = asyncio.create_task(send(app))
        await asyncio.sleep(0)
        assert server.arrived == 5
        await complete
        for task in trickles:
            task.cancel()

    async def test_what_waits_for_slow_answers_goes_on(self) -> None:
        server = Full(places=100)
        app = RefusalMiddleware(server, first_limit=4)
        burst = [asyncio.create_task(send(app)) for _ in range(2 * GROWTH + 5)]
        await asyncio.sleep(0.9 * GROWTH_S)
        for expected in (4, GROWTH + 4, 2 * GROWTH + 4, 2 * GROWTH + 5):
            assert server.arrived == expected
            await asyncio.sleep(GROWTH_S)
        server.go.set()
        assert {response.status_code for response in await asyncio.gather(*burst)} == {200}

    async def test_the_server_learns_how_long_a_request_has_waited(self) -> None:
        told: list[str] = []
        go = asyncio.Event()

        async def server(scope: Scope, receive: Receive, send: Send) -> None:
            told.append(Headers(scope=scope)[WAITED_HEADER])
            await read_body(receive)
            await go.wait()
            await JSONResponse({})(scope, receive, send)

        clock = asyncio.get_running_loop().time
        app = RefusalMiddleware(server, clock, first_limit=1)
        pair = [asyncio.create_task(send(app, waited="99.000")) for _ in range(2)]
        await asyncio.sleep(1.5 * GROWTH_S)
        go.set()
        await asyncio.gather(*pair)
        assert told == ["0.000", f"{GROWTH_S:.3f}"]


async def test_whoever_leaves_while_waiting_does_not_reach_the_server() -> None:
    server = Full()
    app = RefusalMiddleware(server, first_limit=1)
    in_flight = asyncio.create_task(send(app))
    await asyncio.sleep(0)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def ignore(message: Message) -> None: ...

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/query",
        "client": ("192.0.2.1", 1),
        "headers": [],
    }
    left = asyncio.create_task(app(scope, receive, ignore))
    await asyncio.sleep(0)
    server.go.set()
    await asyncio.gather(in_flight, left)
    assert server.arrived == 1
    assert not app._senders


async def test_a_429_that_is_not_about_a_rate_is_not_repeated(
    app: RefusalMiddleware, server: Server
) -> None:
    server.headers = {"Retry-After": "1", "RateLimit": '"requests";r=7;t=60'}
    for _ in range(2):
        await send(app)
    assert len(server.requests) == 2


async def test_a_rate_that_was_used_up_limits_no_requests_in_flight(now: list[float]) -> None:
    server = Full(places=100)
    rates = Server()
    current: list[Any] = [rates]

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        await current[0](scope, receive, send)

    app = RefusalMiddleware(either, lambda: now[0], first_limit=4)
    assert (await send(app)).status_code == 429
    now[0] += REPEAT_S
    current[0] = server
    waiting = [asyncio.create_task(send(app)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert server.arrived == 4
    server.go.set()
    assert {response.status_code for response in await asyncio.gather(*waiting)} == {200}


async def test_the_first_limit_grows_only_if_it_is_reached() -> None:
    server = Full(places=100)
    app = RefusalMiddleware(server, first_limit=4)
    server.go.set()
    first = asyncio.create_task(send(app))
    for _ in range(20):
        second = asyncio.create_task(send(app))  # so the client is never idle
        await first
        first = second
    server.go.clear()
    arrived = server.arrived
    burst = [asyncio.create_task(send(app)) for _ in range(20)]
    await asyncio.sleep(0.01)
    assert server.arrived - arrived <= 5
    server.go.set()
    await asyncio.gather(first, *burst)


async def test_a_client_with_unfinished_bodies_is_not_forgotten() -> None:
    server = Full(places=1)
    app = RefusalMiddleware(server, min_limit=1)
    complete = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await complete.wait()

    waiting = [asyncio.create_task(send(app, content=slow())) for _ in range(3)]
    await asyncio.sleep(1.5 * BODY_S)
    server.places = 0
    assert (await send(app)).status_code == 503
    arrived = server.arrived
    assert (await send(app)).status_code == 503
    assert (await send(app)).status_code == 503
    assert server.arrived - arrived <= 2
    complete.set()
    server.go.set()
    await asyncio.gather(*waiting)
    assert app._senders  # its last refusal


@pytest.mark.parametrize("status", [200, 400, 401, 408, 500, 504])
async def test_other_answers_are_not_repeated(
    app: RefusalMiddleware, server: Server, status: int
) -> None:
    server.status = status
    for _ in range(2):
        await send(app)
    assert len(server.requests) == 2


async def test_refusals_without_retry_after_or_of_many_bytes_are_not_repeated(
    app: RefusalMiddleware, server: Server
) -> None:
    server.headers = {}
    for _ in range(2):
        await send(app)
    server.headers = USED_UP
    server.size = 5000
    for _ in range(2):
        await send(app, "/v1/caption")
    assert len(server.requests) == 4
