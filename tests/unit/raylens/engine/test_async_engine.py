from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from raylens.core.errors import InvalidRequest, ModelFailed, ModelNotLoaded, Overloaded
from raylens.core.types import Chat, Message, Priority, Role, TextPart
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Prompt
from tests.unit.raylens.engine.fakes import FakeModel, answer, request

LATER = math.inf


class GatedModel(FakeModel):
    """Decodes one step for each time that the gate is released."""

    def __init__(self) -> None:
        super().__init__(max_length=10**6)
        self.eos_ids = frozenset({257})
        self.gate = threading.Semaphore(0)

    def decode(self, *arguments: Any) -> Any:
        self.gate.acquire(timeout=10)
        return super().decode(*arguments)


@pytest.fixture
async def gated() -> AsyncIterator[tuple[GatedModel, AsyncEngine]]:
    model = GatedModel()
    engine = AsyncEngine(model, EngineLimits(max_batch_size=2), max_waiting=1, retry_after=3)
    yield model, engine
    model.gate.release(10**6)
    engine.stop()


async def test_answers_are_streamed_concurrently() -> None:
    engine = AsyncEngine(FakeModel(), EngineLimits(max_batch_size=4), max_waiting=60)

    async def ask(letter: int) -> str:
        deltas = engine.generate(request(LATER, max_tokens=9), Prompt((letter,)))
        return "".join([delta.text async for delta in deltas])

    letters = [97 + n % 26 for n in range(60)]
    assert await asyncio.gather(*map(ask, letters)) == [answer([letter], 9) for letter in letters]
    assert engine.in_flight == 0
    engine.stop()


async def test_the_first_token_arrives_before_the_second_is_computed(gated) -> None:
    model, engine = gated
    async with aclosing(engine.generate(request(LATER, max_tokens=50), Prompt((99,)))) as deltas:
        first = await asyncio.wait_for(anext(deltas), 5)
        assert first.text
        second = asyncio.ensure_future(anext(deltas))
        done, _ = await asyncio.wait([second], timeout=0.2)
        assert not done
        model.gate.release()
        assert (await asyncio.wait_for(second, 5)).text


async def test_a_full_queue_refuses_requests_at_once(gated) -> None:
    _, engine = gated
    streams = [engine.generate(request(LATER, max_tokens=50), Prompt((99,))) for _ in range(3)]
    first_deltas = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.wait_for(first_deltas[0], 5)
    with pytest.raises(Overloaded) as caught:
        await anext(engine.generate(request(LATER), Prompt((99,))))
    assert caught.value.retry_after == 3
    assert caught.value.limit == 3
    for first_delta in first_deltas:
        first_delta.cancel()


async def test_jobs_leave_half_of_the_queue_to_interactive_requests() -> None:
    model = GatedModel()
    engine = AsyncEngine(model, EngineLimits(max_batch_size=1), max_waiting=4)

    def ask(priority: Priority, n: int = 1) -> asyncio.Future[Any]:
        vision_request = dataclasses.replace(request(LATER, max_tokens=50, n=n), priority=priority)
        return asyncio.ensure_future(anext(engine.generate(vision_request, Prompt((99,)))))

    first_deltas = [ask(Priority.JOB, n=3)]
    with pytest.raises(Overloaded, match="3 job answers are in flight; the limit is 3"):
        await ask(Priority.JOB)
    first_deltas += [ask(Priority.INTERACTIVE) for _ in range(2)]
    with pytest.raises(Overloaded, match="5 answers are in flight; the limit is 5"):
        await ask(Priority.INTERACTIVE)
    for first_delta in first_deltas:
        first_delta.cancel()
    model.gate.release(10**6)
    engine.stop()


async def test_more_answers_than_the_capacity_are_an_invalid_request(gated) -> None:
    _, engine = gated
    with pytest.raises(InvalidRequest, match="n: 4 answers requested; the limit is 3"):
        await anext(engine.generate(request(LATER, n=4), Prompt((99,))))


async def test_closing_a_stream_frees_its_capacity(gated) -> None:
    model, engine = gated
    stream = engine.generate(request(LATER, max_tokens=50, n=2), Prompt((99,)))
    await asyncio.wait_for(anext(stream), 5)
    assert engine.in_flight == 2
    await stream.aclose()
    assert engine.in_flight == 0
    model.gate.release()
    for _ in range(100):
        if not engine._engine.has_work:
            break
        await asyncio.sleep(0.02)
    assert not engine._engine.has_work


async def test_all_requests_fail_if_the_thread_fails() -> None:
    class Broken(FakeModel):
        def decode(self, *arguments: Any) -> Any:
            raise SystemExit("not the failure of one request")

    model = Broken()
    engine = AsyncEngine(model, EngineLimits(max_batch_size=4), max_waiting=4)

    async def ask(length: int) -> None:
        async for _ in engine.generate(request(LATER, max_tokens=length), Prompt((101, length))):
            pass

    results = await asyncio.wait_for(asyncio.gather(ask(1), ask(9), return_exceptions=True), 10)
    assert any(isinstance(result, ModelFailed) for result in results)
    assert engine.failure is not None
    with pytest.raises(ModelNotLoaded, match="has stopped"):
        await anext(engine.generate(request(LATER), Prompt((99,))))


async def test_unfinished_requests_fail_if_the_engine_is_stopped() -> None:
    model = GatedModel()
    engine = AsyncEngine(model, EngineLimits(max_batch_size=2), max_waiting=1)
    stream = engine.generate(request(LATER, max_tokens=50), Prompt((99,)))
    await asyncio.wait_for(anext(stream), 5)
    threading.Timer(0.2, model.gate.release, [1]).start()
    engine.stop()
    model.gate.release(10**6)
    with pytest.raises(ModelNotLoaded, match="has stopped"):
        async for _ in stream:
            pass


async def test_gauges_include_sequences_that_the_thread_has_not_taken_yet(gated) -> None:
    _, engine = gated
    streams = [engine.generate(request(LATER, max_tokens=50), Prompt((99,))) for _ in range(3)]
    first_deltas = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.wait_for(first_deltas[0], 5)
    gauges = engine.gauges
    assert (gauges.running + gauges.waiting, gauges.kv_bytes > 0) == (3, True)
    assert gauges.max_waiting == 1
    assert gauges.kv_bytes <= gauges.max_kv_bytes
    for first_delta in first_deltas:
        first_delta.cancel()


async def test_what_a_schema_does_not_enforce_is_said_once() -> None:
    engine = AsyncEngine(FakeModel(), EngineLimits(max_batch_size=2), max_waiting=2)
    schema = '{"type": "array", "items": {"type": "boolean"}, "uniqueItems": true}'
    deltas = engine.generate(request(LATER, max_tokens=9, json_schema=schema), Prompt((99,)))
    first, *later = [delta async for delta in deltas]
    assert len(first.warnings) == 1
    assert first.warnings[0].startswith("response_format: not enforced:")
    assert "uniqueItems" in first.warnings[0]
    assert later
    assert not any(delta.warnings for delta in later)
    engine.stop()


async def test_a_structured_answer_goes_on_where_the_last_message_ends() -> None:
    engine = AsyncEngine(FakeModel(), EngineLimits(max_batch_size=2), max_waiting=2)
    begun = Message(Role.ASSISTANT, (TextPart('{"a": [tr'),))
    schema = '{"properties": {"a": {"items": {"const": true}}}, "required": ["a"]}'
    vision_request = dataclasses.replace(
        request(LATER, max_tokens=20, json_schema=schema), task=Chat((begun,))
    )
    deltas = engine.generate(vision_request, Prompt((99,), continues_answer=True))
    text = "".join([delta.text async for delta in deltas])
    assert text.startswith("ue")
    engine.stop()


@pytest.mark.parametrize(
    ("field", "sampling"),
    [("stop_token_ids", {"stop_token_ids": (3, 257)}), ("logit_bias", {"logit_bias": ((257, 5),)})],
)
async def test_a_token_that_the_model_lacks_is_refused(
    gated, field: str, sampling: dict[str, Any]
) -> None:
    _, engine = gated
    with pytest.raises(InvalidRequest, match=f"{field}: token 257; this model's last one is 256"):
        await anext(engine.generate(request(LATER, **sampling), Prompt((99,))))
    assert engine.in_flight == 0


async def test_caches_are_cleared_between_steps_while_answers_go_on(gated) -> None:
    model, engine = gated
    stream = engine.generate(request(LATER, max_tokens=3), Prompt(tuple(range(90, 110))))
    await asyncio.wait_for(anext(stream), 5)
    assert engine.gauges.prefix_bytes > 0
    clearing = asyncio.ensure_future(engine.clear_caches())
    abandoned = asyncio.ensure_future(engine.clear_caches())
    await asyncio.sleep(0)
    abandoned.cancel()
    assert not clearing.done()
    model.gate.release(10)
    await asyncio.wait_for(clearing, 5)
    assert engine.gauges.prefix_bytes == 0
    assert [delta async for delta in stream][-1].finish_reason is not None


async def test_an_idle_engine_clears_its_caches_and_a_stopped_one_refuses() -> None:
    engine = AsyncEngine(FakeModel(), EngineLimits(max_batch_size=2), max_waiting=1)
    await asyncio.wait_for(engine.clear_caches(), 5)
    engine.stop()
    with pytest.raises(ModelNotLoaded, match="has stopped"):
        await engine.clear_caches()


async def test_limits_change_while_answers_go_on(gated) -> None:
    model, engine = gated

    def ask(letter: int) -> asyncio.Task[str]:
        async def collect() -> str:
            deltas = engine.generate(request(LATER, max_tokens=9), Prompt((letter,)))
            return "".join([delta.text async for delta in deltas])

        return asyncio.create_task(collect())

    answers = [ask(letter) for letter in range(97, 100)]  # two run, and one waits
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await ask(100)
    changing = asyncio.ensure_future(engine.change_limits(8, 2, 0.03, 7))
    model.gate.release(1)
    await asyncio.wait_for(changing, 30)
    answers += [ask(letter) for letter in range(100, 107)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="the limit is 10") as refused:
        await ask(110)
    assert refused.value.retry_after == 7
    model.gate.release(1000)
    texts = await asyncio.wait_for(asyncio.gather(*answers), 30)
    assert texts == [answer([letter], 9, stops_at_eos=False) for letter in range(97, 107)]
    assert max(model.decode_batches) == 8


async def test_a_smaller_batch_is_in_force_once_the_answers_beyond_it_have_ended() -> None:
    model = FakeModel()
    engine = AsyncEngine(model, EngineLimits(max_batch_size=6), max_waiting=60)

    async def ask(letter: int) -> str:
        deltas = engine.generate(request(LATER, max_tokens=9), Prompt((letter,)))
        return "".join([delta.text async for delta in deltas])

    await asyncio.gather(*map(ask, range(97, 109)))
    await engine.change_limits(2, 60, 0.03, 1)
    model.decode_batches.clear()
    texts = await asyncio.gather(*map(ask, range(97, 121)))
    assert texts == [answer([letter], 9) for letter in range(97, 121)]
    assert max(model.decode_batches) == 2
    engine.stop()


async def test_a_stopped_engine_takes_no_limits() -> None:
    engine = AsyncEngine(FakeModel(), EngineLimits(max_batch_size=2), max_waiting=1)
    engine.stop()
    with pytest.raises(ModelNotLoaded, match="has stopped"):
        await engine.change_limits(4, 1, 0.03, 1)
