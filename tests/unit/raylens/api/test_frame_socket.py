"""Live pictures over a WebSocket: the newest is answered, and every answer ends."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI

from raylens.api.app import create_app
from raylens.api.draining import DRAINS
from raylens.api.shared import Shared
from raylens.core.config import AppConfig
from raylens.core.draining import Draining
from raylens.core.errors import InvalidRequest, ModelFailed, Overloaded
from raylens.core.recipe import BUNDLED
from raylens.core.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    Length,
    MediaFile,
    Query,
    Reasoning,
    Timings,
    VideoPart,
    VisionRequest,
)
from testing.asgi_socket import AsgiSocket, connected
from testing.pictures import encode_picture, gradient
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, PICTURE, FakeService

PATH = "/api/v1/ws"
ALL_TASKS = ("caption", "chat", "query", "detect", "point", "reason")


def picture(number: int) -> bytes:
    return encode_picture(gradient(16 + number, 12))


@dataclass
class GatedService(FakeService):
    """Waits in each answer until it is released, after ``before_gate`` words."""

    before_gate: int = 0
    begun: asyncio.Queue[VisionRequest] = field(default_factory=asyncio.Queue)
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        self.begun.put_nowait(request)
        number = 0
        async for delta in super().generate(request, pictures):
            if number == self.before_gate:
                await self.gate.acquire()
            number += 1
            yield delta


@pytest.fixture
def service() -> FakeService:
    return FakeService(tasks={"smolvlm": ALL_TASKS})


@pytest.fixture
def app(service: FakeService) -> FastAPI:
    return create_app(service, CONFIG)


def with_settings(**settings: Any) -> AppConfig:
    return AppConfig.model_validate({**CONFIG.model_dump(exclude_unset=True), **settings})


def joined(messages: Sequence[dict[str, Any]]) -> str:
    """Add up an answer as VLM Node's client does, which ignores other messages."""
    assert all(isinstance(message["response"], str) for message in messages)
    assert [message["done"] for message in messages] == [False] * (len(messages) - 1) + [True]
    return "".join(message["response"] for message in messages)


async def test_a_picture_without_a_prompt_gets_a_caption(
    app: FastAPI, service: FakeService
) -> None:
    service.timings = Timings(0.001, 0.002, 0.003, 0.004)
    async with connected(app, PATH) as socket:
        socket.send(PICTURE)
        answer = await socket.receive_answer()
    assert joined(answer) == "two red circles"
    (request,) = service.requests
    assert request.task == Caption()
    assert request.stream
    assert service.pictures == [PICTURE]
    ending = answer[-1]
    assert ending["model"] == "smolvlm"
    assert ending["done_reason"] == "stop"
    assert (ending["prompt_eval_count"], ending["eval_count"]) == (7, 3)
    assert ending["total_duration"] >= ending["eval_duration"] >= 0
    assert ending["timings"] == {
        "preprocess_ms": 1.0,
        "queue_ms": 2.0,
        "prefill_ms": 3.0,
        "decode_ms": 4.0,
    }
    assert (ending["frame"], ending["replaced_frames"]) == (1, 0)
    assert ending["age_ms"] >= 0


async def test_a_text_is_the_prompt_until_the_next(app: FastAPI, service: FakeService) -> None:
    async with connected(app, PATH) as socket:
        for prompt in ("How many?", None, "What color?", "  "):
            if prompt is not None:
                socket.send(prompt)
            socket.send(PICTURE)
            await socket.receive_answer()
    tasks = [request.task for request in service.requests]
    assert tasks == [Query("How many?"), Query("How many?"), Query("What color?"), Caption()]


async def test_pictures_come_as_text_too(app: FastAPI, service: FakeService) -> None:
    raw = base64.b64encode(PICTURE).decode()
    async with connected(app, PATH) as socket:
        for content in (DATA_URL, {"image": DATA_URL}, {"image_url": raw}):
            socket.send(content)
            assert joined(await socket.receive_answer()) == "two red circles"
        socket.send({"image": DATA_URL, "prompt": "How many?"})
        settings, *answer = await socket.receive_answer()
        assert settings["type"] == "settings"
        assert joined(answer) == "two red circles"
        socket.send({"image": 3})
        assert "expected a data URL" in (await socket.receive())["error"]
    assert service.pictures == [PICTURE] * 4
    assert service.requests[-1].task == Query("How many?")


async def test_settings_hold_for_the_pictures_after_them(
    app: FastAPI, service: FakeService
) -> None:
    service.reasoning = Reasoning("I see it.")
    async with connected(app, PATH) as socket:
        socket.send({"type": "settings", "task": "detect", "object": "circle", "recipe": "plain"})
        shown = await socket.receive()
        assert (shown["response"], shown["done"]) == ("", False)
        assert shown["settings"]["task"] == "detect"
        socket.send(PICTURE)
        ending = (await socket.receive_answer())[-1]
        assert len(ending["objects"]) == 2
        socket.send({"task": None, "prompt": "Why?", "reasoning": True, "model": "small"})
        await socket.receive()
        socket.send({"sampling": {"max_tokens": 9}})
        await socket.receive()
        socket.send({"sampling": {"temperature": 0.5, "seed": 3}})
        await socket.receive()
        socket.send(PICTURE)
        assert (await socket.receive_answer())[-1]["reasoning"]["text"] == "I see it."
        socket.send({"type": "settings", "task": "caption", "length": "short", "prompt": None})
        await socket.receive()
        socket.send(PICTURE)
        await socket.receive_answer()
        socket.send("And now?")  # captions have no use for it
        socket.send(PICTURE)
        await socket.receive_answer()
    detect, query, caption, last = service.requests
    assert detect.task == Detect("circle")
    assert detect.recipe == BUNDLED["plain"]
    assert query.task == Query("Why?", reasoning=True)
    assert query.sampling.max_tokens == 9
    assert (query.sampling.temperature, query.sampling.seed) == (0.5, 3)
    assert caption.task == Caption(Length.SHORT)
    assert last.task == Query("And now?", reasoning=True)


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ({"type": "settings", "task": "fly"}, "task", "'caption'"),
        ({"type": "settings", "speed": 3}, "speed", "not permitted"),
        ({"type": "settings", "sampling": {"heat": 3}}, "sampling.heat", "not permitted"),
        ({"type": "settings", "sampling": {"max_tokens": 101}}, "max_tokens", "limit is 100"),
        ({"type": "settings", "sampling": 3}, "sampling", "expected an object"),
        ({"type": "settings", "model": "none"}, "model", "known: smolvlm"),
        (
            {"type": "settings", "model": "other", "task": "detect", "object": "x"},
            "task",
            "smolvlm",
        ),
        ({"task": "detect", "prompt": ""}, "prompt", "expected one"),
        ({"type": "settings", "recipe": "soft"}, "recipe", "soft"),
        ({"type": "settings", "frames": 17}, "frames", "limit is 16"),
        ({"type": "settings", "frames": 2, "task": "caption"}, "frames", "one picture"),
        ({"type": "start"}, "type", "known: settings, ping"),
        ("x" * 2001, "prompt", "limit is 2000"),
        ("data:image/png;base64,!!", "picture", "base64"),
        (b"no picture", None, "picture"),
        (PICTURE + bytes(20_000), "picture", "20000"),
    ],
)
async def test_mistakes_are_told_and_change_nothing(
    service: FakeService, content: Any, field: str | None, words: str
) -> None:
    def check(media: MediaFile) -> None:
        if not media.data.startswith(b"\x89PNG"):
            raise InvalidRequest(f"{media.field}: no picture", media.field)

    app = create_app(service, CONFIG, check_media=check)
    async with connected(app, PATH) as socket:
        socket.send("How many?")
        socket.send(content)
        error = await socket.receive()
        assert (error["response"], error["done"]) == ("", True)
        assert words in error["error"]
        assert field is None or error["field"].endswith(field)
        assert 400 <= error["status"] < 500
        socket.send(PICTURE)
        await socket.receive_answer()
    assert [request.task for request in service.requests] == [Query("How many?")]


async def test_text_that_only_looks_like_json_is_a_prompt(
    app: FastAPI, service: FakeService
) -> None:
    prompts = ['{"count": number of circles}', '{"a": 1}', "{}", "[1, 2]", '{"type']
    async with connected(app, PATH) as socket:
        for prompt in prompts:
            socket.send(prompt)
            socket.send(PICTURE)
            await socket.receive_answer()
    assert [request.task for request in service.requests] == [Query(text) for text in prompts]


async def test_only_the_newest_picture_waits() -> None:
    service = GatedService(before_gate=1)
    async with connected(create_app(service, CONFIG), PATH) as socket:
        pictures = [picture(number) for number in range(6)]
        socket.send(pictures[0])
        first = [await socket.receive()]
        for content in pictures[1:5]:
            socket.send(content)
        socket.send({"type": "ping"})
        assert (await socket.receive())["type"] == "pong"  # all were taken by then
        service.gate.release()
        first += await socket.receive_answer()
        assert joined(first) == "two red circles"
        assert {message["frame"] for message in first} == {1}
        assert first[-1]["replaced_frames"] == 3
        # Only after the answer, which they would end for a client that adds up.
        replaced = [await socket.receive() for _ in range(3)]
        assert [message["frame"] for message in replaced] == [2, 3, 4]
        assert all(message["replaced"] and message["done"] for message in replaced)
        service.gate.release()
        second = await socket.receive_answer()
        assert (second[-1]["frame"], second[-1]["replaced_frames"]) == (5, 0)
    assert service.pictures == [pictures[0], pictures[4]]


async def test_a_bad_picture_ends_its_answer_after_the_present_one() -> None:
    service = GatedService(before_gate=1)
    async with connected(create_app(service, CONFIG), PATH) as socket:
        socket.send(PICTURE)
        answer = [await socket.receive()]
        socket.send("data:image/png;base64,!!")
        for _ in range(300):
            socket.send(PICTURE)
        socket.send({"type": "ping"})
        assert (await socket.receive())["type"] == "pong"
        service.gate.release()
        answer += await socket.receive_answer()
        assert joined(answer) == "two red circles"
        assert answer[-1]["replaced_frames"] == 299
        service.gate.release()
        others = [await socket.receive() for _ in range(257)]
        # Of the pictures that were replaced, the last ones; of the errors, all.
        assert [each["frame"] for each in others[:256]] == list(range(45, 301))
        assert "base64" in others[256]["error"]


async def test_pictures_end_in_their_order_and_mistakes_are_told_at_once() -> None:
    service = GatedService()
    async with connected(create_app(service, CONFIG), PATH) as socket:
        socket.send(PICTURE)
        await service.begun.get()
        socket.send(PICTURE)
        socket.send(PICTURE)
        socket.send({"type": "settings", "task": "fly"})
        assert (await socket.receive())["field"] == "task"
        service.gate.release()
        answer = await socket.receive_answer()
        assert (answer[-1]["frame"], joined(answer)) == (1, "two red circles")
        assert (await socket.receive())["frame"] == 2


async def test_a_disconnect_frees_the_model() -> None:
    service = GatedService()
    app = create_app(service, CONFIG)
    async with connected(app, PATH) as socket:
        socket.send(PICTURE)
        await service.begun.get()
        socket.disconnect()
    assert service.closed == 1
    async with connected(app, PATH) as socket:
        socket.send(PICTURE)
        service.gate.release()
        await socket.receive_answer()


async def test_an_error_ends_the_answer_and_not_the_session(
    app: FastAPI, service: FakeService
) -> None:
    async with connected(app, PATH) as socket:
        service.error = ModelFailed("it broke")
        for begun in (0, 1):
            service.before_error = begun
            socket.send(PICTURE)
            answer = await socket.receive_answer()
            assert len(answer) == begun + 1
            assert answer[-1]["error"] == "it broke"
            assert answer[-1]["status"] == 500
        service.error = None
        socket.send(PICTURE)
        assert joined(await socket.receive_answer()) == "two red circles"
    assert service.closed == 3


async def test_a_defect_ends_the_answer_and_not_the_session(
    app: FastAPI, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyError("secret")

    async with connected(app, PATH) as socket:
        with monkeypatch.context() as patch:
            patch.setattr(service, "generate", fail)
            ending = (await ask(socket))[-1]
        assert (ending["status"], ending["error"]) == (500, "an internal error")
        assert joined(await ask(socket)) == "two red circles"


async def test_an_overload_is_waited_out_with_the_newest_picture(
    app: FastAPI, service: FakeService
) -> None:
    service.error = Overloaded("full", retry_after=0.01)
    async with connected(app, PATH) as socket:
        socket.send(picture(0))
        while len(service.requests) < 2:
            await asyncio.sleep(0)
        socket.send(picture(1))
        while service.pictures[-1] != picture(1):
            await asyncio.sleep(0)
        service.error = None
        replaced = await socket.receive()
        assert (replaced["frame"], replaced["replaced"]) == (1, True)
        assert {message["frame"] for message in await socket.receive_answer()} == {2}


async def test_an_overload_that_lasts_is_an_error(service: FakeService) -> None:
    service.error = Overloaded("full", retry_after=0.01)
    app = create_app(service, with_settings(defaults={"timeout_s": 0.1, "max_tokens": 5}))
    async with connected(app, PATH) as socket:
        socket.send(PICTURE)
        error = await socket.receive()
        assert (error["error"], error["status"], error["done"]) == ("full", 503, True)


async def test_a_wait_for_room_counts_as_one_request(service: FakeService) -> None:
    service.error = Overloaded("full", retry_after=0.01)
    limits = {"client_limits": {"requests_per_minute": 1}}
    app = create_app(service, with_settings(**limits, defaults={"timeout_s": 5, "max_tokens": 5}))
    async with connected(app, PATH) as socket:
        socket.send(PICTURE)
        while len(service.requests) < 4:
            await asyncio.sleep(0)
        service.error = None
        assert joined(await socket.receive_answer()) == "two red circles"


async def test_pictures_that_come_too_fast_are_no_part_of_a_later_video(
    app: FastAPI, service: FakeService
) -> None:
    async with connected(app, PATH) as socket:
        socket.send({"frames": 3, "frame_interval_s": 60, "prompt": "What happens?"})
        await socket.receive()
        for number in range(3):
            socket.send(picture(number))
            await socket.receive_answer()
    # Each question is about the first picture, and the one that it came with.
    assert service.pictures == [picture(number) for number in (0, 0, 1, 0, 2)]


async def test_several_pictures_are_one_video(app: FastAPI, service: FakeService) -> None:
    async with connected(app, PATH) as socket:
        socket.send({"type": "settings", "frames": 3, "prompt": "What happens?"})
        await socket.receive()
        for number in range(5):
            socket.send(picture(number))
            await socket.receive_answer()
    task = service.requests[-1].task
    assert isinstance(task, Chat)
    video = task.messages[0].parts[0]
    assert isinstance(video, VideoPart)
    assert video.indices == (0, 1, 2)
    assert video.timestamps[0] == 0.0
    assert list(video.timestamps) == sorted(video.timestamps)
    assert service.pictures[-3:] == [picture(number) for number in (2, 3, 4)]


async def test_the_last_pictures_are_bounded_by_the_size_of_a_video(service: FakeService) -> None:
    large = encode_picture(gradient(96, 72))
    limits = {**CONFIG.limits.model_dump(exclude_unset=True), "max_video_bytes": 2 * len(PICTURE)}
    assert len(large) > 2 * len(PICTURE)
    async with connected(create_app(service, with_settings(limits=limits)), PATH) as socket:
        socket.send({"frames": 3, "prompt": "What happens?"})
        await socket.receive()
        for _ in range(3):
            await ask(socket)
        socket.send(large)
        await socket.receive_answer()
    assert service.pictures == [PICTURE] * (1 + 2 + 2) + [large]


async def test_the_last_pictures_give_way_if_they_hold_too_much(service: FakeService) -> None:
    limits = CONFIG.limits.model_dump(exclude_unset=True)
    limits["max_unfinished_bytes"] = int(2.5 * len(PICTURE))
    app = create_app(service, with_settings(limits=limits))
    video = {"frames": 4, "prompt": "What happens?"}
    async with connected(app, PATH) as socket:
        socket.send(video)
        await socket.receive()
        for _ in range(2):
            await ask(socket)
        async with connected(app, PATH, client="192.0.2.2") as other:
            other.send(video)
            await other.receive()
            await ask(other)  # more than there is room for: the first one holds the most
        for _ in range(4):
            await ask(socket)
    # With the third, the last pictures are too many by themselves.
    assert service.pictures == [PICTURE] * (1 + 2 + 1 + 1 + 2 + 3 + 1)


async def test_a_session_ends_if_nothing_comes(service: FakeService) -> None:
    app = create_app(service, with_settings(realtime={"idle_timeout_s": 0.05}))
    async with connected(app, PATH) as socket:
        error = await socket.receive()
        assert "nothing was received for 0.05 s" in error["error"]
        assert error["done"]
        assert await socket.receive_close() == 4408


async def test_who_waits_for_an_answer_is_not_idle() -> None:
    service = GatedService()
    app = create_app(service, with_settings(realtime={"idle_timeout_s": 0.05}))
    async with connected(app, PATH) as socket:
        socket.send(PICTURE)
        await service.begun.get()
        await asyncio.sleep(0.2)
        service.gate.release()
        assert joined(await socket.receive_answer()) == "two red circles"


async def test_sessions_are_limited(service: FakeService) -> None:
    app = create_app(service, with_settings(client_limits={"max_sessions": 1}))
    async with connected(app, PATH):
        async with connected(app, PATH) as second:
            error = await second.receive()
            assert "limit of 1 sessions" in error["error"]
            assert error["retry_after"] > 0
            assert await second.receive_close() == 4429
        async with connected(app, PATH, client="192.0.2.2") as other:
            assert (await ask(other))[-1]["done"]
    app = create_app(service, with_settings(realtime={"max_sessions": 1}))
    async with connected(app, PATH), connected(app, PATH) as second:
        assert "sessions are open" in (await second.receive())["error"]
        assert await second.receive_close() == 4503


async def ask(socket: AsgiSocket) -> list[dict[str, Any]]:
    socket.send(PICTURE)
    return await socket.receive_answer()


async def test_answers_count_as_requests(service: FakeService) -> None:
    settings = {
        "client_limits": {"requests_per_minute": 2},
        "defaults": {"timeout_s": 0.1, "max_tokens": 5},
    }
    app = create_app(service, with_settings(**settings))
    async with connected(app, PATH) as socket:
        answers = [await ask(socket) for _ in range(3)]
    assert [answer[-1].get("status") for answer in answers] == [None, None, 429]
    assert "2 requests a minute" in answers[2][-1]["error"]
    assert len(service.requests) == 2


def keyed(*names: str) -> dict[str, Any]:
    keys = [
        {"name": name, "hash": "sha256:" + hashlib.sha256(f"key-of-{name}".encode()).hexdigest()}
        for name in names
    ]
    return {"auth": {"keys": keys}}


async def test_a_key_is_needed_if_there_are_keys(service: FakeService) -> None:
    app = create_app(service, with_settings(**keyed("camera")))
    async with connected(app, PATH) as socket:
        error = await socket.receive()
        assert "missing key" in error["error"]
        assert await socket.receive_close() == 4401
    async with connected(app, PATH, {"authorization": "Bearer key-of-camera"}) as socket:
        assert joined(await ask(socket)) == "two red circles"
    # Browsers can't send headers.
    protocols = ["raylens-key.key-of-camera", "raylens"]
    async with connected(app, PATH, subprotocols=protocols) as socket:
        assert socket.subprotocol == "raylens"
        assert joined(await ask(socket)) == "two red circles"
    async with connected(app, PATH, subprotocols=protocols[:1]) as socket:
        assert socket.subprotocol == protocols[0]
    assert {request.client for request in service.requests} == {"camera"}


async def test_a_key_that_is_taken_away_ends_the_session(service: FakeService) -> None:
    config = with_settings(**keyed("camera"))
    shared = Shared(config)
    app = create_app(service, config, shared=shared)
    async with connected(app, PATH, {"x-api-key": "key-of-camera"}) as socket:
        await ask(socket)
        shared.configure(with_settings(**keyed("other")))
        socket.send(PICTURE)
        error = await socket.receive()
        assert "unknown key" in error["error"]
        assert await socket.receive_close() == 4401


async def test_a_session_without_a_key_ends_once_keys_are_needed(service: FakeService) -> None:
    shared = Shared(CONFIG)
    app = create_app(service, CONFIG, shared=shared)
    async with connected(app, PATH) as socket:
        await ask(socket)
        shared.configure(with_settings(**keyed("camera")))
        socket.send(PICTURE)
        assert "asks for a key" in (await socket.receive())["error"]
        assert await socket.receive_close() == 4401


class Drain(Draining):
    """Begins when it is told to."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        super().__init__(self._event.is_set, lambda seconds: self._wait())

    def begin(self) -> None:
        self._event.set()

    async def _wait(self) -> None:
        await self._event.wait()


async def receive_stop(socket: AsgiSocket) -> dict[str, Any]:
    """Return the last message of a session of a server that drains."""
    error = await socket.receive()
    assert error["error"] == "this part of the server is about to stop: connect again"
    assert (error["status"], error["code"], error["retry_after"]) == (503, "overloaded", 1.0)
    close = await socket.receive_event()
    assert (close["type"], close["code"]) == ("websocket.close", 1012)
    assert close["reason"] == error["error"]
    return error


async def test_a_session_of_a_server_that_drains_ends_the_answer_that_runs() -> None:
    service, drain = GatedService(before_gate=1), Drain()
    app = create_app(service, CONFIG, shared=Shared(CONFIG, draining=drain))
    async with connected(app, PATH) as socket:
        socket.send(picture(0))
        answer = [await socket.receive()]
        socket.send(picture(1))
        socket.send({"type": "ping"})
        assert (await socket.receive())["type"] == "pong"
        drain.begin()
        await asyncio.sleep(0.01)
        socket.send(picture(2))
        socket.send("What is it?")
        service.gate.release()
        answer += await socket.receive_answer()
        assert joined(answer) == "two red circles"
        assert {message["frame"] for message in answer} == {1}
        # The picture that waited has an end, too, and the one that came too late has no number.
        waiting = await socket.receive()
        assert (waiting["frame"], waiting["done"], waiting["status"]) == (2, True, 503)
        assert "frame" not in await receive_stop(socket)
    assert service.pictures == [picture(0)]


async def test_an_idle_session_of_a_server_that_drains_ends_at_once(service: FakeService) -> None:
    drain = Drain()
    app = create_app(service, CONFIG, shared=Shared(CONFIG, draining=drain))
    async with connected(app, PATH) as socket:
        await ask(socket)
        drain.begin()
        assert (await receive_stop(socket))["done"]


async def test_a_drain_that_the_proxy_tells_of_is_one(service: FakeService) -> None:
    async with connected(create_app(service, CONFIG), PATH) as socket:
        socket.sent.put_nowait({"type": "websocket.receive", "text": "", DRAINS: True})
        await receive_stop(socket)


async def test_clients_cant_claim_a_drain(app: FastAPI, service: FakeService) -> None:
    async with connected(app, PATH) as socket:
        socket.send({DRAINS: True})
        assert joined(await ask(socket)) == "two red circles"


async def test_a_client_that_leaves_during_a_drain_cancels_its_answer() -> None:
    service, drain = GatedService(before_gate=1), Drain()
    app = create_app(service, CONFIG, shared=Shared(CONFIG, draining=drain))
    async with connected(app, PATH) as socket:
        socket.send(PICTURE)
        await socket.receive()
        drain.begin()
        await asyncio.sleep(0.01)
    assert service.closed == 1


async def test_web_pages_of_others_are_refused(app: FastAPI) -> None:
    with pytest.raises(AssertionError, match=r"websocket\.close"):
        async with connected(app, PATH, {"origin": "https://evil.example"}):
            pass


async def test_changed_settings_of_the_server_hold_for_open_sessions(service: FakeService) -> None:
    config = with_settings()
    shared = Shared(config)
    app = create_app(service, config, shared=shared)
    async with connected(app, PATH) as socket:
        await ask(socket)
        changed = with_settings(defaults={"max_tokens": 5})
        shared.configure(changed)
        shared.publish(create_app(service, changed, shared=shared))
        await ask(socket)
    assert [request.sampling.max_tokens for request in service.requests] == [50, 5]
