"""Against our own server, as another would be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest

from models.remote.openai import OpenAIRuntime
from raylens.core.config import ModelConfig
from raylens.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
    RaylensError,
    UnsupportedTask,
)
from raylens.core.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    Findings,
    FinishReason,
    ImagePart,
    Length,
    Location,
    Message,
    Point,
    Query,
    Region,
    Role,
    SamplingParams,
    TextPart,
    Usage,
    VideoPart,
    VisionRequest,
)
from testing.pictures import random_pixels
from tests.unit.models.remote.conftest import PICTURE, ask, request
from tests.unit.raylens.api.conftest import FakeService


@pytest.fixture
async def make(url: str) -> AsyncIterator[Callable[..., OpenAIRuntime]]:
    clients: list[openai.AsyncOpenAI] = []

    def make(family: str = "smolvlm", base_url: str = url, **more: Any) -> OpenAIRuntime:
        remote = {"base_url": base_url, "model": "smolvlm"}
        fields = {"name": "far", "family": family, "runtime": "openai", "remote": remote, **more}
        config = ModelConfig.model_validate(fields)
        clients.append(openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0))
        return OpenAIRuntime(config, config.remote, clients[-1])

    yield make
    for client in clients:
        await client.close()


async def test_an_answer_comes_in_pieces_and_ends_with_its_usage(
    make, service: FakeService
) -> None:
    deltas = await ask(make(), request(Caption(Length.SHORT)))
    assert [delta.text for delta in deltas] == ["two ", "red ", "circles", ""]
    assert deltas[-1] == Delta(
        finish_reason=FinishReason.STOP, usage=Usage(7, 3), findings=Findings()
    )
    (sent,) = service.requests
    assert isinstance(sent.task, Chat)
    assert sent.task.messages[0].parts[1] == TextPart("Caption this image in one short sentence.")
    assert len(service.images) == 1


async def test_what_is_asked_for_is_passed_on(make, service: FakeService) -> None:
    wanted = SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.8,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
        stop=("x",),
        n=2,
        logprobs=1,
        json_schema='{"type":"object"}',
    )
    deltas = await ask(make(), VisionRequest("r", "far", Query("?"), time.time() + 20, wanted))
    assert service.requests[0].sampling == wanted
    assert [delta.index for delta in deltas if delta.finish_reason] == [0, 1]
    assert deltas[0].logprobs[0].top[0].text == "0"
    assert sum(delta.usage.completion_tokens for delta in deltas if delta.usage) == 6


async def test_a_conversation_is_passed_on(make, service: FakeService) -> None:
    chat = Chat(
        (
            Message(Role.SYSTEM, (TextPart("short"),)),
            Message(Role.USER, (TextPart("look"), ImagePart(0), ImagePart(1))),
            Message(Role.ASSISTANT, (TextPart("a cat"),)),
            Message(Role.USER, (TextPart("where?"),)),
        )
    )
    await ask(make(), request(chat), pictures=2)
    assert service.requests[0].task == chat
    with pytest.raises(UnsupportedTask, match="no videos"):
        await ask(make(), request(Chat((Message(Role.USER, (VideoPart((0, 1)),)),))), pictures=2)


@pytest.mark.parametrize(
    ("task", "words", "found"),
    [
        (
            Detect("cat"),
            '[{"bbox_2d": [0, 0, 140, 70]}]',
            Findings(regions=(Region(0, 0, 0.5, 0.5),)),
        ),
        (
            Detect("cat", 1),
            "[[0, 0, 28, 14], [0, 0, 140, 70]]",
            Findings(regions=(Region(0, 0, 0.1, 0.1),)),
        ),
        (Point("cat"), '[{"point_2d": [70, 35]}]', Findings(locations=(Location(0.25, 0.25),))),
    ],
)
async def test_places_are_read_from_qwen_s_words(
    make, service: FakeService, task, words: str, found: Findings
) -> None:
    service.words = (words,)
    deltas = await ask(make("qwen2_5_vl"), request(task))
    assert deltas[-1].findings == found


async def test_a_picture_that_cannot_be_brought_to_whole_tokens_is_refused(make) -> None:
    thin = make("qwen2_5_vl").generate(request(Caption()), [random_pixels(4, 1000)])
    with pytest.raises(InvalidRequest, match="one side may be 200 times the other"):
        await anext(thin)


async def test_other_families_have_no_words_for_places(make) -> None:
    with pytest.raises(UnsupportedTask, match="can't detect"):
        await ask(make(), request(Detect("cat")))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("full", "model", retry_after=7), Overloaded("", None, None, None, 7)),
        (ModelFailed("broken"), ModelFailed("")),
        (InvalidRequest("max_tokens: too many"), InvalidRequest("")),
    ],
)
async def test_an_error_of_the_server_is_one_of_ours(
    make, service: FakeService, error, expected
) -> None:
    service.error = error
    with pytest.raises(RaylensError) as raised:
        await ask(make(), request(Caption()))
    assert type(raised.value) is type(expected)
    assert raised.value.retry_after == expected.retry_after


async def test_a_server_that_is_not_there_and_one_that_is_silent(
    make, closed_url: str, silent_url: str
) -> None:
    with pytest.raises(ModelNotLoaded):
        await ask(make(base_url=closed_url), request(Caption()))
    with pytest.raises(DeadlineExceeded):
        await ask(make(base_url=silent_url), request(Caption(), seconds=0.3))


async def test_an_answer_that_ends_early_is_an_error(make, service: FakeService) -> None:
    service.error, service.before_error = ModelFailed("broken"), 1
    with pytest.raises(ModelFailed):
        await ask(make(), request(Caption()))


async def test_places_are_bounded_and_given_back(make) -> None:
    runtime = make(max_batch_size=1, max_waiting=1)
    first = runtime.generate(request(Caption()), [PICTURE])
    await anext(first)
    waiting = asyncio.create_task(ask(runtime, request(Caption(), seconds=0.2)))
    await asyncio.sleep(0.05)
    assert (runtime.gauges.running, runtime.gauges.waiting) == (1, 1)
    with pytest.raises(Overloaded, match="2 requests run or wait; the limit is 2"):
        runtime.check_capacity(request(Caption()))
    with pytest.raises(DeadlineExceeded):
        await waiting
    await first.aclose()
    assert (runtime.gauges.running, runtime.gauges.waiting) == (0, 0)
    assert len(await ask(runtime, request(Caption()))) == 4
