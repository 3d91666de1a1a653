"""Requests whose replica of the ingress dies, behind a proxy that drops them then."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from raylens.api.middleware import REPEATED_HEADER, WAITED_HEADER
from raylens.api.proxy_retries import MAX_ATTEMPTS, PAUSE_S, RetryMiddleware
from raylens.api.refusals import RefusalMiddleware
from testing.virtual_time import VirtualTimePolicy
from tests.unit.raylens.api.conftest import CONFIG, FakeService
from tests.unit.raylens.api.test_client_limits import make_app

CHAT = "/v1/chat/completions"
JOBS = "/api/v1/jobs"
PARTS = (b"first", b"second")
SMALL = 1000
"""Bytes of one client's room."""
FITS = b"x" * (SMALL - 100)
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"answer"}
ANSWER = (START, END)
DIES: Sequence[Message] = ()


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@dataclass
class Proxy:
    """Serve's proxy: each attempt reads the body, sends some messages, and returns."""

    attempts: Sequence[Sequence[Message]]
    bodies: list[list[bytes]] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    reads_body: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = self.attempts[len(self.headers)]
        scope["root_path"] = "changed"  # as Serve's does
        self.headers.append(Headers(scope=scope))
        if self.reads_body:
            self.bodies.append(await read(receive))
        for message in messages:
            await send(message)


async def read(receive: Receive) -> list[bytes]:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return [*parts, b"disconnected"]
        parts.append(message["body"])
        if not message["more_body"]:
            return parts


def make_messages(parts: Sequence[bytes], disconnects: bool) -> Iterator[Message]:
    last = len(parts) - 1
    for index, part in enumerate(parts):
        more = disconnects or index < last
        yield {"type": "http.request", "body": part, "more_body": more}
    yield {"type": "http.disconnect"}


async def send(
    app: Any,
    path: str = CHAT,
    method: str = "POST",
    parts: Sequence[bytes] = PARTS,
    disconnects: bool = False,
    client: str = "192.0.2.1",
    **headers: str,
) -> list[Message]:
    """Send a request, and return the messages of its answer."""
    names = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": (client, 1),
        "headers": list(names.items()),
    }
    incoming = make_messages(parts, disconnects)
    answer: list[Message] = []

    async def receive() -> Message:
        return next(incoming)

    async def note(message: Message) -> None:
        answer.append(message)

    await app(scope, receive, note)
    return answer


def parse(answer: Sequence[Message]) -> tuple[int, Headers, Any]:
    start, body = answer
    return start["status"], Headers(raw=start["headers"]), json.loads(body["body"])


async def test_a_request_goes_to_another_replica_with_its_whole_body() -> None:
    proxy = Proxy([DIES, ANSWER])
    assert await send(RetryMiddleware(proxy)) == [*ANSWER]
    assert proxy.bodies == [[*PARTS], [b"".join(PARTS)]]
    first, second = (headers["x-request-id"] for headers in proxy.headers)
    assert first == second


async def test_a_request_keeps_its_own_id() -> None:
    proxy = Proxy([ANSWER])
    await send(RetryMiddleware(proxy), x_request_id="own")
    assert proxy.headers[0].getlist("x-request-id") == ["own"]


@pytest.mark.parametrize("request_id", ["a b", "a\tb", "x" * 129, ""])
async def test_an_id_that_the_application_refuses_is_not_echoed(
    request_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = RetryMiddleware(Proxy([DIES]))
    _, headers, _ = parse(await send(app, JOBS, x_request_id=request_id))
    assert "x-request-id" not in headers
    assert caplog.messages[0].startswith(f"attempt 1 of POST '{JOBS}' (-): ")


@pytest.mark.parametrize("messages", [DIES, [START]])
async def test_a_path_breaks_no_line_of_the_log(
    messages: Sequence[Message], caplog: pytest.LogCaptureFixture
) -> None:
    await send(RetryMiddleware(Proxy([messages])), "/x\nforged" + 9999 * "y")
    (line,) = caplog.messages
    assert "POST '/x\\nforgedyyy" in line
    assert len(line.splitlines()) == 1
    assert len(line) < 400


async def test_a_request_that_kills_its_replicas_is_tried_three_times() -> None:
    proxy = Proxy([DIES] * 10)
    status, headers, body = parse(await send(RetryMiddleware(proxy)))
    assert len(proxy.bodies) == MAX_ATTEMPTS == 3
    assert (status, headers["retry-after"]) == (503, "1")
    assert body["error"]["code"] == "overloaded"
    assert headers["x-request-id"] == proxy.headers[0]["x-request-id"]


@pytest.mark.parametrize(
    ("path", "method"), [(JOBS, "POST"), (f"{JOBS}/x", "DELETE"), ("/v1/batches", "POST")]
)
async def test_what_changes_something_is_refused_instead(path: str, method: str) -> None:
    proxy = Proxy([DIES, ANSWER])
    status, headers, body = parse(await send(RetryMiddleware(proxy), path, method))
    assert (status, headers["retry-after"]) == (503, "1")
    assert "has died" in str(body)
    assert len(proxy.bodies) == 1


@pytest.mark.parametrize("path", [JOBS, "/caption/generate", "/v1/batches", f"/vlm{JOBS}"])
async def test_a_key_allows_another_attempt(path: str) -> None:
    app = RetryMiddleware(Proxy([DIES, ANSWER]))
    assert await send(app, path, idempotency_key="a") == [*ANSWER]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (f"{JOBS}/x", "DELETE"),  # of a canceled job, the second one removes it
        (f"{JOBS}/x", "PUT"),
        (f"{JOBS}/x/cancel", "POST"),
        (f"{JOBS}/x/deliveries/1/redeliver", "POST"),
        ("/v1/files", "POST"),
    ],
)
async def test_a_key_allows_none_where_the_application_ignores_it(path: str, method: str) -> None:
    proxy = Proxy([DIES, ANSWER])
    status, _, _ = parse(await send(RetryMiddleware(proxy), path, method, idempotency_key="a"))
    assert (status, len(proxy.bodies)) == (503, 1)


async def test_a_safe_method_allows_another_attempt() -> None:
    app = RetryMiddleware(Proxy([DIES, ANSWER]))
    assert await send(app, f"{JOBS}/x", "GET") == [*ANSWER]


@pytest.mark.parametrize("prefix", ["", "/vlm", "/a/v1"])
async def test_what_is_repeated_of_all_posts_of_the_application(
    prefix: str, service: FakeService
) -> None:
    paths = make_app(service, CONFIG).openapi()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    repeated = set()
    for path in posts:
        proxy = Proxy([DIES, ANSWER])
        await send(RetryMiddleware(proxy), prefix + path)
        if len(proxy.bodies) == 2:
            repeated.add(path)
    assert posts - repeated == {
        "/api/v1/jobs",
        "/api/v1/jobs/{job_id}/cancel",
        "/api/v1/jobs/{job_id}/deliveries/{number}/redeliver",
        "/api/v1/pipeline/load",
        "/api/v1/plugins",
        "/api/v1/watches",
        "/caption/generate",
        "/clear_vram",
        "/v1/batches",
        "/v1/batches/{batch_id}/cancel",
        "/v1/files",
    }


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (CHAT, {"error": {"message", "type", "param", "code"}}),
        (f"/vlm{CHAT}", {"error": {"message", "type", "param", "code"}}),
        ("/vlm/api/generate", {"error": None}),
        ("/vlm/v1/caption", {"detail": None}),
        ("/vlm/api/v1/generate", {"detail": None}),
    ],
)
async def test_a_refusal_has_the_shape_of_its_dialect_behind_any_prefix(
    path: str, shape: dict[str, Any]
) -> None:
    _, _, body = parse(await send(RetryMiddleware(Proxy([DIES] * MAX_ATTEMPTS)), path))
    assert {k: set(v) if isinstance(v, dict) else None for k, v in body.items()} == shape


async def test_nobody_works_for_a_client_that_has_left() -> None:
    proxy = Proxy([DIES, ANSWER])
    assert await send(RetryMiddleware(proxy), disconnects=True) == []
    assert len(proxy.bodies) == 1


def begun(media_type: str, *texts: str) -> list[Message]:
    headers = [(b"content-type", media_type.encode())]
    return [
        {**START, "headers": headers},
        *(
            {"type": "http.response.body", "body": text.encode(), "more_body": True}
            for text in texts
        ),
    ]


@pytest.mark.parametrize(
    ("path", "media_type", "sent", "last"),
    [
        (CHAT, "text/event-stream; charset=utf-8", "data: {}\n\n", 'data: {"error":'),
        (f"/vlm{CHAT}", "text/event-stream", "data: {}\n\n", 'data: {"error":'),
        ("/vlm/v1/responses", "text/event-stream", "data: {}\n\n", 'event: error\ndata: {"type":'),
        ("/vlm/api/chat", "application/x-ndjson", "{}\n", '{"error": "the'),
        ("/v1/caption", "text/event-stream", "data: {}\n\n", 'data: {"detail":'),
        ("/v1/responses", "text/event-stream", "data: {}\n\n", 'event: error\ndata: {"type":'),
        ("/api/chat", "application/x-ndjson", "{}\n", '{"error":'),
    ],
)
async def test_a_stream_that_has_begun_ends_with_an_error_event(
    path: str, media_type: str, sent: str, last: str
) -> None:
    proxy = Proxy([begun(media_type, sent), ANSWER])
    *_, end = await send(RetryMiddleware(proxy), path)
    assert end["body"].decode().startswith(last)
    assert b"the answer broke off" in end["body"]
    assert b"died" not in end["body"]  # the application may have failed instead
    assert not end.get("more_body", False)
    assert len(proxy.bodies) == 1


@pytest.mark.parametrize(
    ("media_type", "sent"), [("text/event-stream", "data: {"), ("application/json", "{")]
)
async def test_what_broke_off_elsewhere_stays_incomplete(media_type: str, sent: str) -> None:
    messages = begun(media_type, sent)
    assert await send(RetryMiddleware(Proxy([messages, ANSWER]))) == messages


async def test_events_of_a_job_break_off_so_that_clients_connect_again() -> None:
    messages = begun("text/event-stream", "data: {}\n\n")
    app = RetryMiddleware(Proxy([messages, ANSWER]))
    assert await send(app, f"{JOBS}/x/events", "GET") == messages


async def test_a_body_beyond_the_room_passes_but_is_not_repeated() -> None:
    proxy = Proxy([DIES, DIES, ANSWER])
    app = RetryMiddleware(proxy, max_kept_bytes=4 * SMALL)
    status, _, _ = parse(await send(app, parts=[b"x" * SMALL]))
    assert (status, proxy.bodies) == (503, [[b"x" * SMALL]])
    # The room is free again for the next one.
    assert await send(app, parts=[FITS]) == [*ANSWER]
    assert proxy.bodies[1:] == [[FITS], [FITS]]


async def test_a_body_that_arrives_while_it_is_repeated_is_whole() -> None:
    bodies: list[list[bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if len(bodies) < 2:
            bodies.append([(await receive())["body"] for _ in range(len(bodies) + 1)])
            return
        bodies.append(await read(receive))
        await send(START)
        await send(END)

    assert await send(RetryMiddleware(app), parts=[b"a", b"b", b"c", b"d"]) == [*ANSWER]
    assert bodies == [[b"a"], [b"a", b"b"], [b"ab", b"c", b"d"]]


class Holder:
    """Holds requests that have sent their bodies, and lets their replicas die once told to."""

    def __init__(self) -> None:
        self.dies = asyncio.Event()
        self.answers: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        if not self.dies.is_set():
            await self.dies.wait()
            return
        self.answers[scope["client"][0]] += 1
        await send(START)
        await send(END)


async def test_the_bodies_of_one_client_leave_room_for_those_of_others() -> None:
    holder = Holder()
    app = RetryMiddleware(holder, max_kept_bytes=4 * SMALL)
    clients = ["a"] * 9 + ["b", "c", "d", "e"]
    calls = [asyncio.create_task(send(app, parts=[FITS], client=client)) for client in clients]
    await asyncio.sleep(1)
    holder.dies.set()
    await asyncio.gather(*calls)
    assert holder.answers == {"a": 1, "b": 1, "c": 1, "d": 1}
    await send(app, parts=[FITS], client="e")
    assert holder.answers["e"] == 1


async def test_what_is_not_repeated_takes_no_room() -> None:
    holder = Holder()
    app = RetryMiddleware(holder, max_kept_bytes=4 * SMALL)
    upload = asyncio.create_task(send(app, "/v1/files", parts=[FITS], client="a"))
    call = asyncio.create_task(send(app, parts=[FITS], client="a"))
    await asyncio.sleep(1)
    holder.dies.set()
    await asyncio.gather(upload, call)
    assert holder.answers == {"a": 1}


async def test_a_body_in_tiny_parts_takes_no_more_than_its_size() -> None:
    taken: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before, _ = tracemalloc.get_traced_memory()
        while (await receive())["more_body"]:
            pass
        taken.append(tracemalloc.get_traced_memory()[0] - before)

    tracemalloc.start()
    try:
        await send(RetryMiddleware(app), parts=[b"x"] * 10_000)
    finally:
        tracemalloc.stop()
    assert len(taken) == MAX_ATTEMPTS
    assert max(taken) < 20_000


async def test_a_body_that_is_read_after_the_answer_has_begun_is_whole() -> None:
    bodies: list[list[bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not bodies:
            bodies.append(await read(receive))
            return
        await send(START)
        bodies.append(await read(receive))
        await send(END)

    assert await send(RetryMiddleware(app)) == [*ANSWER]
    assert bodies == [[*PARTS], [b"".join(PARTS)]]


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_only_the_proxy_marks_what_is_repeated(method: str) -> None:
    proxy = Proxy([DIES, DIES, ANSWER])
    await send(RetryMiddleware(proxy), method=method, x_raylens_repeated="9")
    marks = [headers.getlist(REPEATED_HEADER) for headers in proxy.headers]
    assert marks == [[], ["1"], ["1"]]


async def test_the_deadline_includes_the_attempts_before() -> None:
    proxy = Proxy([DIES, ANSWER])
    times = iter([100.0, 100.0, 107.5])
    app = RetryMiddleware(RefusalMiddleware(proxy), clock=lambda: next(times))
    await send(app, x_raylens_waited="99.000")
    assert [headers[WAITED_HEADER] for headers in proxy.headers] == ["0.000", "7.500"]
    assert PAUSE_S > 0
