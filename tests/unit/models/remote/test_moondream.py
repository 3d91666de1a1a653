"""The runtime ``cloud`` through the official client, against a raylens server."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from models.remote.moondream import MoondreamRuntime, cloud
from raylens.core.config import ModelConfig
from raylens.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
    UnsupportedTask,
)
from raylens.core.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    Findings,
    FinishReason,
    Grounding,
    ImagePart,
    Length,
    Location,
    Message,
    Point,
    Query,
    Reasoning,
    Region,
    Role,
    TextPart,
    VideoPart,
)
from tests.unit.models.remote.conftest import PICTURE, generate, request
from tests.unit.raylens.api.conftest import TEXT_TASKS, FakeService

CHAT = Chat((Message(Role.USER, (ImagePart(0), TextPart("what?"))),))


def make_config(**options: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"name": "far", "family": "moondream", "runtime": "cloud", **options}
    )


@pytest.fixture
def make(url: str, service: FakeService) -> Callable[..., MoondreamRuntime]:
    service.tasks = {"smolvlm": (*TEXT_TASKS, "detect", "point", "reason")}

    def make(base_url: str = url, **options: Any) -> MoondreamRuntime:
        config = make_config(remote={"base_url": base_url, "model": "smolvlm"}, **options)
        return cloud(config, config.remote)

    return make


@pytest.mark.parametrize("task", [Caption(Length.LONG), Query("?"), CHAT])
async def test_answers_are_streamed_or_complete(make, service: FakeService, task) -> None:
    deltas = await generate(make(), request(task, max_tokens=7, temperature=0.5, top_p=0.5))
    assert [delta.text for delta in deltas] == ["two ", "red ", "circles", ""]
    assert deltas[-1].finish_reason is FinishReason.STOP
    complete = await generate(make(), request(task, stream=False))
    assert [delta.text for delta in complete] == ["two red circles"]
    assert service.requests[0].task == task
    sampling = service.requests[0].sampling
    assert sampling.max_tokens == 7
    assert sampling.temperature == 0.5
    assert sampling.top_p == 0.5
    assert len(service.pictures) == 2


async def test_a_query_may_have_no_picture(make, service: FakeService) -> None:
    await generate(make(), request(Query("?")), pictures=0)
    assert service.pictures == []


async def test_detect_and_point_return_findings(make, service: FakeService) -> None:
    (boxes,) = await generate(make(), request(Detect("cat", 1)))
    assert boxes.findings == Findings(regions=(Region(0.1, 0.2, 0.3, 0.4),))
    (points,) = await generate(make(), request(Point("cat", 9)))
    assert points.findings == Findings(locations=(Location(0.2, 0.3), Location(0.75, 0.75)))
    assert [received.task for received in service.requests] == [Detect("cat", 1), Point("cat", 9)]


async def test_a_query_has_reasoning_and_spatial_refs(make, service: FakeService) -> None:
    service.reasoning = Reasoning("I see it", (Grounding(2, 5, (Location(0.25, 0.5),)),))
    task = Query("?", reasoning=True, spatial_refs=(Location(0.1, 0.2), Region(0.1, 0.2, 0.3, 0.4)))
    (complete,) = await generate(make(), request(task))
    assert complete.text == "two red circles"
    assert complete.findings == Findings(reasoning=service.reasoning)
    assert service.requests[0].task == task


@pytest.mark.parametrize(
    ("task", "sampling", "message"),
    [
        (Caption(), {"n": 2}, "n: not supported by this model's runtime"),
        (Caption(), {"json_schema": "{}"}, "response_format: not supported by"),
        (Chat((Message(Role.USER, (VideoPart((0,)),)),)), {}, "videos are not supported"),
    ],
)
async def test_a_request_that_the_client_cannot_make_is_refused(
    make, service: FakeService, task, sampling, message
) -> None:
    with pytest.raises(UnsupportedTask, match=message):
        await generate(make(), request(task, **sampling))
    assert service.requests == []


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (Overloaded("full", "model", retry_after=7), Overloaded),
        (ModelFailed("broken"), ModelFailed),
        (InvalidRequest("object: too odd"), InvalidRequest),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_servers_error_becomes_a_raylens_error(
    make, service: FakeService, error, error_type, stream
) -> None:
    service.error = error
    with pytest.raises(error_type) as raised:
        await generate(make(), request(Caption(), stream=stream))
    assert type(raised.value) is error_type
    assert raised.value.retry_after == error.retry_after


async def test_an_unreachable_or_silent_server_is_an_error(
    make, closed_url: str, silent_url: str
) -> None:
    with pytest.raises(ModelNotLoaded):
        await generate(make(base_url=closed_url), request(Caption(), stream=False))
    for stream in (True, False):
        with pytest.raises(DeadlineExceeded):
            await generate(
                make(base_url=silent_url), request(Caption(), seconds=0.3, stream=stream)
            )


async def test_a_chat_has_reasoning(make, service: FakeService) -> None:
    service.reasoning = Reasoning("I see it", (Grounding(2, 5, (Location(0.25, 0.5),)),))
    (complete,) = await generate(make(), request(Chat(CHAT.messages, reasoning=True)))
    assert complete.text == "two red circles"
    assert complete.findings == Findings(reasoning=service.reasoning)
    assert service.requests[0].task == Chat(CHAT.messages, reasoning=True)


async def test_other_users_of_urllib_can_still_open_urls(make, url: str) -> None:
    make()  # installs an opener for the process
    response = await asyncio.to_thread(urllib.request.urlopen, f"{url}/models")
    with response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("remote", "environment", "key"),
    [
        ({}, {"MOONDREAM_API_KEY": "usual"}, None),
        ({"api_key_env": "MINE"}, {"MOONDREAM_API_KEY": "usual", "MINE": "own"}, "own"),
    ],
)
async def test_another_server_gets_only_a_key_that_is_configured_for_it(
    url, service, monkeypatch, remote, environment, key
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = make_config(remote={"base_url": url, "model": "smolvlm", **remote})
    client = cloud(config, config.remote)._client
    assert client.api_key == key  # type: ignore[attr-defined]


class BlockedClient:
    """A client that blocks in ``caption`` until it is unblocked."""

    def __init__(self) -> None:
        self.unblocked = threading.Event()
        self.calls = 0

    def caption(self, *_: Any) -> dict[str, str]:
        self.calls += 1
        self.unblocked.wait(10)
        return {"caption": "late"}


async def test_more_requests_run_at_a_time_than_there_are_cores() -> None:
    client = BlockedClient()
    runtime = MoondreamRuntime(make_config(max_batch_size=48), client, "cuda")  # type: ignore[arg-type]
    answers = [asyncio.create_task(generate(runtime, request(Caption()))) for _ in range(48)]
    async with asyncio.timeout(10):
        while client.calls < 48:
            await asyncio.sleep(0.01)
    client.unblocked.set()
    assert {deltas[0].text for deltas in await asyncio.gather(*answers)} == {"late"}


async def test_a_hanging_client_keeps_its_slots_and_fails_the_runtime_when_none_is_free() -> None:
    client = BlockedClient()
    runtime = MoondreamRuntime(make_config(max_batch_size=2, max_waiting=0), client, "cuda")  # type: ignore[arg-type]
    for hanging in range(1, 3):
        assert runtime.failure is None
        with pytest.raises(DeadlineExceeded):
            await generate(runtime, request(Caption(), seconds=0.1))
        assert runtime.gauges.running == hanging
    assert runtime.failure is not None
    with pytest.raises(Overloaded):
        runtime.check_capacity(request(Caption()))
    client.unblocked.set()
    async with asyncio.timeout(5):
        while runtime.gauges.running:
            await asyncio.sleep(0.01)
    assert runtime.failure is None
    assert [delta.text for delta in await generate(runtime, request(Caption()))] == ["late"]


class EndlessClient:
    """A client with an endless stream of caption pieces."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def caption(self, *_: Any) -> dict[str, Iterator[str]]:
        def pieces() -> Iterator[str]:
            try:
                while True:
                    yield "more "
            finally:
                self.loop.call_soon_threadsafe(self.closed.set)

        return {"caption": pieces()}


async def test_closing_an_answer_closes_the_stream_and_frees_its_slot() -> None:
    client = EndlessClient()
    runtime = MoondreamRuntime(make_config(max_batch_size=1), client, "cuda")  # type: ignore[arg-type]
    deltas = runtime.generate(request(Caption()), [PICTURE])
    assert await anext(deltas) == Delta("more ")
    assert runtime.gauges.running == 1
    await deltas.aclose()
    async with asyncio.timeout(5):
        await client.closed.wait()
        while runtime.gauges.running:
            await asyncio.sleep(0.01)
