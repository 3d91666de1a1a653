"""The spans of our own, in a trace of OpenTelemetry's SDK that is kept in memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ray import serve
from ray.serve._private.tracing_utils import TRACE_STACK
from starlette.types import Message, Receive, Scope, Send

from deployments.answer_spans import ReadingMiddleware, answer_span
from deployments.preprocessor import Preprocessor
from deployments.spans import begin_attempt, call, end_attempt
from deployments.stage_spans import follow_answers
from raylens.api.access_log import AccessRecord, current_record
from raylens.core.errors import DeadlineExceeded, ModelFailed, UnsupportedMedia
from raylens.core.recipe import PLAIN
from raylens.core.types import (
    Caller,
    Caption,
    Chat,
    Delta,
    EngineTimings,
    FinishReason,
    PictureFile,
    SamplingParams,
    Timings,
    Usage,
    VisionRequest,
)
from tests.unit.deployments.test_preprocessor import CALLER, CONFIG, SMALL, FakeMetrics

EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("test")
NOW = 1_700_000_000.0
NS = 1_000_000_000
SECRET = "a cat in a red hat"


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    trace.set_tracer_provider(PROVIDER)  # which can be done once in a process
    assert trace.get_tracer_provider() is PROVIDER


def finished() -> dict[str, ReadableSpan]:
    by_name = {span.name: span for span in EXPORTER.get_finished_spans()}
    for span in by_name.values():
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time, span.name
        assert SECRET not in span.to_json()
    return by_name


def parents(spans: dict[str, ReadableSpan]) -> dict[str, str | None]:
    names = {span.context.span_id: name for name, span in spans.items()}
    return {
        name: None if span.parent is None else names[span.parent.span_id]
        for name, span in spans.items()
    }


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """Return the begin of a span, in seconds after ``NOW``, and its length."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (
        round((span.start_time - NOW * NS) / NS, 4),
        round((span.end_time - span.start_time) / NS, 4),
    )


def error_of(span: ReadableSpan) -> Any:
    assert span.attributes is not None
    is_error = span.status.status_code is trace.StatusCode.ERROR
    assert is_error == ("error.type" in span.attributes)
    return span.attributes.get("error.type")


def make_request(task: Any = None, **changes: Any) -> VisionRequest:
    task = Caption() if task is None else task
    return VisionRequest(id="r-1", model="tiny", task=task, deadline=NOW + 1e9, **changes)


def timings(queue: float, prefill: float, decode: float = 0.0) -> EngineTimings:
    return EngineTimings(0.0, queue, prefill, decode, arrived_at=NOW, cached_tokens=5)


async def deltas_of(
    *deltas: Delta, error: BaseException | None = None
) -> AsyncGenerator[Delta, None]:
    for delta in deltas:
        yield delta
    if error is not None:
        raise error


@pytest.fixture(autouse=True)
def _clear() -> Iterator[None]:
    EXPORTER.clear()
    yield
    EXPORTER.clear()


# The model


FIRST = Delta("A ", timings=timings(0.1, 0.2), usage=Usage(20, 1))
LAST = Delta(
    "cat.",
    finish_reason=FinishReason.STOP,
    usage=Usage(20, 7),
    timings=timings(0.1, 0.2, 0.5),
)


async def test_an_answer_has_its_stages_one_after_the_other() -> None:
    with TRACER.start_as_current_span("replica"):
        followed = follow_answers(deltas_of(FIRST, LAST), make_request(), 2)
        assert [delta async for delta in followed] == [FIRST, LAST]
    spans = finished()
    stages = ("queue", "prefill", "decode")
    assert set(spans) == {"replica", "prepare prompt", *stages}
    assert {parents(spans)[stage] for stage in stages} == {"replica"}
    assert [seconds(spans[stage]) for stage in stages] == [(0.0, 0.1), (0.1, 0.2), (0.3, 0.5)]
    assert dict(spans["prefill"].attributes or {}) == {
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "raylens.pictures": 2,
    }
    assert dict(spans["decode"].attributes or {}) == {
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert not any(error_of(span) for span in spans.values())


async def test_each_of_several_answers_has_stages_of_its_own() -> None:
    def last(index: int) -> Delta:
        return Delta("", index, FinishReason.LENGTH, Usage(20, 3), timings=timings(index, 1, 1))

    request = make_request(sampling=SamplingParams(n=2))
    with TRACER.start_as_current_span("replica"):
        _ = [delta async for delta in follow_answers(deltas_of(last(1), last(0)), request, 0)]
    decodes = [span for span in EXPORTER.get_finished_spans() if span.name == "decode"]
    assert [(span.attributes or {})["raylens.answer"] for span in decodes] == [1, 0]
    assert [seconds(span) for span in decodes] == [(2.0, 1.0), (1.0, 1.0)]


async def test_an_answer_that_is_cut_off_ends_with_an_error() -> None:
    with TRACER.start_as_current_span("replica"):
        async with aclosing(follow_answers(deltas_of(FIRST, LAST), make_request(), 0)) as deltas:
            await anext(deltas)
    spans = finished()
    assert error_of(spans["decode"]) == "canceled"
    assert error_of(spans["replica"]) == "canceled"
    assert error_of(spans["prefill"]) is None
    assert seconds(spans["prefill"]) == (0.1, 0.2)
    ended = spans["decode"].end_time
    assert ended is not None
    assert abs(ended - time.time_ns()) < 60 * NS


async def test_a_failure_is_an_error_without_its_message() -> None:
    with TRACER.start_as_current_span("replica"):
        failing = deltas_of(error=ModelFailed(f"it failed on {SECRET}"))
        with suppress(ModelFailed):
            _ = [delta async for delta in follow_answers(failing, make_request(), 0)]
    spans = finished()
    assert set(spans) == {"replica"}
    assert error_of(spans["replica"]) == ModelFailed.code


async def test_leaving_after_the_last_answer_is_no_error() -> None:
    with TRACER.start_as_current_span("replica"):
        async with aclosing(follow_answers(deltas_of(LAST), make_request(), 0)) as deltas:
            await anext(deltas)
    assert not any(error_of(span) for span in finished().values())


async def test_an_answer_that_the_engine_aborts_is_an_error() -> None:
    aborted = Delta("", 0, FinishReason.ABORT, Usage(20, 3), timings=timings(0, 1, 1))
    with TRACER.start_as_current_span("replica"):
        _ = [delta async for delta in follow_answers(deltas_of(aborted), make_request(), 0)]
    assert error_of(finished()["decode"]) == "abort"


async def test_a_remote_model_has_one_stage() -> None:
    last = Delta("x", 0, FinishReason.STOP, Usage(20, 7), timings=Timings())
    with TRACER.start_as_current_span("replica"):
        _ = [delta async for delta in follow_answers(deltas_of(last), make_request(), 1)]
    spans = finished()
    assert set(spans) == {"replica", "generate"}
    attributes = spans["generate"].attributes or {}
    assert attributes["gen_ai.usage.input_tokens"] == 20
    assert attributes["gen_ai.usage.output_tokens"] == 7


# The caller of a model


class Method:
    """A method of a Serve handle, which notes what Serve would find."""

    def __init__(self) -> None:
        self.parent: Any = None
        self.stack: list[Any] | None = None

    def remote(self, *arguments: Any) -> tuple[Any, ...]:
        self.parent = trace.get_current_span()
        self.stack = TRACE_STACK.get([])
        return arguments


async def test_a_call_of_a_model_has_the_attributes_of_generative_ai() -> None:
    current_record.set(AccessRecord("POST", "/x", "1.2.3.4", key="alice"))
    request = make_request(Chat(()), sampling=SamplingParams(max_tokens=9, n=2))
    with TRACER.start_as_current_span("replica"), answer_span(request, 3) as span:
        span.note(Delta("A", 1, usage=Usage(20, 1)))
        span.note(Delta("", 1, FinishReason.LENGTH, Usage(20, 4)))
        span.note(Delta("", 0, FinishReason.STOP, Usage(20, 3)))
    spans = finished()
    assert parents(spans) == {"replica": None, "chat tiny": "replica"}
    attributes = dict(spans["chat tiny"].attributes or {})
    first = attributes.pop("gen_ai.response.time_to_first_chunk")
    assert isinstance(first, float)
    assert 0 <= first < 60
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "raylens",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "raylens.task": "chat",
        "raylens.request_id": "r-1",
        "raylens.pictures": 3,
        "raylens.key": "alice",
    }


def test_calls_of_handles_are_below_the_answer_and_share_no_list_of_open_spans() -> None:
    first, second = Method(), Method()
    with TRACER.start_as_current_span("replica") as replica:
        open_spans = [replica]
        TRACE_STACK.set(open_spans)
        with answer_span(make_request(), 0) as span:
            assert span.call(first, 1, 2) == (1, 2)
            assert span.call(second) == ()
        assert trace.get_current_span() is replica
        assert TRACE_STACK.get() is open_spans
    answer = finished()["generate_content tiny"]
    assert first.parent.get_span_context() == answer.context
    assert first.stack == []
    assert first.stack is not second.stack


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (DeadlineExceeded(SECRET), DeadlineExceeded.code),
        (asyncio.CancelledError(), "canceled"),
        (GeneratorExit(), "canceled"),
        (ValueError(SECRET), "ValueError"),
    ],
)
def test_a_call_that_fails_has_an_error_without_its_message(
    raised: BaseException, code: str
) -> None:
    with (
        TRACER.start_as_current_span(
            "replica", record_exception=False, set_status_on_exception=False
        ),
        suppress(BaseException),
        answer_span(make_request(), 0) as span,
    ):
        span.note(Delta("A"))
        raise raised
    assert error_of(finished()["generate_content tiny"]) == code


def test_a_caller_may_leave_once_all_answers_have_ended() -> None:
    with (
        TRACER.start_as_current_span("replica"),
        suppress(GeneratorExit),
        answer_span(make_request(), 0) as span,
    ):
        span.note(LAST)
        raise GeneratorExit
    assert error_of(finished()["generate_content tiny"]) is None


# The request


SCOPE: Scope = {"type": "http", "method": "POST", "path": "/v1/caption", "headers": []}


async def handle(app: Any, scope: Scope = SCOPE) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    await ReadingMiddleware(app)(dict(scope), receive, send)
    return sent


async def call_model(scope: Scope, receive: Receive, send: Send) -> None:
    record = AccessRecord("POST", "/v1/caption", "1.2.3.4", key="alice", route="/v1/caption")
    current_record.set(record)
    for _ in range(2):
        with answer_span(make_request(), 0) as span:
            span.note(LAST)
    await send({"type": "http.response.start", "status": 200})


def answer_with(status: int) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status})

    return app


async def test_reading_ends_with_the_first_call_of_a_model() -> None:
    with TRACER.start_as_current_span("replica"):
        await handle(call_model)
    (reading,) = (span for span in EXPORTER.get_finished_spans() if span.name == "read request")
    first, second = (
        span for span in EXPORTER.get_finished_spans() if span.name.startswith("generate_content")
    )
    assert reading.end_time is not None
    assert first.start_time is not None
    assert second.start_time is not None
    assert reading.end_time <= first.start_time <= second.start_time
    replica = finished()["replica"]
    assert dict(replica.attributes or {}) == {
        "raylens.route": "/v1/caption",
        "raylens.key": "alice",
        "http.response.status_code": 200,
    }
    assert error_of(replica) is None


@pytest.mark.parametrize(
    ("status", "names", "reading", "request_"),
    [
        (200, {"replica"}, None, None),
        (422, {"replica", "read request"}, "422", None),
        (503, {"replica"}, None, "503"),
    ],
)
async def test_a_refused_request_ends_while_it_is_read(
    status: int, names: set[str], reading: str | None, request_: str | None
) -> None:
    current_record.set(None)
    with TRACER.start_as_current_span("replica"):
        await handle(answer_with(status))
    spans = finished()
    assert set(spans) == names
    if reading is not None:
        assert error_of(spans["read request"]) == reading
    assert error_of(spans["replica"]) == request_
    assert (spans["replica"].attributes or {})["http.response.status_code"] == status


@pytest.mark.parametrize(
    ("raised", "code"),
    [(asyncio.CancelledError(), "canceled"), (None, "canceled"), (KeyError("x"), "KeyError")],
)
@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_request_that_does_not_end_well_is_an_error(
    raised: BaseException | None, code: str, has_begun: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if has_begun:
            await send({"type": "http.response.start", "status": 200})
        if raised is not None:
            raise raised

    with TRACER.start_as_current_span("replica"), suppress(asyncio.CancelledError, KeyError):
        await handle(app)
    is_well = has_begun and raised is None
    assert error_of(finished()["replica"]) == (None if is_well else code)


async def test_websockets_pass_through() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    with TRACER.start_as_current_span("replica"):
        await handle(app, {"type": "websocket"})
    assert seen == ["websocket"]
    assert set(finished()) == {"replica"}


# The preprocessor


async def test_a_picture_has_a_span_for_the_wait_and_for_each_step() -> None:
    metrics = FakeMetrics()
    preprocessor = Preprocessor(CONFIG, metrics)  # type: ignore[arg-type]
    with TRACER.start_as_current_span("replica"):
        processed = await preprocessor.process(SMALL, PLAIN, CALLER)
    assert isinstance(processed.steps, tuple)
    spans = finished()
    steps = [step.name for step in processed.steps]
    assert set(spans) == {"replica", "wait for a thread", "preprocess picture", *steps}
    assert {parents(spans)[step] for step in steps} == {"preprocess picture"}
    assert parents(spans)["preprocess picture"] == "replica"
    assert spans["wait for a thread"].end_time == spans["preprocess picture"].start_time
    whole = spans["preprocess picture"]
    at = whole.start_time
    for step in processed.steps:
        span = spans[step.name]
        assert at is not None
        assert span.end_time is not None
        assert whole.end_time is not None
        assert span.start_time == at
        assert abs(span.end_time - at - step.seconds * NS) < 2
        assert span.end_time <= whole.end_time
        at = span.end_time


async def test_a_picture_that_cannot_be_read_is_an_error() -> None:
    preprocessor = Preprocessor(CONFIG, FakeMetrics())  # type: ignore[arg-type]
    with TRACER.start_as_current_span("replica"), suppress(UnsupportedMedia):
        await preprocessor.process(PictureFile(b"GIF8", "image"), PLAIN, CALLER)
    spans = finished()
    assert set(spans) == {"replica", "wait for a thread", "preprocess picture"}
    assert error_of(spans["preprocess picture"])
    assert error_of(spans["replica"]) == error_of(spans["preprocess picture"])
    assert error_of(spans["wait for a thread"]) is None


async def test_a_picture_that_never_gets_a_thread_has_only_waited() -> None:
    preprocessor = Preprocessor(CONFIG, FakeMetrics())  # type: ignore[arg-type]
    release = threading.Event()
    blocked = preprocessor._pool.submit(release.wait, Caller("other", CALLER.deadline))
    with TRACER.start_as_current_span("replica"):
        call = asyncio.create_task(preprocessor.process(SMALL, PLAIN, CALLER))
        await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
    release.set()
    blocked.result(10)
    spans = finished()
    assert set(spans) == {"replica", "wait for a thread"}
    assert error_of(spans["wait for a thread"]) == "canceled"


# Jobs


async def test_an_attempt_at_a_job_is_a_trace_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.spans.is_on", lambda: True)

    async def attempt(job: str, code: str) -> None:
        begin_attempt("caption", job, 2)
        with answer_span(make_request(), 0) as span:
            span.note(LAST)
        end_attempt(code)

    with TRACER.start_as_current_span("no part of it"):
        outside = trace.get_current_span().get_span_context().trace_id
    await asyncio.gather(*(asyncio.create_task(attempt(*job)) for job in (("a", "ok"), ("b", "x"))))
    jobs = [span for span in EXPORTER.get_finished_spans() if span.name == "job caption"]
    assert [dict(span.attributes or {}) for span in jobs] == [
        {"raylens.job_id": "a", "raylens.attempt": 2},
        {"raylens.job_id": "b", "raylens.attempt": 2, "error.type": "x"},
    ]
    assert all(span.parent is None for span in jobs)
    assert len({outside, *(span.context.trace_id for span in jobs)}) == 3
    calls = [s for s in EXPORTER.get_finished_spans() if s.name.startswith("generate_content")]
    assert [span.parent for span in calls] == [span.context for span in jobs]
    assert serve.get_trace_context() is None


# Without a trace


UNTRACED = """
import asyncio, sys
from ray import serve
before = {name for name in sys.modules if name.startswith("opentelemetry")}
from deployments import graph, ingress, job_queue, preprocessor, tracing, vision_model
from deployments.answer_spans import ReadingMiddleware, answer_span
from deployments.spans import begin_attempt, end_attempt
from deployments.stage_spans import follow_answers, picture_spans
from raylens.core.types import Caption, VisionRequest

async def respond(scope, receive, send):
    request = VisionRequest("r", "tiny", Caption(), 0.0)
    with answer_span(request, 0), picture_spans("picture"):
        assert follow_answers(None, request, 0) is None

asyncio.run(ReadingMiddleware(respond)({"type": "http"}, None, None))
tracing.trace_this_actor("jobs")
begin_attempt("caption", "a", 1)
end_attempt("ok")
print(*{name for name in sys.modules if name.startswith("opentelemetry")} - before)
"""


def test_without_tracing_nothing_of_opentelemetry_is_imported_but_by_serve() -> None:
    result = subprocess.run(
        [sys.executable, "-c", UNTRACED], capture_output=True, text=True, timeout=120
    )
    assert (result.stdout, result.returncode) == ("\n", 0), result.stderr


async def test_without_a_trace_nothing_is_recorded() -> None:
    deltas = deltas_of(LAST)
    begin_attempt("caption", "a", 1)
    assert serve.get_trace_context() is None
    end_attempt("ok")
    assert follow_answers(deltas, make_request(), 0) is deltas
    await deltas.aclose()
    assert await handle(call_model) == [{"type": "http.response.start", "status": 200}]
    method = Method()
    assert call(method, 1) == (1,)
    await Preprocessor(CONFIG, FakeMetrics()).process(  # type: ignore[arg-type]
        SMALL, PLAIN, CALLER
    )
    assert EXPORTER.get_finished_spans() == ()
