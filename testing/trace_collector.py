"""A collector of traces: an HTTP server that takes OpenTelemetry's OTLP, and keeps the spans."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

NS = 1e9


@dataclass(frozen=True)
class ReceivedSpan:
    """Times are in seconds since the epoch, ids in hex; a root's ``parent`` is empty."""

    name: str
    trace: str
    id: str
    parent: str
    start: float
    end: float
    attributes: dict[str, Any]
    resource: dict[str, Any]
    is_error: bool

    @property
    def process(self) -> str:
        return str(self.resource["raylens.process"])


class Collector:
    def __init__(self) -> None:
        self._spans: list[ReceivedSpan] = []
        self._changed = Condition()
        self.url = ""

    def add(self, spans: Sequence[ReceivedSpan]) -> None:
        with self._changed:
            self._spans.extend(spans)
            self._changed.notify_all()

    @property
    def spans(self) -> list[ReceivedSpan]:
        with self._changed:
            return list(self._spans)

    def trace(self, trace: str) -> list[ReceivedSpan]:
        """Return the spans of a trace, by their start."""
        return sorted((s for s in self.spans if s.trace == trace), key=lambda span: span.start)

    def wait_for(
        self, condition: Callable[[list[ReceivedSpan]], bool], timeout_s: float = 60
    ) -> None:
        """Wait until the condition holds for the spans. Fails if it doesn't."""
        with self._changed:
            holds = self._changed.wait_for(lambda: condition(self._spans), timeout_s)
        assert holds, [(span.name, span.process) for span in self.spans]


def outline(spans: Sequence[ReceivedSpan]) -> str:
    """Return the spans of a trace as an indented list with milliseconds."""
    ids = {span.id for span in spans}
    first = min(span.start for span in spans)
    lines: list[str] = []

    def add(span: ReceivedSpan, depth: int) -> None:
        begin, length = 1000 * (span.start - first), 1000 * (span.end - span.start)
        name = "  " * depth + span.name
        lines.append(f"{name:<58} {begin:8.1f} {length:8.1f}  {span.process}")
        for child in spans:
            if child.parent == span.id:
                add(child, depth + 1)

    for span in spans:
        if span.parent not in ids:
            add(span, 0)
    return "\n".join(lines)


@contextmanager
def running_collector(keeps: bool = True) -> Iterator[Collector]:
    """Run a collector on a free port; unless it ``keeps`` spans, it only takes them."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces", self.path
            if keeps:
                collector.add(_decode(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _decode(body: bytes) -> list[ReceivedSpan]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        ReceivedSpan(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano / NS,
            span.end_time_unix_nano / NS,
            _attributes(span.attributes),
            _attributes(resource.resource.attributes),
            span.status.code == Status.STATUS_CODE_ERROR,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
