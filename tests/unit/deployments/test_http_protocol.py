"""The limits of Serve's proxy on connections and on the heads of requests, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from deployments import http_protocol
from deployments.http_protocol import BoundedProtocol, install
from deployments.ray_environment import ENVIRONMENT
from raylens.api.draining import DrainMiddleware
from raylens.api.proxy_retries import RetryMiddleware
from raylens.api.refusals import RefusalMiddleware

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Any]
GET = b"GET /path HTTP/1.1\r\nHost: localhost\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path and the headers of a request."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.1)
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    body = json.dumps({"path": scope["path"], "headers": headers}).encode()
    fields = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    config = uvicorn.Config(echo, port=0, http=BoundedProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    @asynccontextmanager
    async def open_connection() -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()

    yield open_connection
    server.should_exit = True
    await serving


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    lines = head.decode().lower().split("\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith("content-length:"))
    return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))


async def ask(connect: Connect, request: bytes) -> tuple[int, Any]:
    async with connect() as (reader, writer):
        writer.write(request)
        return await read_answer(reader)


async def test_requests_pass_and_connections_are_used_again(connect: Connect) -> None:
    async with connect() as (reader, writer):
        for number in range(3):
            body = b"x" * 100_000 * number
            writer.write(GET + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            status, answer = await read_answer(reader)
            assert (status, answer["path"]) == (200, "/path")


@pytest.mark.parametrize(
    "request_head",
    [
        GET + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        GET + b"X: " + b"x" * 20_000_000,
        GET + b"X: x\r\n" * 300 + b"\r\n",
        b"GET /" + b"x" * 20_000_000,
    ],
    ids=["complete", "endless value", "many", "endless target"],
)
async def test_a_large_head_is_refused(connect: Connect, request_head: bytes) -> None:
    status, answer = await ask(connect, request_head)
    assert status == 431
    assert "the limit is 65536 bytes and 200 headers" in answer["detail"]


@pytest.mark.parametrize(
    ("head", "status", "message"),
    [
        (b"no colon\r\n", 400, "Invalid HTTP request"),
    ],
)
async def test_a_bad_header_is_refused_as_json(
    connect: Connect, head: bytes, status: int, message: str
) -> None:
    actual, answer = await ask(connect, GET + head + b"\r\n")
    assert actual == status
    assert answer["detail"].startswith(message)


async def test_headers_on_which_serve_would_fail_are_dropped(connect: Connect) -> None:
    head = b"X-Session-ID: \xff\r\nserve-multiplexed-model-id: \xff\r\nUser-Agent: \xff\r\n"
    status, answer = await ask(connect, GET + head + b"\r\n")
    assert status == 200
    assert set(answer["headers"]) == {"host", "user-agent"}


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/path", b"localhost:8000", 200),
        (b"http://LOCALHOST:8000/path", b"localhost", 200),
        (b"http://evil.example/path", b"localhost", 400),
        (b"http://localhost/path", b"evil.example", 400),
    ],
)
async def test_an_absolute_target_has_the_name_of_the_host(
    connect: Connect, target: bytes, host: bytes, status: int
) -> None:
    request = b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, host)
    assert (await ask(connect, request))[0] == status


async def test_a_head_that_does_not_end_is_a_time_out(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    async with connect() as (reader, writer):
        writer.write(GET)
        assert (await read_answer(reader))[0] == 408
        assert await reader.read() == b""
    async with connect() as (reader, writer):  # after a request that was answered
        writer.write(GET + b"\r\n")
        assert (await read_answer(reader))[0] == 200
        writer.write(b"GET /")
        assert (await read_answer(reader))[0] == 408
    async with connect() as (reader, _):
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_body_that_the_server_has_not_read_is_no_head(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(GET + b"Content-Length: 200000\r\n\r\n")
        assert (await read_answer(reader))[0] == 200
        writer.write(b"x" * 200_000)
        await writer.drain()
        writer.write(GET + b"\r\n")
        assert (await read_answer(reader))[0] == 200


@pytest.mark.parametrize("start", [GET + b"X: ", b"\r\n"], ids=["head", "empty lines"])
async def test_what_follows_a_request_is_limited_in_time(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    """It may come while that request is still being answered, and a byte at a time."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    async with connect() as (reader, writer):
        writer.write(GET.replace(b"/path", b"/slow") + b"\r\n" + start)
        assert (await read_answer(reader))[0] == 200
        rest = b""
        with suppress(ConnectionError):
            for _ in range(100):
                writer.write(start[-1:])
                with suppress(TimeoutError):
                    rest += await asyncio.wait_for(reader.read(1000), 0.05)
                if reader.at_eof():
                    break
        assert reader.at_eof() or writer.is_closing() or reader.exception()
        assert (b"408" in rest) is (start != b"\r\n")


async def test_pipelined_requests_count_once(connect: Connect) -> None:
    for _ in range(5):
        async with connect() as (reader, writer):
            writer.write((GET + b"\r\n") * 3)
            for _ in range(3):
                assert (await read_answer(reader))[0] == 200
    for _ in range(200):
        if not http_protocol.IDLE._addresses:
            break
        await asyncio.sleep(0.01)
    assert (http_protocol.IDLE._count, http_protocol.IDLE._addresses) == (0, {})


async def test_a_head_of_many_parts_is_counted_once(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(GET)
        for number in range(40):
            writer.write(b"X-%d: " % number + b"x" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write(b"\r\n")
        assert (await read_answer(reader))[0] == 200


async def test_the_oldest_idle_connection_gives_way(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_IDLE_PER_ADDRESS", 3)
    async with connect() as first, connect() as second, connect() as third:
        writer = second[1]
        writer.write(GET + b"\r\n")
        assert (await read_answer(second[0]))[0] == 200  # now it is the youngest
        assert (await ask(connect, GET + b"\r\n"))[0] == 200
        assert await asyncio.wait_for(first[0].read(), 10) == b""
        writer.write(GET + b"\r\n")
        assert (await read_answer(second[0]))[0] == 200
        third[1].write(GET + b"\r\n")
        assert (await read_answer(third[0]))[0] == 200


async def test_connections_without_any_request_give_way_first(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_IDLE_PER_ADDRESS", 3)
    async with connect() as (reader, writer):
        writer.write(GET + b"\r\n")
        assert (await read_answer(reader))[0] == 200
        async with connect() as first, connect() as second, connect(), connect():
            assert await asyncio.wait_for(first[0].read(), 10) == b""
            assert await asyncio.wait_for(second[0].read(), 10) == b""
        writer.write(GET + b"\r\n")
        assert (await read_answer(reader))[0] == 200


def test_raylens_run_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    path = ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert path == f"{install.__module__}:{install.__name__}"
    # Serve puts each around those before it: an attempt that is repeated counts as one, each time.
    inner, middle, outer = install()
    assert str(inner.cls) == str(RefusalMiddleware)
    assert str(middle.cls) == str(RetryMiddleware)
    assert str(outer.cls) == str(DrainMiddleware)
    config = uvicorn.Config(echo)
    config.load()
    assert config.http_protocol_class is BoundedProtocol
