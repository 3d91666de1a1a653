"""The spans of the stages in replicas: steps of preprocessing, queue, prefill and decode.

They are recorded when a stage has ended, from the times that it has reported.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from ray import serve

from deployments.spans import NS, ending, fail, record
from raylens.core.types import (
    Delta,
    EngineTimings,
    FinishReason,
    StepReport,
    Usage,
    VisionRequest,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context


def follow_answers(
    deltas: AsyncGenerator[Delta, None], request: VisionRequest, num_pictures: int
) -> AsyncGenerator[Delta, None]:
    """Return the deltas of a runtime; if the request is traced, their stages are recorded."""
    context = serve.get_trace_context()
    if context is None:
        return deltas
    return _followed(deltas, _Answers(context, request.sampling.n, num_pictures))


async def _followed(
    deltas: AsyncGenerator[Delta, None], answers: _Answers
) -> AsyncGenerator[Delta, None]:
    with ending(answers.end):
        async with aclosing(deltas):
            async for delta in deltas:
                answers.note(delta)
                yield delta


class _Answers:
    """The answers to one request."""

    def __init__(self, context: Context, num_answers: int, num_pictures: int) -> None:
        self._context = context
        self._num_answers = num_answers
        self._num_pictures = num_pictures
        self._num_ended = 0
        self._started = time.time_ns()
        self._is_prepared = False
        self._timings: dict[int, EngineTimings] = {}
        """Of the answers that have begun, and not ended."""
        self._usages: dict[int, Usage] = {}

    def note(self, delta: Delta) -> None:
        if isinstance(delta.timings, EngineTimings):
            self._timings[delta.index] = delta.timings
        if delta.usage is not None:
            self._usages[delta.index] = delta.usage
        if delta.finish_reason is not None:
            self._num_ended += 1
            self._record(delta.index, delta.finish_reason, None)

    def end(self, error: str | None) -> None:
        """Record what is known of the answers that never ended."""
        from opentelemetry import trace

        if error is None or self._num_ended == self._num_answers:
            return
        for index in sorted(self._timings):
            self._record(index, None, error)
        fail(trace.get_current_span(self._context), error)

    def _record(self, index: int, reason: FinishReason | None, error: str | None) -> None:
        timings = self._timings.pop(index, None)
        usage = self._usages.pop(index, None) or Usage(0, 0)
        common: dict[str, Any] = {"raylens.answer": index} if self._num_answers > 1 else {}
        prompt = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "raylens.pictures": self._num_pictures,
            **common,
        }
        output = {"gen_ai.usage.output_tokens": usage.completion_tokens, **common}
        if reason is not None:
            output["gen_ai.response.finish_reasons"] = [reason.value]
        if reason is FinishReason.ABORT:
            error = reason.value
        now = time.time_ns()
        if timings is None:  # another server computes
            record("generate", self._started, now, self._context, {**prompt, **output}, error)
            return
        prompt["gen_ai.usage.cache_read.input_tokens"] = timings.cached_tokens
        arrived = round(timings.arrived_at * NS)
        admitted = arrived + round(timings.queue * NS)
        answered = admitted + round(timings.prefill * NS)
        ended = now if reason is None else answered + round(timings.decode * NS)
        if not self._is_prepared:
            self._is_prepared = True
            record("prepare prompt", self._started, arrived, self._context, {})
        record("queue", arrived, admitted, self._context, common)
        record("prefill", admitted, answered, self._context, prompt)
        record("decode", answered, ended, self._context, output, error)


class PictureSpans:
    """The preprocessing of a picture or video. This class records nothing."""

    def begin_work(self) -> None:
        """Note that a thread has begun. May be called from that thread."""

    def note(self, steps: Sequence[StepReport]) -> None:
        """Note the steps of finished work."""


class _RecordedPicture(PictureSpans):
    def __init__(self, context: Context, kind: str) -> None:
        self._context = context
        self._kind = kind
        self._submitted = time.time_ns()
        self._began: int | None = None
        self._steps: Sequence[StepReport] = ()

    def begin_work(self) -> None:
        self._began = time.time_ns()

    def note(self, steps: Sequence[StepReport]) -> None:
        self._steps = steps

    def end(self, error: str | None) -> None:
        from opentelemetry.trace import get_current_span, set_span_in_context

        now = time.time_ns()
        began = self._began
        if error is not None:
            fail(get_current_span(self._context), error)
        if began is None:
            record("wait for a thread", self._submitted, now, self._context, {}, error)
            return
        record("wait for a thread", self._submitted, began, self._context, {})
        span = record(f"preprocess {self._kind}", began, now, self._context, {}, error)
        below = set_span_in_context(span, self._context)
        for step in self._steps:
            ended = min(now, began + round(step.seconds * NS))
            record(step.name, began, ended, below, {"raylens.step": step.did})
            began = ended


@contextmanager
def picture_spans(kind: str) -> Iterator[PictureSpans]:
    """Follow the preprocessing of a ``kind`` of media, such as ``picture``."""
    context = serve.get_trace_context()
    if context is None:
        yield PictureSpans()
        return
    picture = _RecordedPicture(context, kind)
    with ending(picture.end):
        yield picture
