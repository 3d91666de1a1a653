from __future__ import annotations

import httpx
import pytest

from raylens.cli.client import Client
from raylens.cli.errors import StatusError, Unreachable
from tests.unit.cli.fake_server import skip


def transport_of(*responses: httpx.Response) -> httpx.MockTransport:
    """Return a transport that gives these responses in turn."""
    remaining = iter(responses)
    return httpx.MockTransport(lambda request: next(remaining))


async def test_a_busy_server_is_retried_until_the_patience_ends() -> None:
    busy = httpx.Response(503, json={"detail": "overloaded"}, headers={"Retry-After": "0"})
    job = httpx.Response(200, json={"id": "a"})
    async with Client(transport=transport_of(busy, job)) as client:
        assert await client.get("a") == {"id": "a"}
    async with Client(patience_s=0, transport=transport_of(busy)) as client:
        with pytest.raises(StatusError, match=r"^overloaded$"):
            await client.get("a")


async def test_each_reason_why_a_server_is_busy_is_reported_once() -> None:
    full, stuffed = (
        httpx.Response(status, json={"detail": detail}, headers={"Retry-After": "0"})
        for status, detail in ((429, "50 jobs wait"), (507, "pictures: 9 MB are free"))
    )
    transport = transport_of(full, full, stuffed, full, stuffed, httpx.Response(200, json={}))
    messages: list[str] = []
    async with Client(
        patience_s=0,
        waits_while_busy=True,
        notify=messages.append,
        transport=transport,
        sleep=skip,
    ) as client:
        await client.submit(b"{}", "key")
    assert messages == [
        "waiting for the server: 50 jobs wait",
        "waiting for the server: pictures: 9 MB are free",
    ]


async def test_a_restarting_server_is_retried() -> None:
    transport = transport_of(
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(502),
        httpx.Response(200, json={"id": "a"}),
    )
    messages: list[str] = []
    async with Client(notify=messages.append, transport=transport) as client:
        assert await client.get("a") == {"id": "a"}
    assert messages == ["http://127.0.0.1:8000: 500 Internal Server Error; retrying for up to 60 s"]


NO_APPLICATION = "Path '/api/v1/jobs/a' not found. Ping http://.../-/routes for available routes."


async def test_a_proxy_without_an_application_is_waited_for() -> None:
    starting = httpx.Response(404, text=NO_APPLICATION)
    transport = transport_of(starting, starting, httpx.Response(200, json={"id": "a"}))
    async with Client(transport=transport, sleep=skip) as client:
        assert await client.get("a") == {"id": "a"}
    async with Client(patience_s=0, transport=transport_of(starting)) as client:
        with pytest.raises(StatusError, match="available routes") as error:
            await client.get("a")
    assert error.value.status != 404  # or a job would be taken for one that is gone


async def test_a_404_of_the_server_is_an_answer() -> None:
    missing = httpx.Response(404, json={"detail": "no such job"})
    async with Client(transport=transport_of(missing)) as client:
        with pytest.raises(StatusError, match="no such job") as error:
            await client.get("a")
    assert error.value.status == 404


async def test_a_stream_that_is_handed_over_goes_on_after_its_last_event() -> None:
    first = b'event: state\ndata: {"id":"a","status":"queued"}\nid: 7f\n\nretry: 250\n\n'
    second = b': keepalive\n\nevent: state\ndata: {"id":"a","status":"succeeded"}\nid: 80\n\n'
    bodies = [first, second]
    seen: list[str | None] = []
    waits: list[float] = []
    messages: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("last-event-id"))
        return httpx.Response(200, content=bodies.pop(0))

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    transport = httpx.MockTransport(respond)
    async with Client(transport=transport, sleep=sleep, notify=messages.append) as client:
        states = [job["status"] async for job in client.follow("a")]
    assert states == ["queued", "succeeded"]
    assert seen == [None, "7f"]
    assert waits == [0.25]
    assert messages == []  # it is no outage


async def test_a_response_that_is_not_json_is_an_error() -> None:
    async with Client(transport=transport_of(httpx.Response(200, text="<html>"))) as client:
        with pytest.raises(StatusError, match="is this a raylens server"):
            await client.get("a")


async def test_a_request_that_always_fails_is_distinguished_from_an_outage() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            raise httpx.WriteError("broken pipe")
        return httpx.Response(200, json={})

    transport = httpx.MockTransport(respond)
    async with Client(patience_s=0.0, transport=transport) as client:
        with pytest.raises(Unreachable) as outage:
            await client.submit(b"{}", "key")
        assert not outage.value.server_is_up
    async with Client(patience_s=0.1, transport=transport) as client:
        client.last_response_at = float("inf")  # another request was answered meanwhile
        with pytest.raises(Unreachable) as failure:
            await client.submit(b"{}", "key")
        assert failure.value.server_is_up
