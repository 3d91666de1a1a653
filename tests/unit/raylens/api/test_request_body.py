"""Bodies that arrive slowly: they end in time, and shut out nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from raylens.api.app import create_app
from raylens.api.clients import client_of
from raylens.api.request_body import MAX_UPLOADS_PER_CLIENT, BodyReader, UnfinishedBodies
from raylens.api.shared import Shared
from raylens.core.config import RequestLimits
from testing.virtual_time import VirtualTimePolicy
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, FakeService

PATH = "/v1/caption"
BODY = json.dumps({"image_url": DATA_URL}).encode()
LIMITS = RequestLimits(
    body_patience_s=10,
    min_body_bytes_per_s=100,
    max_unfinished_bodies=6,
    max_unfinished_bodies_per_client=4,
    max_in_flight=2,
)
Connect = Callable[[str], httpx.AsyncClient]


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.fixture
def connect(service: FakeService) -> Connect:
    app = create_app(service, CONFIG.model_copy(update={"limits": LIMITS}))

    def connect_from(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1234))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)

    return connect_from


async def trickle(pause_s: float, parts: int = 10**6, part: bytes = b" ") -> AsyncIterator[bytes]:
    yield b"{"
    for _ in range(parts):
        await asyncio.sleep(pause_s)
        yield part


def start(client: httpx.AsyncClient, count: int, **arguments: Any) -> list[asyncio.Task[Any]]:
    """Send bodies that take long, and return the tasks of their requests."""
    arguments = {"pause_s": 1, "part": b" " * 200, **arguments}
    headers = {"Content-Type": "application/json"}
    return [
        asyncio.create_task(client.post(PATH, content=trickle(**arguments), headers=headers))
        for _ in range(count)
    ]


async def stop(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_unfinished_body_takes_no_place_of_those_in_flight(connect: Connect) -> None:
    async with connect("10.0.0.1") as client:
        slow = start(client, 3)
        await asyncio.sleep(5)
        assert (await client.post(PATH, content=BODY)).status_code == 200
        await stop(slow)


async def test_a_whole_body_is_never_shut_out(connect: Connect) -> None:
    async with connect("10.0.0.1") as slow_client, connect("10.0.0.2") as client:
        slow = start(slow_client, 50)
        for _ in range(20):
            await asyncio.sleep(0.1)
            for sender in (slow_client, client):
                assert (await sender.post(PATH, content=BODY)).status_code == 200
        refused = [task.result() for task in slow if task.done()]
        assert len(refused) >= 50 - LIMITS.max_unfinished_bodies_per_client
        assert {response.status_code for response in refused} == {408}
        assert refused[0].json() == {"detail": "body: too slow, while others wait for its place"}
        await stop(slow)


async def test_the_client_with_the_most_gives_way(connect: Connect) -> None:
    async with (
        connect("10.0.0.1") as greedy,
        connect("10.0.0.2") as second,
        connect("10.0.0.3") as third,
    ):
        first = start(greedy, 4)
        await asyncio.sleep(1)
        others = start(second, 2)
        await asyncio.sleep(1)
        others += start(third, 1)
        await asyncio.sleep(1)
        assert [task.done() for task in first] == [True, False, False, False]
        assert not any(task.done() for task in others)
        await stop(first + others)


@pytest.mark.parametrize(
    ("arguments", "seconds", "message"),
    [
        ({"pause_s": 60}, 10, "body: no data received; the limit is 10 seconds"),
        ({"pause_s": 9, "part": b" "}, 10, "body: 0 bytes a second; the limit is 100"),
        ({"pause_s": 1, "part": b" " * 50}, 20, "body: 49 bytes a second; the limit is 100"),
        ({"pause_s": 1, "part": b" " * 200}, 30, "body: not complete; the limit is 30 seconds"),
    ],
)
async def test_a_slow_body_ends_in_time(
    connect: Connect, arguments: dict[str, Any], seconds: float, message: str
) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with connect("10.0.0.1") as client:
        (task,) = start(client, 1, **arguments)
        response = await task
    assert response.status_code == 408
    assert response.json() == {"detail": message}
    assert loop.time() - started == pytest.approx(seconds, rel=0.12)


async def test_the_requests_own_timeout_covers_its_body(connect: Connect) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    headers = {"Content-Type": "application/json", "X-Request-Timeout": "5"}
    content = trickle(1, part=b" " * 200)
    async with connect("10.0.0.1") as client:
        response = await client.post(PATH, content=content, headers=headers)
    assert response.status_code == 408
    assert response.json() == {"detail": "body: not complete; the limit is 5 seconds"}
    assert loop.time() - started == pytest.approx(5, rel=0.1)


async def test_a_slow_body_within_the_limits_is_read(connect: Connect) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for start in range(0, len(BODY), 60):
            yield BODY[start : start + 60]
            await asyncio.sleep(0.5)

    async with connect("10.0.0.1") as client:
        assert (await client.post(PATH, content=slowly())).status_code == 200


async def test_all_bodies_together_hold_no_more_than_their_budget(service: FakeService) -> None:
    limits = LIMITS.model_copy(update={"max_unfinished_bytes": 20_000})
    app = create_app(service, CONFIG.model_copy(update={"limits": limits}))

    def connect_from(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)

    async with connect_from("10.0.0.1") as greedy, connect_from("10.0.0.2") as other:
        held = start(greedy, 3, part=b" " * 3000)
        small = start(other, 1, part=b" " * 200)
        await asyncio.sleep(4.5)
        assert any(task.done() for task in held)
        assert not small[0].done()
        await stop(held + small)


async def test_a_part_of_a_lost_body_counts_no_more() -> None:
    bodies = UnfinishedBodies(9, 1, 1000)
    with bodies.enter("10.0.0.1") as first:
        first.grow(400)
        with bodies.enter("10.0.0.1") as second:
            assert first.is_lost
            first.grow(400)  # it was on its way
            second.grow(700)
            assert not second.is_lost
    assert bodies._bytes == 0


async def test_an_upload_gives_way_to_newer_ones() -> None:
    shared = Shared(CONFIG)
    bodies = BodyReader(LIMITS, 600, shared.bodies, shared.uploads, {"/v1/files": 10**6})
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "headers": [(b"content-length", b"1000")],
        "client": ("10.0.0.1", 1),
    }

    async def stall() -> Any:
        await asyncio.sleep(3600)

    async with AsyncExitStack() as stack:
        receivers: list[asyncio.Future[Any]] = []
        for _ in range(MAX_UPLOADS_PER_CLIENT):
            _, receive = await stack.enter_async_context(bodies.read(scope, stall))
            receivers.append(asyncio.ensure_future(receive()))
        await asyncio.sleep(1)
        assert not any(task.done() for task in receivers)
        await stack.enter_async_context(bodies.read(scope, stall))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in receivers].count(True) == 1
        with pytest.raises(HTTPException, match="408"):
            receivers[0].result()
        for task in receivers:
            task.cancel()
        await asyncio.gather(*receivers, return_exceptions=True)


async def test_a_place_that_ends_at_the_same_moment_can_be_taken(connect: Connect) -> None:
    async with connect("10.0.0.1") as client:
        slow = start(client, 4, pause_s=60)
        await asyncio.sleep(10)  # their own timeouts end now
        responses = await asyncio.gather(*(client.post(PATH, content=BODY) for _ in range(8)))
        assert {response.status_code for response in responses} <= {200, 503}
        assert responses[0].status_code == 200
        await stop(slow)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_an_ipv6_network_is_one_client(address: str, client: str) -> None:
    assert client_of((address, 1)) == client
    assert client_of(None) == ""


async def test_a_client_that_leaves_frees_its_place(connect: Connect) -> None:
    async with connect("10.0.0.1") as client:
        for _ in range(3):
            await stop(start(client, 4))
        slow = start(client, 4)
        await asyncio.sleep(1)
        assert not any(task.done() for task in slow)
        await stop(slow)
