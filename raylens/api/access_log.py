"""One line in the log for each request: who asked which model, and how long it took."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.origins import PROBES
from raylens.api.paths import route_path
from raylens.api.routes import RouteTable
from raylens.api.status import PATH as STATUS
from raylens.core.keys import ApiKey
from raylens.core.ports import VisionService
from raylens.core.types import Delta, MediaFile, Timings, Usage, VisionRequest

logger = logging.getLogger("raylens.access")

MAX_PATH_CHARS = 200
MODEL_HEADER = "X-Raylens-Model"
TIMING_HEADER = "X-Server-Timing"
POLLED = PROBES | {STATUS}
"""Paths that are asked for again and again."""


@dataclass
class AccessRecord:
    """What is known of a request. Times are in seconds."""

    method: str
    path: str
    client: str
    status: int = 0
    """0 if the client left before the answer."""
    seconds: float = 0.0
    key: str | None = None
    """The name of the API key."""
    model: str | None = None
    task: str | None = None
    first_token_s: float | None = None
    """From the call of the model to the first part of its answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timings: Timings | None = None
    """Of the slowest answer."""
    route: str = ""
    """The path's template, such as ``/api/v1/jobs/{job_id}``; empty if no route fits."""

    def __str__(self) -> str:
        text = f"{self.method} {self.path} {self.status} {self.seconds:.3f}s"
        if self.key is not None:
            text += f" key={self.key}"
        if self.model is not None:
            text += f" model={self.model} task={self.task}"
            text += f" tokens={self.prompt_tokens}+{self.completion_tokens}"
        return text


current_record: ContextVar[AccessRecord | None] = ContextVar("access_record", default=None)


class RequestMetrics:
    """Receives the record of each request that has ended. This base class ignores them."""

    def record(self, record: AccessRecord) -> None: ...


class AccessLogMiddleware:
    """Logs each request when it has ended; those that poll only at the level DEBUG.

    The answer's headers name the model that answers and, if the request has ``X-Server-Timing: 1``,
    the milliseconds of each stage by then. A stream's headers are sent with its first token.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, routes: RouteTable) -> None:
        self._app = app
        self._routes = routes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = new_record(scope, scope["method"])
        started = time.perf_counter()
        wants_timing = Headers(scope=scope).get(TIMING_HEADER, "0") not in ("0", "false")

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                if record.model is not None:
                    headers[MODEL_HEADER] = record.model
                if wants_timing:
                    headers["Server-Timing"] = _server_timing(record, time.perf_counter() - started)
            await send(message)

        level = logging.DEBUG if route_path(scope) in POLLED else logging.INFO
        with recording(record, self._metrics, level):
            try:
                await self._app(scope, receive, send_and_note)
            finally:
                record.route = self._routes.template_of(scope)


def new_record(scope: Scope, method: str) -> AccessRecord:
    client = scope.get("client") or ("-",)
    return AccessRecord(method, _printable(scope["path"]), client[0])


@contextmanager
def recording(
    record: AccessRecord, metrics: RequestMetrics, level: int = logging.INFO
) -> Iterator[None]:
    """Make a record the current one within the context, and log it at the end."""
    current_record.set(record)
    started = time.perf_counter()
    try:
        yield
    except Exception:  # which becomes an answer further out
        record.status = record.status or 500
        raise
    finally:
        record.seconds = round(time.perf_counter() - started, 6)
        metrics.record(record)
        logger.log(level, "%s", record, extra={"fields": asdict(record)})


class RecordedService:
    """Notes in the request's record what a service does for it.

    Everything else of :class:`VisionService` is the service's own.
    """

    def __init__(self, service: VisionService) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        record = current_record.get() or AccessRecord("", "", "")
        record.model, record.task = request.model, request.task.name
        started = time.perf_counter()
        tokens = _TokenCount()
        try:
            async with aclosing(self._service.generate(request, pictures)) as stream:
                async for delta in stream:
                    _note(record, delta, time.perf_counter() - started)
                    tokens.add(delta)
                    yield delta
        finally:
            record.prompt_tokens += tokens.prompt
            record.completion_tokens += tokens.completion


def _printable(path: str) -> str:
    """Return a path without line breaks and the like, which would forge lines of a log."""
    characters = (char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in path)
    return "".join(characters)[:MAX_PATH_CHARS]


def note_key(key: ApiKey) -> None:
    """Note whose key the current request has."""
    record = current_record.get()
    if record is not None:
        record.key = key.name


def _note(record: AccessRecord, delta: Delta, seconds: float) -> None:
    if record.first_token_s is None:
        record.first_token_s = round(seconds - delta.held_s, 6)
    if delta.model is not None:
        record.model = delta.model
    if delta.timings is not None:
        record.timings = max(record.timings or delta.timings, delta.timings, key=_total)


class _TokenCount:
    """Counts the tokens of one call of a model. Its answers share a prompt, which counts once."""

    def __init__(self) -> None:
        self._usages: dict[int, Usage] = {}
        """The latest of each answer."""
        self._pieces: Counter[int] = Counter()
        """Deltas with text of each answer: at least one token each."""

    def add(self, delta: Delta) -> None:
        self._pieces[delta.index] += bool(delta.text)
        if delta.usage is not None:
            self._usages[delta.index] = delta.usage

    @property
    def prompt(self) -> int:
        return max((usage.prompt_tokens for usage in self._usages.values()), default=0)

    @property
    def completion(self) -> int:
        known = {index: usage.completion_tokens for index, usage in self._usages.items()}
        return sum(max(known.get(index, 0), count) for index, count in self._pieces.items())


def _total(timings: Timings) -> float:
    return timings.queue + timings.prefill + timings.decode


def _server_timing(record: AccessRecord, seconds: float) -> str:
    """Return the value of a ``Server-Timing`` header (W3C, "Server Timing")."""
    stages = {} if record.timings is None else asdict(record.timings)
    entries = {**stages, "total": seconds}
    return ", ".join(f"{name};dur={1000 * value:.1f}" for name, value in entries.items())
