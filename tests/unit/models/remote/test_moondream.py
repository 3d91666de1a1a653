"""Through the official client, against our own server in the place of Moondream's."""

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
from tests.unit.models.remote.conftest import PICTURE, ask, request
from tests.unit.raylens.api.conftest import TALKS, FakeService

LOOK = Chat((Message(Role.USER, (ImagePart(0), TextPart("what?"))),))


def config(**more: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"name": "far", "family": "moondream", "runtime": "cloud", **more}
    )


@pytest.fixture
def make(url: str, service: FakeService) -> Callable[..., MoondreamRuntime]:
    service.tasks = {"smolvlm": (*TALKS, "detect", "point", "reason")}

    def make(base_url: str = url, **more: Any) -> MoondreamRuntime:
        made = config(remote={"base_url": base_url, "model": "smolvlm"}, **more)
        return cloud(made, made.remote)

    return make


@pytest.mark.parametrize("task", [Caption(Length.LONG), Query("?"), LOOK])
async def test_answers_come_in_pieces_or_whole(make, service: FakeService, task) -> None:
    deltas = await ask(make(), request(task, max_tokens=7, temperature=0.5, top_p=0.5))
    assert [delta.text for delta in deltas] == ["two ", "red ", "circles", ""]
    assert deltas[-1].finish_reason is FinishReason.STOP
    whole = await ask(make(), request(task, stream=False))
    assert [delta.text for delta in whole] == ["two red circles"]
    assert service.requests[0].task == task
    sampling = service.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.5)
    assert len(service.images) == 2


async def test_a_question_without_a_picture(make, service: FakeService) -> None:
    await ask(make(), request(Query("?")), pictures=0)
    assert service.images == []


async def test_places_are_found(make, service: FakeService) -> None:
    (boxes,) = await ask(make(), request(Detect("cat", 1)))
    assert boxes.findings == Findings(regions=(Region(0.1, 0.2, 0.3, 0.4),))
    (points,) = await ask(make(), request(Point("cat", 9)))
    assert points.findings == Findings(locations=(Location(0.2, 0.3), Location(0.75, 0.75)))
    assert [sent.task for sent in service.requests] == [Detect("cat", 1), Point("cat", 9)]


async def test_thoughts_and_places_that_are_asked_about(make, service: FakeService) -> None:
    service.reasoning = Reasoning("I see it", (Grounding(2, 5, (Location(0.25, 0.5),)),))
    task = Query("?", reasoning=True, spatial_refs=(Location(0.1, 0.2), Region(0.1, 0.2, 0.3, 0.4)))
    (whole,) = await ask(make(), request(task))
    assert (whole.text, whole.findings) == (
        "two red circles",
        Findings(reasoning=service.reasoning),
    )
    assert service.requests[0].task == task


@pytest.mark.parametrize(
    ("task", "sampling", "words"),
    [
        (Caption(), {"n": 2}, "n: this model's runtime has no such parameter"),
        (Caption(), {"json_schema": "{}"}, "response_format: this model's runtime has no such"),
        (Chat((Message(Role.USER, (VideoPart((0,)),)),)), {}, "no videos"),
    ],
)
async def test_what_the_client_has_no_words_for_is_refused(
    make, service: FakeService, task, sampling, words
) -> None:
    with pytest.raises(UnsupportedTask, match=words):
        await ask(make(), request(task, **sampling))
    assert service.requests == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Overloaded("full", "model", retry_after=7), Overloaded),
        (ModelFailed("broken"), ModelFailed),
        (InvalidRequest("object: too odd"), InvalidRequest),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_of_the_server_is_one_of_ours(
    make, service: FakeService, error, kind, stream
) -> None:
    service.error = error
    with pytest.raises(kind) as raised:
        await ask(make(), request(Caption(), stream=stream))
    assert type(raised.value) is kind
    assert raised.value.retry_after == error.retry_after


async def test_a_server_that_is_not_there_and_one_that_is_silent(
    make, closed_url: str, silent_url: str
) -> None:
    with pytest.raises(ModelNotLoaded):
        await ask(make(base_url=closed_url), request(Caption(), stream=False))
    for stream in (True, False):
        with pytest.raises(DeadlineExceeded):
            await ask(make(base_url=silent_url), request(Caption(), seconds=0.3, stream=stream))


async def test_a_chat_thinks_too(make, service: FakeService) -> None:
    service.reasoning = Reasoning("I see it", (Grounding(2, 5, (Location(0.25, 0.5),)),))
    (whole,) = await ask(make(), request(Chat(LOOK.messages, reasoning=True)))
    assert (whole.text, whole.findings) == (
        "two red circles",
        Findings(reasoning=service.reasoning),
    )
    assert service.requests[0].task == Chat(LOOK.messages, reasoning=True)


async def test_others_may_still_open_urls(make, url: str) -> None:
    make()
    response = await asyncio.to_thread(urllib.request.urlopen, f"{url}/models")
    with response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("remote", "environment", "sent"),
    [
        ({}, {"MOONDREAM_API_KEY": "usual"}, None),
        ({"api_key_env": "MINE"}, {"MOONDREAM_API_KEY": "usual", "MINE": "own"}, "own"),
    ],
)
async def test_a_key_goes_to_its_maker_or_where_it_is_told(
    url, service, monkeypatch, remote, environment, sent
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = config(remote={"base_url": url, "model": "smolvlm", **remote})
    client = cloud(made, made.remote)._client
    assert client.api_key == sent  # type: ignore[attr-defined]


class Stuck:
    """A client whose captions take until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls = 0

    def caption(self, *_: Any) -> dict[str, str]:
        self.calls += 1
        self.go.wait(10)
        return {"caption": "late"}


async def test_more_requests_run_together_than_there_are_cores() -> None:
    client = Stuck()
    runtime = MoondreamRuntime(config(max_batch_size=48), client, "cuda")  # type: ignore[arg-type]
    asked = [asyncio.create_task(ask(runtime, request(Caption()))) for _ in range(48)]
    async with asyncio.timeout(10):
        while client.calls < 48:
            await asyncio.sleep(0.01)
    client.go.set()
    assert {deltas[0].text for deltas in await asyncio.gather(*asked)} == {"late"}


async def test_a_client_that_hangs_keeps_its_place_and_tells_when_none_is_left() -> None:
    client = Stuck()
    runtime = MoondreamRuntime(config(max_batch_size=2, max_waiting=0), client, "cuda")  # type: ignore[arg-type]
    for late in range(1, 3):
        assert runtime.failure is None
        with pytest.raises(DeadlineExceeded):
            await ask(runtime, request(Caption(), seconds=0.1))
        assert runtime.gauges.running == late
    assert runtime.failure is not None
    with pytest.raises(Overloaded):
        runtime.check_capacity(request(Caption()))
    client.go.set()
    async with asyncio.timeout(5):
        while runtime.gauges.running:
            await asyncio.sleep(0.01)
    assert runtime.failure is None
    assert [delta.text for delta in await ask(runtime, request(Caption()))] == ["late"]


class Endless:
    """A client whose captions never end."""

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


async def test_a_client_that_goes_away_closes_the_stream_and_frees_its_place() -> None:
    client = Endless()
    runtime = MoondreamRuntime(config(max_batch_size=1), client, "cuda")  # type: ignore[arg-type]
    deltas = runtime.generate(request(Caption()), [PICTURE])
    assert await anext(deltas) == Delta("more ")
    assert runtime.gauges.running == 1
    await deltas.aclose()
    async with asyncio.timeout(5):
        await client.closed.wait()
        while runtime.gauges.running:
            await asyncio.sleep(0.01)
