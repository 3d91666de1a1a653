"""The spans of a request in the ingress, and of a call of a model in any process that makes one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.spans import NS, call, ending, fail, record, tracer
from raylens.api.access_log import current_record
from raylens.core.types import (
    Chat,
    Completion,
    Delta,
    FinishReason,
    Task,
    Usage,
    VisionRequest,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


class ReadingMiddleware:
    """Records how long a request took to be read and checked, and completes the span of Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = serve.get_trace_context()
        if scope["type"] != "http" or context is None:
            await self._app(scope, receive, send)
            return
        reading = _Reading(context)
        _current_reading.set(reading)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                reading.note_status(message["status"])
            await send(message)

        with ending(reading.end_request):
            await self._app(scope, receive, send_and_note)


class _Reading:
    """From the arrival of a request in the ingress to the first call of a model."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._started = time.time_ns()
        self._status = 0
        self._is_recorded = False

    def end(self, error: str | None = None) -> None:
        """Record the span, unless an earlier call did."""
        if not self._is_recorded:
            self._is_recorded = True
            record("read request", self._started, time.time_ns(), self._context, {}, error)

    def note_status(self, status: int) -> None:
        self._status = status
        if 400 <= status < 500:  # unless a model has been called, reading was all that happened
            self.end(str(status))

    def end_request(self, error: str | None) -> None:
        """Add to the span of Serve what is known of the request when it ends."""
        from opentelemetry import trace

        span = trace.get_current_span(self._context)
        known = current_record.get()
        if known is not None:
            span.set_attribute("raylens.route", known.route)  # Serve sets http.route to "/"
            if known.key is not None:
                span.set_attribute("raylens.key", known.key)
        if self._status:
            span.set_attribute("http.response.status_code", self._status)
        if self._status >= 500:
            error = str(self._status)
        elif self._status == 0:  # an exception becomes an answer further out
            error = error or "canceled"
        if error is not None:
            fail(span, error)


_current_reading: ContextVar[_Reading | None] = ContextVar("reading", default=None)


class AnswerSpan:
    """One call of a model. This class records nothing: the request isn't traced."""

    def call(self, method: Any, *arguments: Any) -> Any:
        """Call a method of a Serve handle. Serve's spans of the call are below this one."""
        return method.remote(*arguments)

    def note(self, delta: Delta) -> None: ...


class _RecordedAnswer(AnswerSpan):
    def __init__(self, span: Span, num_answers: int) -> None:
        self._span = span
        self._num_answers = num_answers
        self._started = time.time_ns()
        self._has_begun = False
        self._usages: dict[int, Usage] = {}
        self._reasons: dict[int, FinishReason] = {}

    def call(self, method: Any, *arguments: Any) -> Any:
        return call(method, *arguments, below=self._span)

    def note(self, delta: Delta) -> None:
        if not self._has_begun:
            self._has_begun = True
            seconds = (time.time_ns() - self._started) / NS - delta.held_s
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        if delta.usage is not None:
            self._usages[delta.index] = delta.usage
        if delta.finish_reason is not None:
            self._reasons[delta.index] = delta.finish_reason

    def end(self, error: str | None) -> None:
        usages = self._usages.values()
        if usages:
            prompt = max(usage.prompt_tokens for usage in usages)
            self._span.set_attribute("gen_ai.usage.input_tokens", prompt)
            tokens = sum(usage.completion_tokens for usage in usages)
            self._span.set_attribute("gen_ai.usage.output_tokens", tokens)
        reasons = [self._reasons[index].value for index in sorted(self._reasons)]
        if reasons:
            self._span.set_attribute("gen_ai.response.finish_reasons", reasons)
        # A caller that has all answers may leave without asking for more.
        if error is not None and len(reasons) < self._num_answers:
            fail(self._span, error)
        elif FinishReason.ABORT in reasons:
            fail(self._span, FinishReason.ABORT.value)
        self._span.end()


@contextmanager
def answer_span(request: VisionRequest, num_pictures: int) -> Iterator[AnswerSpan]:
    """Follow a call of a model from the process that makes it."""
    context = serve.get_trace_context()
    if context is None:
        yield AnswerSpan()
        return
    reading = _current_reading.get()
    if reading is not None:
        reading.end()
    operation = _operation(request.task)
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "raylens",
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.sampling.max_tokens,
        "gen_ai.request.temperature": request.sampling.temperature,
        "gen_ai.request.choice.count": request.sampling.n,
        "gen_ai.request.stream": request.stream,
        "raylens.task": request.task.name,
        "raylens.request_id": request.id,
        "raylens.pictures": num_pictures,
    }
    known = current_record.get()
    if known is not None and known.key is not None:
        attributes["raylens.key"] = known.key
    span = tracer().start_span(f"{operation} {request.model}", context, attributes=attributes)
    answer = _RecordedAnswer(span, request.sampling.n)
    with ending(answer.end):
        yield answer


def _operation(task: Task) -> str:
    """Return what OpenTelemetry calls the task."""
    if isinstance(task, Chat):
        return "chat"
    return "text_completion" if isinstance(task, Completion) else "generate_content"
