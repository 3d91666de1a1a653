"""The spans of our own, below those of Serve.

``serve.get_trace_context()`` is None if tracing is off, and if the current request isn't traced.
Then nothing is recorded. Attributes follow OpenTelemetry's conventions for generative AI, if it has
any for them, and never hold prompts, answers or pictures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve._private.tracing_utils import TRACE_STACK, is_tracing_enabled

from raylens.core.errors import RaylensError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

NS = 1_000_000_000
Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


def is_on() -> bool:
    """Whether this process may trace requests."""
    return bool(is_tracing_enabled())


def call(method: Any, *arguments: Any, below: Span | None = None) -> Any:
    """Call a method of a Serve handle. Serve's spans of the call are ``below`` a span, or the
    current one."""
    if serve.get_trace_context() is None:
        return method.remote(*arguments)
    return copy_context().run(_call_here, method, arguments, below)


def _call_here(method: Any, arguments: tuple[Any, ...], below: Span | None) -> Any:
    from opentelemetry.context import attach
    from opentelemetry.trace import set_span_in_context

    if below is not None:
        attach(set_span_in_context(below))
    # Serve's list of open spans. Concurrent calls that share one describe and end each other's.
    TRACE_STACK.set([])
    return method.remote(*arguments)


def tracer() -> Tracer:
    from opentelemetry import trace

    return trace.get_tracer("raylens")


def record(
    name: str,
    started: int,
    ended: int,
    context: Context,
    attributes: Attributes,
    error: str | None = None,
) -> Span:
    """Record a span that has ended. Times are in nanoseconds since the epoch."""
    span = tracer().start_span(name, context, attributes=dict(attributes), start_time=started)
    if error is not None:
        fail(span, error)
    span.end(max(started, ended))
    return span


def fail(span: Span, code: str) -> None:
    """Give a span the status of an error."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", code)


@contextmanager
def ending(end: Callable[[str | None], None]) -> Iterator[None]:
    """Call ``end`` at the end, with the code of the exception, if there is one."""
    code: str | None = None
    try:
        yield
    except BaseException as error:
        code = _code(error)
        raise
    finally:
        end(code)


def _code(error: BaseException) -> str:
    """Return an error's code. Its message may quote the request."""
    if isinstance(error, RaylensError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "canceled"
    return type(error).__name__


def begin_attempt(job_type: str, job_id: str, number: int) -> None:
    """Begin a trace of an attempt at a job, if this process traces. The current task must be the
    attempt's own."""
    if not is_on():
        return
    from opentelemetry.context import attach
    from opentelemetry.trace import set_span_in_context

    attributes: dict[str, str | int] = {"raylens.job_id": job_id, "raylens.attempt": number}
    span = tracer().start_span(f"job {job_type}", attributes=attributes)
    if span.is_recording():
        attach(set_span_in_context(span))


def end_attempt(code: str) -> None:
    """End the trace of the current task's attempt. ``code`` is ``ok``, or that of an error."""
    if serve.get_trace_context() is None:
        return
    from opentelemetry import trace

    span = trace.get_current_span()
    if code != "ok":
        fail(span, code)
    span.end()
