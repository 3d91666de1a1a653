"""What the proxy does while a server, or the proxy itself, drains."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.draining import DRAINS, SECONDS_LEFT, DrainMiddleware
from testing.virtual_time import VirtualTimePolicy

EVENTS = "/api/v1/jobs/1/events"
STREAM = "/v1/chat/completions"


@dataclass
class Server:
    """Streams until it is told to end. It also is what the proxy knows of drains."""

    drain: dict[str, Any] | None = None
    proxy_drains: bool = False
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    paths: list[str] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)

    def middleware(self) -> DrainMiddleware:
        return DrainMiddleware(self, lambda: self.drain, lambda app: lambda: self.proxy_drains)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        answer: Response = JSONResponse({"path": scope["path"]})
        if scope["path"] in (EVENTS, STREAM):
            answer = StreamingResponse(self._stream(scope["path"]), media_type="text/event-stream")
        elif scope["path"] == "/missing/events":
            answer = JSONResponse({}, 404)
        elif scope["path"] == "/body":
            answer = JSONResponse({"size": len(await Request(scope, receive).body())})
        await answer(scope, receive, send)

    async def _stream(self, path: str) -> AsyncIterator[str]:
        yield "data: first\n\n"
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.canceled.append(path)
            raise
        yield "data: last\n\n"


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(server.middleware())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def begin(call: Any) -> asyncio.Task[httpx.Response]:
    task = asyncio.create_task(call)
    await asyncio.sleep(1)
    return task


async def test_a_server_that_drains_refuses_new_requests_and_ends_the_others(
    server: Server, http: httpx.AsyncClient
) -> None:
    begun = await begin(http.post(STREAM))
    server.drain = {"jobs": 2}
    refused = await http.post("/v1/caption", content=b"x" * 100, headers={"X-Request-ID": "own"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "10"
    assert refused.headers["connection"] == "close"
    assert refused.headers["x-request-id"] == "own"
    assert "about to stop" in refused.json()["detail"]
    for path in (STREAM, f"/prefix{STREAM}"):
        openai = await http.post(path)
        assert openai.status_code == 503
        assert openai.json()["error"]["code"] == "overloaded"
    assert server.paths == [STREAM]
    server.may_end.set()
    answer = await begun
    assert answer.text == "data: first\n\ndata: last\n\n"


async def test_ready_tells_what_is_left_and_health_goes_on(
    server: Server, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/prefix/ready")).json() == {"path": "/prefix/ready"}
    begun = [await begin(http.post(STREAM)) for _ in range(2)]
    server.drain = {"jobs": 2}
    for path in ("/ready", "/prefix/ready", "/-/healthz"):
        ready = await http.get(path)
        assert ready.status_code == 503
        assert ready.json() == {"status": "draining", "jobs": 2, "requests": 2}
    for path in ("/health", "/live"):
        assert (await http.get(path)).status_code == 200
    server.may_end.set()
    await asyncio.gather(*begun)
    assert (await http.get("/ready")).json()["requests"] == 0


@pytest.mark.parametrize("by", ["server", "proxy"])
async def test_a_stream_of_events_is_handed_over(
    server: Server, http: httpx.AsyncClient, by: str
) -> None:
    begun = await begin(http.get(EVENTS))
    tokens = await begin(http.post(STREAM))
    if by == "server":
        server.drain = {}
    else:
        server.proxy_drains = True
    answer = await asyncio.wait_for(begun, 2)
    first, handover = answer.text.removesuffix("\n\n").split("\n\n")
    assert first == "data: first"
    name, milliseconds = handover.split(": ")
    assert (name, 250 <= int(milliseconds) <= 2000) == ("retry", True)
    assert server.canceled == [EVENTS]
    assert not tokens.done()
    server.may_end.set()
    assert (await tokens).text.endswith("data: last\n\n")


async def test_a_proxy_that_drains_answers_and_closes_its_connections(
    server: Server, http: httpx.AsyncClient
) -> None:
    assert "connection" not in (await http.get("/x")).headers
    server.proxy_drains = True
    answer = await http.get("/x")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert (await http.get("/-/healthz")).status_code == 200  # Serve's own answer
    events = await asyncio.wait_for(http.get(EVENTS), 2)  # the client gets the state, and goes on
    assert events.text.startswith("data: first\n\nretry: ")
    assert (await http.get("/missing/events")).status_code == 404


async def test_a_proxy_that_is_needed_again_streams_as_before(
    server: Server, http: httpx.AsyncClient
) -> None:
    server.proxy_drains = True
    await asyncio.wait_for(http.get(EVENTS), 2)
    server.proxy_drains = False
    begun = await begin(http.get(EVENTS))
    await asyncio.sleep(60)
    assert not begun.done()
    server.proxy_drains = True
    assert (await asyncio.wait_for(begun, 2)).text.startswith("data: first\n\nretry: ")


async def test_events_that_end_by_themselves_end_as_ever(
    server: Server, http: httpx.AsyncClient
) -> None:
    server.may_end.set()
    assert (await http.get(EVENTS)).text == "data: first\n\ndata: last\n\n"
    assert server.canceled == []


async def test_the_body_of_a_refused_request_is_read_but_not_for_long(server: Server) -> None:
    server.drain = {}
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def refuse(headers: list[tuple[bytes, bytes]]) -> float:
        sent.clear()
        reads = 0

        async def receive() -> Message:
            nonlocal reads
            reads += 1
            await asyncio.sleep(0.3)
            return {"type": "http.request", "body": b"x", "more_body": True}

        scope = {"type": "http", "method": "POST", "path": "/v1/query", "headers": headers}
        begun_at = asyncio.get_running_loop().time()
        await server.middleware()(scope, receive, send)
        assert sent[0]["status"] == 503
        assert bool(reads) is not bool(headers)
        return asyncio.get_running_loop().time() - begun_at

    assert await refuse([]) == pytest.approx(1.0)
    assert await refuse([(b"expect", b"100-continue")]) == 0
    assert json.loads(sent[1]["body"])["detail"]


async def test_a_web_socket_is_refused_as_by_a_restart(server: Server) -> None:
    server.drain = {}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "headers": []}
    app: ASGIApp = server.middleware()
    await app(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1012}]
    assert server.paths == []


class WebSocket:
    """A client's WebSocket, and the application behind it, which echoes what it gets.

    If the server drains, the application says that, goes on until ``may_end``, and closes.
    """

    def __init__(self, is_stuck: bool = False) -> None:
        self.drain: dict[str, Any] | None = None
        self.proxy_drains = False
        self.to_server: asyncio.Queue[Message] = asyncio.Queue()
        self.from_server: asyncio.Queue[Message] = asyncio.Queue()
        self.seen: list[Message] = []
        self.may_end = asyncio.Event()
        self.was_canceled = False
        self._is_stuck = is_stuck

    async def open(self) -> asyncio.Task[None]:
        """Connect, and wait until the application has accepted."""
        app = DrainMiddleware(self._echo, lambda: self.drain, lambda app: lambda: self.proxy_drains)
        self.to_server.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/ws", "headers": []}
        call: Any = app(scope, self.to_server.get, self._send)
        running = asyncio.create_task(call)
        assert await self.receive() == {"type": "websocket.accept"}
        return running

    def send(self, text: str) -> None:
        self.to_server.put_nowait({"type": "websocket.receive", "text": text})

    async def receive(self) -> Message:
        return await asyncio.wait_for(self.from_server.get(), 1000)

    async def _send(self, message: Message) -> None:
        self.from_server.put_nowait(message)
        if message["type"] == "websocket.close":  # as a server does
            self.to_server.put_nowait({"type": "websocket.disconnect", "code": message["code"]})

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while True:
                self.seen.append(message := await receive())
                if message["type"] == "websocket.connect":
                    await send({"type": "websocket.accept"})
                elif message["type"] == "websocket.disconnect" and not self._is_stuck:
                    return
                elif message.get(DRAINS):
                    await send({"type": "websocket.send", "text": "the last one"})
                    await self.may_end.wait()
                    await send({"type": "websocket.close", "code": 1012, "reason": "a restart"})
                elif message["type"] == "websocket.receive":
                    await send({"type": "websocket.send", "text": message["text"]})
        except asyncio.CancelledError:
            self.was_canceled = True
            raise


@pytest.mark.parametrize("by", ["server", "proxy"])
async def test_a_web_socket_is_closed_by_its_application_after_the_answer_that_runs(
    by: str,
) -> None:
    socket = WebSocket()
    running = await socket.open()
    await asyncio.sleep(60)
    socket.send("hello")
    assert await socket.receive() == {"type": "websocket.send", "text": "hello"}
    socket.drain, socket.proxy_drains = ({"jobs": 0}, False) if by == "server" else (None, True)
    began_at = asyncio.get_running_loop().time()
    assert (await socket.receive())["text"] == "the last one"
    assert asyncio.get_running_loop().time() - began_at <= 1
    socket.send("too late")
    await asyncio.sleep(500)
    assert socket.from_server.empty()
    socket.may_end.set()
    close = await socket.receive()
    assert close == {"type": "websocket.close", "code": 1012, "reason": "a restart"}
    await asyncio.wait_for(running, 1)
    assert [message["type"] for message in socket.seen] == [
        "websocket.connect",
        "websocket.receive",
        "websocket.receive",  # of the drain
        "websocket.disconnect",
    ]
    assert not socket.was_canceled


@pytest.mark.parametrize(("seconds_left", "closes_after"), [(None, 595), (30, 25), (2, 0)])
async def test_a_web_socket_that_its_application_keeps_is_closed_in_time(
    seconds_left: float | None, closes_after: float
) -> None:
    socket = WebSocket(is_stuck=True)
    running = await socket.open()
    began_at = asyncio.get_running_loop().time()
    socket.drain = {} if seconds_left is None else {SECONDS_LEFT: seconds_left}
    if closes_after:
        assert (await socket.receive())["text"] == "the last one"
    assert await socket.receive() == {"type": "websocket.close", "code": 1012}
    after = asyncio.get_running_loop().time() - began_at
    assert closes_after <= after <= closes_after + 1
    await asyncio.wait_for(running, 6)
    assert socket.was_canceled
    assert socket.from_server.empty()


async def test_what_an_open_web_socket_gets_until_the_drain_is_not_lost() -> None:
    """A call that was canceled has taken nothing."""
    taken: list[Message] = []
    to_server: asyncio.Queue[Message] = asyncio.Queue()

    async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(5):
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    taken.append(await receive())

    async def send(message: Message) -> None: ...

    app = DrainMiddleware(impatient)
    call: Any = app({"type": "websocket", "path": "/ws"}, to_server.get, send)
    running = asyncio.create_task(call)
    for after, number in ((5, 1), (9, 2), (20, 3)):
        await asyncio.sleep(after)
        to_server.put_nowait({"type": "websocket.receive", "text": str(number)})
    await running
    assert [message["text"] for message in taken] == ["1", "2", "3"]


async def test_a_client_that_leaves_during_a_drain_is_noticed() -> None:
    socket = WebSocket()
    running = await socket.open()
    socket.proxy_drains = True
    assert (await socket.receive())["text"] == "the last one"
    socket.to_server.put_nowait({"type": "websocket.disconnect", "code": 1001})
    socket.may_end.set()
    await asyncio.wait_for(running, 1)
    assert socket.seen[-1] == {"type": "websocket.disconnect", "code": 1001}


async def test_a_web_socket_of_a_proxy_that_drains_ends_once_it_is_open() -> None:
    socket = WebSocket()
    socket.proxy_drains = True
    socket.may_end.set()
    running = await socket.open()
    assert [(await socket.receive())["type"] for _ in range(2)] == [
        "websocket.send",
        "websocket.close",
    ]
    await asyncio.wait_for(running, 1)
